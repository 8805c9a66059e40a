"""Claims that no warm VM could serve at once: a place in their pool's queue, kept in the database, in order of arrival.

What keeps the promise is the row; the waiting request is only one of those that look at it. A client that goes away frees
its place: at once without an idempotency key, after a short while with one, for the retry that may be on its way.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, NamedTuple, TypeVar
from uuid import UUID

import structlog

from app.concurrency import first_of
from app.config import Settings
from app.domain.placement import Prefer
from app.domain.states import CLAIM_ENDED, ClaimState
from app.domain.statistics import WaitEstimate
from app.errors import DatabaseUnavailable, IdempotencyKeyReused, NoPath, NoWarmVm, PoolBeingDeleted
from app.lifecycle.eta import Outlook, estimate_in_pool, look_at, why_none_will_come
from app.services.claims.lifecycle import no_such_claim
from app.services.claims.waiters import Waiters
from app.services.pools.service import no_such_pool
from app.services.single_flight import SingleFlight
from app.store.claims import rows as claims
from app.store.claims.rows import StoredChoice
from app.store.claims.warm import ClaimRequest
from app.store.database import Database, Tx, overrun
from app.store.notices import notify_settled
from app.store.pools import rows as pool_rows
from app.store.rows import ClaimRow, PoolRow

_RETRY_WINDOW_SECONDS = 15.0
_JOINS_AT_ONCE = 4
_TURN_SECONDS = 15.0
_DEFAULT_RETRY_AFTER = 30.0
_RETRY_AFTER_BOUNDS = (1.0, 300.0)
log = structlog.get_logger(__name__)

_Result = TypeVar("_Result")
UntilDisconnected = Callable[[], Awaitable[None]]
"""Returns when the client of a request has left."""


class NewClaim(NamedTuple):
    """A client's wish. `request_hash` is over the whole body: the same key must come with the same one.

    `pool` is empty where the client described its VM and names none.
    """

    pool: str
    wait_seconds: float
    lease_seconds: int | None
    labels: dict[str, str]
    key: str | None
    request_hash: str
    prefer: Prefer | None = None


@dataclass(frozen=True, slots=True)
class StoredClaim:
    """Served from its row: after a wait, still waiting (`estimate` says how long), or `replayed` for its idempotency key."""

    claim: ClaimRow
    replayed: bool = False
    estimate: WaitEstimate | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The queue that was chosen for a claim which describes its VM, and why."""

    pool: PoolRow
    wish: StoredChoice
    reason: str


Choosing = Callable[[Tx], Awaitable[Chosen]]
"""Chooses in the transaction that writes the claim's place."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A request's place in a queue, held by it until then; None: it may not have been written."""

    claim_id: UUID
    keyed: bool
    held_until: datetime | None = None
    pool_id: UUID | None = None


class ClaimQueue:
    """Joining the queue, waiting in it, and leaving it. `on_joined` is told of pools whose queue has grown.

    A thousand clients may find a pool empty in the same moment, so what they all ask is asked once: how the pool stands,
    and whether a VM became ready meanwhile. Each pays for its own place alone, and only so many places are written at
    once that claims of other pools still get their turn.
    """

    def __init__(self, db: Database, room: Waiters, settings: Settings, on_joined: Callable[[UUID], None]) -> None:
        self._db = db
        self._room = room
        self._on_joined = on_joined
        self._pending_seconds = settings.pending_seconds
        self._max_pending = settings.max_pending_per_pool
        self._outlooks: SingleFlight[str, Outlook] = SingleFlight(self._look_at_pool)
        self._matches: SingleFlight[UUID, None] = SingleFlight(self._match)
        self._turn = asyncio.Semaphore(_JOINS_AT_ONCE)

    async def join(self, wish: NewClaim, request: ClaimRequest, until_disconnected: UntilDisconnected) -> StoredClaim:
        """A place for a claim that found no warm VM, and the wait for it. Raises NoWarmVm, PoolBeingDeleted, PoolNotFound."""
        async with self._in_turn(until_disconnected):
            outlook = await self._outlooks.get(wish.pool)
            pool = outlook.pool
            if pool.deleting_at is not None:
                raise PoolBeingDeleted(f"pool {pool.name!r} is being deleted; claim from another pool")
            reason = await self._why_not_warm(outlook, wish)

            async def in_pool(_: Tx) -> tuple[PoolRow, str, StoredChoice | None]:
                return pool, reason, None

            place = _Place(request.claim_id, keyed=wish.key is not None)
            place = await self._or_leave(place, self._insert(in_pool, wish, request))
        return await self._follow(place, wish, request, until_disconnected)

    async def join_chosen(
        self,
        choosing: Choosing,
        wish: NewClaim,
        request: ClaimRequest,
        until_disconnected: UntilDisconnected,
        *,
        then: Callable[[UUID], Awaitable[None]] | None = None,
    ) -> StoredClaim:
        """The same for a claim that describes its VM, in the queue that `choosing` gives. `then` is done, with the claim's id,
        once the place is written and before it is waited for. Raises NoWarmVm, and what `choosing` raises.
        """

        async def in_chosen(tx: Tx) -> tuple[PoolRow, str, StoredChoice | None]:
            chosen = await choosing(tx)
            return chosen.pool, chosen.reason, chosen.wish

        place = _Place(request.claim_id, keyed=wish.key is not None)
        async with self._in_turn(until_disconnected):
            place = await self._or_leave(place, self._insert(in_chosen, wish, request))
        if then is not None and place.claim_id == request.claim_id:
            await self._or_leave(place, then(place.claim_id))
        return await self._follow(place, wish, request, until_disconnected)

    async def replay(self, claim_id: UUID, wish: NewClaim, until_disconnected: UntilDisconnected) -> StoredClaim:
        """The claim that an idempotency key belongs to. Raises IdempotencyKeyReused where its body was another."""
        known = await self.recall(claim_id, wish)
        if known.claim.state is not ClaimState.PENDING:
            return known
        async with self._db.begin() as tx:
            held_until = await claims.hold_place(tx, claim_id, seconds=self._pending_seconds)
        place = _Place(claim_id, keyed=True, held_until=held_until)
        return await self._or_leave(place, self._wait(place, wish, until_disconnected, replayed=True))

    async def recall(self, claim_id: UUID, wish: NewClaim) -> StoredClaim:
        """The same, as it stands, with no wait."""
        claim = await self._get(claim_id)
        if claim.request_hash != wish.request_hash:
            raise IdempotencyKeyReused(
                f"this Idempotency-Key belongs to claim {claim.id}, which was made with another body; "
                "send the same body to get that claim, or a new key to make a new one"
            )
        return StoredClaim(claim, replayed=True)

    async def refuse_batch(self, pool_name: str, count: int, *, all_or_nothing: bool) -> NoWarmVm:
        """The refusal of a batch that got nothing. Raises PoolNotFound, PoolBeingDeleted."""
        outlook = await self._outlooks.get(pool_name)
        if outlook.pool.deleting_at is not None:
            raise PoolBeingDeleted(f"pool {pool_name!r} is being deleted; claim from another pool")
        estimate = await self._estimate(outlook.pool.id, None)
        ready = outlook.counts.ready
        asked = f"{count} were asked for, all or nothing" if all_or_nothing else f"{count} were asked for"
        return NoWarmVm(
            f"pool {pool_name!r} has {ready} ready VMs and {asked}; none was claimed",
            retry_after=_retry_after(estimate.seconds),
        )

    async def look(self, claim_id: UUID, seconds: float, until_disconnected: UntilDisconnected) -> StoredClaim:
        """The claim, after waiting up to `seconds` for it to leave `pending`. Raises ClaimNotFound."""
        claim = await self._get(claim_id)
        if claim.state is ClaimState.PENDING and seconds > 0:
            waited, _ = await self._until_bound(claim_id, seconds, until_disconnected)
            claim = waited or await self._get(claim_id)
        if claim.state is not ClaimState.PENDING:
            return StoredClaim(claim)
        return StoredClaim(claim, estimate=await self._estimate(claim.pool_id, claim.id))

    @asynccontextmanager
    async def _in_turn(self, until_disconnected: UntilDisconnected) -> AsyncIterator[None]:
        """A turn to write a place. Whose client leaves before it takes none: retries would else queue up behind requests that
        nobody waits for, and the more so the slower it goes. Raises NoWarmVm, DatabaseUnavailable; nothing is written then.
        """
        if self._turn.locked():
            await self._await_turn(until_disconnected)
        else:
            await self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()

    async def _await_turn(self, until_disconnected: UntilDisconnected) -> None:
        acquiring = asyncio.ensure_future(self._turn.acquire())
        acquired = False
        try:
            done = await first_of(acquiring, until_disconnected(), timeout=_TURN_SECONDS)
            if not done:
                raise overrun()
            if done != [acquiring]:
                raise NoWarmVm("its client left before the claim had a place in the queue", retry_after=1)
            acquired = True
        finally:
            if not acquired:
                acquiring.cancel()
                acquiring.add_done_callback(self._pass_turn_on)

    def _pass_turn_on(self, acquiring: "asyncio.Task[Literal[True]]") -> None:
        """A turn that came just when it was not wanted any more."""
        if not acquiring.cancelled():
            self._turn.release()

    async def _look_once_more(self, pool_id: UUID) -> None:
        try:
            await self._matches.get_fresh(pool_id)
        except DatabaseUnavailable:
            log.info("claim.match_left_to_polling")  # the place is written; whoever is back first looks

    async def _follow(
        self, place: _Place, wish: NewClaim, request: ClaimRequest, until_disconnected: UntilDisconnected
    ) -> StoredClaim:
        """What comes after the place was written."""
        if place.pool_id is not None:
            self._on_joined(place.pool_id)
        if place.claim_id != request.claim_id:
            return await self.replay(place.claim_id, wish, until_disconnected)
        # A VM may have become ready between the last look and the place in the queue: whoever made it ready looks for
        # waiting claims after its commit, we look for ready VMs after ours, so that one of the two sees both.
        if place.pool_id is not None:
            await self._or_leave(place, self._look_once_more(place.pool_id))
        return await self._or_leave(place, self._wait(place, wish, until_disconnected, replayed=False))

    async def _insert(
        self,
        where: Callable[[Tx], Awaitable[tuple[PoolRow, str, StoredChoice | None]]],
        wish: NewClaim,
        request: ClaimRequest,
    ) -> _Place:
        async with self._db.begin() as tx:
            pool, reason, vm = await where(tx)
            claim_id = await claims.insert_pending(
                tx,
                claim_id=request.claim_id,
                pool_id=pool.id,
                key=request.key,
                request_hash=request.request_hash,
                labels=wish.labels,
                lease_seconds=request.lease_seconds,
                pending_seconds=self._pending_seconds,
                reason=reason,
                wish=vm,
            )
            place = _Place(claim_id, keyed=request.key is not None, pool_id=pool.id)
            if claim_id != request.claim_id or (request.key is None and vm is None):
                return place
            held_until = await claims.hold_place(tx, claim_id, seconds=self._pending_seconds)
        return replace(place, held_until=held_until)

    async def _or_leave(self, place: _Place, step: Awaitable[_Result]) -> _Result:
        """A step of a claim that has, or may have, its place by now: where the step is broken off the place is freed."""
        try:
            return await step
        except (asyncio.CancelledError, DatabaseUnavailable):
            await asyncio.shield(self._leave(place))
            raise

    async def _look_at_pool(self, name: str) -> Outlook:
        async with self._db.begin() as tx:
            pool = await pool_rows.get(tx, name)
            if pool is None:
                raise no_such_pool(name)
            return await look_at(tx, pool)

    async def _match(self, pool_id: UUID) -> None:
        async with self._db.begin() as tx:
            bound = await claims.bind_pending(tx, pool_id)
            await notify_settled(tx, bound)
        if bound:
            self._on_joined(pool_id)

    async def _why_not_warm(self, outlook: Outlook, wish: NewClaim) -> str:
        """The reason, in words. Raises NoWarmVm where no VM would come, or the queue is full."""
        pool, counts = outlook.pool, outlook.counts
        empty = f"pool {pool.name!r} has no ready VM ({counts.in_flight} on their way, {counts.claimed} claimed)"
        if counts.waiting >= self._max_pending:
            raise NoWarmVm(
                f"{empty}, and {counts.waiting} claims wait already, as many as may", retry_after=_DEFAULT_RETRY_AFTER
            )
        if counts.ready > counts.waiting:
            return f"pool {pool.name!r} has ready VMs, and each was just in another's hand"
        if counts.in_flight - (counts.planned if pool.paused else 0) > counts.waiting:
            return empty
        because = why_none_will_come(pool, counts.claimed, wish.wait_seconds)
        if because is not None:
            estimate = await self._estimate(pool.id, None)
            raise NoWarmVm(f"{empty}, and {because}", retry_after=_retry_after(estimate.seconds))
        return empty

    async def _wait(
        self, place: _Place, wish: NewClaim, until_disconnected: UntilDisconnected, *, replayed: bool
    ) -> StoredClaim:
        claim_id, claim, gone = place.claim_id, None, False
        if wish.wait_seconds > 0:
            claim, gone = await self._until_bound(claim_id, wish.wait_seconds, until_disconnected)
        if gone:
            await self._leave(place)
        if claim is None:
            claim = await self._get(claim_id)
        if claim.state in CLAIM_ENDED and claim.vm_id is None:
            refusal = NoPath if claim.allowed is not None else NoWarmVm
            raise refusal(f"the claim ended before it got a VM: {claim.reason}", retry_after=_DEFAULT_RETRY_AFTER)
        if claim.state is not ClaimState.PENDING:
            return StoredClaim(claim, replayed=replayed)
        estimate = await self._estimate(claim.pool_id, claim.id)
        if estimate.seconds is None and claim.allowed is None:
            await self._give_up(claim_id)
            raise NoWarmVm(
                f"{claim.reason}, and none comes by itself: {estimate.basis}", retry_after=_DEFAULT_RETRY_AFTER
            )
        return StoredClaim(claim, replayed=replayed, estimate=estimate)

    async def _until_bound(
        self, claim_id: UUID, seconds: float, until_disconnected: UntilDisconnected
    ) -> tuple[ClaimRow | None, bool]:
        """The claim once it is pending no more (None: not in time), and whether its client left before."""
        waiting = asyncio.create_task(self._room.wait(claim_id, seconds))
        try:
            done = await first_of(waiting, until_disconnected())
        finally:
            waiting.cancel()
        return (waiting.result(), False) if waiting in done else (None, True)

    async def _leave(self, place: _Place) -> None:
        """With a key the place is kept for a while; where a retry has held it since, on any replica, it is that one's."""
        if not place.keyed:
            await self._give_up(place.claim_id)
            return
        try:
            async with self._db.begin() as tx:
                await claims.hold_place(tx, place.claim_id, seconds=_RETRY_WINDOW_SECONDS, held_until=place.held_until)
        except DatabaseUnavailable:
            log.info("claim.place_not_freed", claim=str(place.claim_id))  # its own time limit will

    async def _give_up(self, claim_id: UUID) -> None:
        why = "nobody waits for it any more"
        try:
            async with self._db.begin() as tx:
                await claims.end(tx, [claim_id], ClaimState.FAILED, sources=[ClaimState.PENDING], reason=why)
        except DatabaseUnavailable:
            log.info("claim.place_not_freed", claim=str(claim_id))

    async def _estimate(self, pool_id: UUID, claim_id: UUID | None) -> WaitEstimate:
        async with self._db.begin() as tx:
            return await estimate_in_pool(tx, pool_id, claim_id)

    async def _get(self, claim_id: UUID) -> ClaimRow:
        async with self._db.begin() as tx:
            claim = await claims.get(tx, claim_id)
        if claim is None:
            raise no_such_claim(claim_id)
        return claim


def _retry_after(seconds: float | None) -> float:
    low, high = _RETRY_AFTER_BOUNDS
    return _DEFAULT_RETRY_AFTER if seconds is None else min(high, max(low, seconds))
