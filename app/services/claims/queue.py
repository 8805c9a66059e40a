"""Claims that no warm VM could serve at once: each gets a place in its pool's queue, kept in the database.

The queue is served in order of arrival. The row keeps the promise; the request that waits only reads it. A client that
disconnects gives up its place: at once without an idempotency key, with one after a short while, so that a retry finds it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

import structlog

from app.compute.vms import VmTemplate
from app.concurrency import first_of
from app.config import Settings
from app.domain.claims import ClaimRequest, NewClaim
from app.domain.path_selection import Choice
from app.domain.pools import PoolSpec
from app.domain.states import CLAIM_ENDED, ClaimState
from app.domain.statistics import WaitEstimate
from app.errors import DatabaseUnavailable, IdempotencyKeyReused, NoPath, NoWarmVm, PoolBeingDeleted
from app.lifecycle.eta import PoolStatus, estimate_in_pool, read_status, tell_why_pending, why_none_will_come
from app.lifecycle.on_demand_pools import enter_pool
from app.services.claims.lifecycle import no_such_claim, tell_of_claim
from app.services.claims.waiters import Waiters
from app.services.pools.service import no_such_pool
from app.services.single_flight import SingleFlight
from app.store.claims import rows as claims
from app.store.claims.rows import StoredChoice
from app.store.database import Database, Tx
from app.store.notices import notify_settled
from app.store.pools import rows as pool_rows
from app.store.postgres_errors import overrun
from app.store.rows import ClaimRow

_RETRY_WINDOW_SECONDS = 15.0
_JOINS_AT_ONCE = 4
_TURN_SECONDS = 15.0
_DEFAULT_RETRY_AFTER = 30.0
_RETRY_AFTER_BOUNDS = (1.0, 300.0)
log = structlog.get_logger(__name__)

UntilDisconnected = Callable[[], Awaitable[None]]
"""Returns when the client of a request has disconnected."""


@dataclass(frozen=True, slots=True)
class StoredClaim:
    """A claim as its row says: after a wait, still pending (with an `estimate`), or `replayed` for its idempotency key."""

    claim: ClaimRow
    replayed: bool = False
    estimate: WaitEstimate | None = None


@dataclass(frozen=True, slots=True)
class ChosenPath:
    """How a claim that describes its VM is to be served: decided once, and carried from there to the claim's row.

    `stored` is the choice as the row keeps it. `template` and `spec` make the on-demand pool, where the choice needs one.
    """

    choice: Choice
    stored: StoredChoice
    template: VmTemplate
    spec: PoolSpec


@dataclass(frozen=True, slots=True)
class Place:
    """A claim's place in a queue. `claim_id` is another claim's where that one has the idempotency key.

    `expires_at`: until when the place is kept, where that is known. `answer`: the claim as it was written, for a request
    that does not wait.
    """

    claim_id: UUID
    keyed: bool
    pool_id: UUID | None = None
    expires_at: datetime | None = None
    answer: StoredClaim | None = None


class ClaimQueue:
    """Joining a queue, waiting in it, and leaving it. `on_joined` is called with each pool whose queue has grown, `on_abandoned`
    with each claim that nobody waits for and that could not be ended. `write_handover` writes what a claim hands over.

    A thousand clients may find a pool empty at the same moment, so what they all need is read once: the pool's status, and
    whether a VM became ready meanwhile. Only a few places are written at a time, so that claims of other pools get their turn.
    """

    def __init__(
        self,
        db: Database,
        waiters: Waiters,
        settings: Settings,
        on_joined: Callable[[UUID], None],
        on_abandoned: Callable[[UUID], None],
        write_handover: Callable[[Tx, NewClaim], Awaitable[None]],
    ) -> None:
        self._db = db
        self._write_handover = write_handover
        self._waiters = waiters
        self._on_joined = on_joined
        self._on_abandoned = on_abandoned
        self._pending_seconds = settings.pending_seconds
        self._max_pending = settings.max_pending_per_pool
        self._statuses: SingleFlight[str, PoolStatus] = SingleFlight(self._read_status)
        self._matches: SingleFlight[UUID, frozenset[UUID]] = SingleFlight(self._match)
        self._turn = asyncio.Semaphore(_JOINS_AT_ONCE)

    async def join(self, claim: NewClaim, until_disconnected: UntilDisconnected) -> StoredClaim:
        """Takes a place for a claim that found no warm VM, and waits. Raises NoWarmVm, PoolBeingDeleted, PoolNotFound."""
        async with self._in_turn(until_disconnected):
            status = await self._statuses.get(claim.request.pool)
            pool = status.pool
            if pool.deleting_at is not None:
                raise PoolBeingDeleted(f"pool {pool.name!r} is being deleted; claim from another pool")
            reason = await self._why_not_warm(status, claim.request)
            async with self._writing(claim) as tx:
                place = await self._write(tx, claim, pool.id, reason)
        return await self.follow(place, claim, until_disconnected)

    async def enter(self, chosen: ChosenPath, claim: NewClaim, until_disconnected: UntilDisconnected) -> Place:
        """Takes a place for a claim that describes its VM, on the chosen path.

        What was chosen is checked again in the same transaction: raises NoPath where it is not there any more or its queue is
        full, and NoWarmVm where the client has disconnected. Nothing is written then.
        """
        async with self._in_turn(until_disconnected), self._writing(claim) as tx:
            pool = await enter_pool(tx, chosen.choice, chosen.template, chosen.spec, max_pending=self._max_pending)
            claim = claim._replace(lease_seconds=min(claim.lease_seconds, pool.spec.max_lease_seconds))
            return await self._write(tx, claim, pool.id, chosen.choice.reason, chosen.stored)

    async def follow(self, place: Place, claim: NewClaim, until_disconnected: UntilDisconnected) -> StoredClaim:
        """What comes after the place was written: one more look for a ready VM, and the wait."""
        if place.pool_id is not None:
            self._on_joined(place.pool_id)
        if place.claim_id != claim.id:
            return await self.replay(place.claim_id, claim.request, until_disconnected)
        async with self.kept(place):
            # A VM may have become ready between the last look and this place. Whoever made it ready looks for waiting claims
            # after its commit, and we look for ready VMs after ours: at least one of the two sees both.
            bound = await self._look_again(place.pool_id) if place.pool_id is not None else frozenset()
            if place.answer is not None and place.claim_id not in bound:
                return await self._conclude(place.answer)
            return await self._wait(place, claim.request, until_disconnected)

    async def replay(self, claim_id: UUID, request: ClaimRequest, until_disconnected: UntilDisconnected) -> StoredClaim:
        """The claim that an idempotency key belongs to. Raises IdempotencyKeyReused where its request had another body."""
        async with self._db.begin() as tx:
            claim = await _get(tx, claim_id)
            _refuse_other_body(claim, request)
            if claim.state is not ClaimState.PENDING:
                return StoredClaim(claim, replayed=True)
            expires_at = await claims.keep_place(tx, claim_id, seconds=self._pending_seconds)
        place = Place(claim_id, keyed=True, expires_at=expires_at)
        async with self.kept(place):
            return await self._wait(place, request, until_disconnected, replayed=True)

    async def recall(self, claim_id: UUID, request: ClaimRequest) -> StoredClaim:
        """The same as it is now, without waiting."""
        async with self._db.begin() as tx:
            claim = await _get(tx, claim_id)
        _refuse_other_body(claim, request)
        return StoredClaim(claim, replayed=True)

    async def refuse_batch(self, pool_name: str, count: int, *, all_or_nothing: bool) -> NoWarmVm:
        """The refusal of a batch that got nothing. Raises PoolNotFound, PoolBeingDeleted."""
        status = await self._statuses.get(pool_name)
        if status.pool.deleting_at is not None:
            raise PoolBeingDeleted(f"pool {pool_name!r} is being deleted; claim from another pool")
        estimate = await self._estimate(status.pool.id)
        asked = f"{count} were asked for, all or nothing" if all_or_nothing else f"{count} were asked for"
        return NoWarmVm(
            f"pool {pool_name!r} has {status.counts.ready} ready VMs and {asked}; none was claimed",
            retry_after=_retry_after(estimate.seconds),
        )

    async def look(self, claim_id: UUID, seconds: float, until_disconnected: UntilDisconnected) -> StoredClaim:
        """The claim, after waiting up to `seconds` for it to leave `pending`. Raises ClaimNotFound."""
        found = await self._read(claim_id)
        if found.claim.state is not ClaimState.PENDING or seconds <= 0:
            return found
        settled, _ = await self._until_settled(claim_id, seconds, until_disconnected)
        return StoredClaim(settled) if settled is not None else await self._read(claim_id)

    @asynccontextmanager
    async def kept(self, place: Place) -> AsyncIterator[None]:
        """The steps of a claim that has, or may have, its place: where they are broken off the place is given up."""
        try:
            yield
        except (asyncio.CancelledError, DatabaseUnavailable):
            await asyncio.shield(self._leave(place))
            raise

    @asynccontextmanager
    async def _writing(self, claim: NewClaim) -> AsyncIterator[Tx]:
        """The transaction that writes the claim's place. Raises OutcomeUnknown where the commit may have been made."""
        with tell_of_claim(claim):
            async with self.kept(_unwritten(claim)), self._db.begin() as tx:
                yield tx

    @asynccontextmanager
    async def _in_turn(self, until_disconnected: UntilDisconnected) -> AsyncIterator[None]:
        """A turn to write a place. A client that disconnects before its turn gives it up: otherwise retries would queue behind
        requests that nobody waits for. Raises NoWarmVm, DatabaseUnavailable; nothing is written then.
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
                raise NoWarmVm("the client disconnected before the claim had a place in the queue", retry_after=1)
            acquired = True
        finally:
            if not acquired:
                acquiring.cancel()
                acquiring.add_done_callback(self._pass_turn_on)

    def _pass_turn_on(self, acquiring: "asyncio.Task[Literal[True]]") -> None:
        """The turn came just when it was no longer wanted."""
        if not acquiring.cancelled():
            self._turn.release()

    async def _write(
        self, tx: Tx, claim: NewClaim, pool_id: UUID, reason: str, choice: StoredChoice | None = None
    ) -> Place:
        request = claim.request
        claim_id = await claims.insert_pending(
            tx,
            claim_id=claim.id,
            pool_id=pool_id,
            key=request.key,
            request_hash=request.request_hash,
            labels=request.labels,
            lease_seconds=claim.lease_seconds,
            pending_seconds=self._pending_seconds,
            reason=reason,
            choice=choice,
        )
        keyed = request.key is not None
        if claim_id != claim.id:
            return Place(claim_id, keyed, pool_id)
        await self._write_handover(tx, claim)
        expires_at = None
        if keyed or choice is not None:
            expires_at = await claims.keep_place(tx, claim_id, seconds=self._pending_seconds)
        answer = await _read(tx, claim_id) if request.wait_seconds <= 0 else None
        return Place(claim_id, keyed, pool_id, expires_at, answer)

    async def _look_again(self, pool_id: UUID) -> frozenset[UUID]:
        """The claims that were bound by one more look, whosever they are."""
        try:
            return await self._matches.get_fresh(pool_id)
        except DatabaseUnavailable:
            log.info("claim.match_left_to_polling")  # the place is written; a reconciler binds it
            return frozenset()

    async def _read_status(self, name: str) -> PoolStatus:
        async with self._db.begin() as tx:
            pool = await pool_rows.get(tx, name)
            if pool is None:
                raise no_such_pool(name)
            return await read_status(tx, pool)

    async def _match(self, pool_id: UUID) -> frozenset[UUID]:
        async with self._db.begin() as tx:
            bound = await claims.bind_pending(tx, pool_id)
            await notify_settled(tx, bound)
        if bound:
            self._on_joined(pool_id)
        return frozenset(bound)

    async def _why_not_warm(self, status: PoolStatus, request: ClaimRequest) -> str:
        """The reason, in words. Raises NoWarmVm where no VM would come, or the queue is full."""
        pool, counts = status.pool, status.counts
        empty = f"pool {pool.name!r} has no ready VM ({counts.in_flight} on their way, {counts.claimed} claimed)"
        if counts.waiting >= self._max_pending:
            raise NoWarmVm(
                f"{empty}, and {counts.waiting} claims wait already, which is the limit",
                retry_after=_DEFAULT_RETRY_AFTER,
            )
        if counts.ready > counts.waiting:
            return f"all ready VMs of pool {pool.name!r} were being claimed by other requests"
        if counts.in_flight - (counts.planned if pool.paused else 0) > counts.waiting:
            return empty
        because = why_none_will_come(pool, counts.claimed, request.wait_seconds)
        if because is not None:
            estimate = await self._estimate(pool.id)
            raise NoWarmVm(f"{empty}, and {because}", retry_after=_retry_after(estimate.seconds))
        return empty

    async def _wait(
        self, place: Place, request: ClaimRequest, until_disconnected: UntilDisconnected, *, replayed: bool = False
    ) -> StoredClaim:
        settled, disconnected = None, False
        if request.wait_seconds > 0:
            settled, disconnected = await self._until_settled(place.claim_id, request.wait_seconds, until_disconnected)
        if disconnected:
            await self._leave(place)
        found = StoredClaim(settled) if settled is not None else await self._read(place.claim_id)
        return await self._conclude(found, replayed=replayed)

    async def _conclude(self, found: StoredClaim, *, replayed: bool = False) -> StoredClaim:
        """The answer to a claim that has waited as long as it may. Raises NoWarmVm, NoPath where it will get no VM."""
        claim, estimate = found.claim, found.estimate
        if claim.state in CLAIM_ENDED and claim.vm_id is None:
            refusal = NoPath if claim.allowed is not None else NoWarmVm
            raise refusal(f"the claim ended before it got a VM: {claim.reason}", retry_after=_DEFAULT_RETRY_AFTER)
        if estimate is not None and estimate.seconds is None and claim.allowed is None:
            await self._give_up(claim.id)
            raise NoWarmVm(
                f"{claim.reason}, and none comes by itself: {estimate.basis}", retry_after=_DEFAULT_RETRY_AFTER
            )
        return StoredClaim(claim, replayed, estimate)

    async def _until_settled(
        self, claim_id: UUID, seconds: float, until_disconnected: UntilDisconnected
    ) -> tuple[ClaimRow | None, bool]:
        """The claim once it is no longer pending (None: not in time), and whether its client disconnected before."""
        waiting = asyncio.create_task(self._waiters.wait(claim_id, seconds))
        try:
            done = await first_of(waiting, until_disconnected())
        finally:
            waiting.cancel()
        return (waiting.result(), False) if waiting in done else (None, True)

    async def _leave(self, place: Place) -> None:
        """With a key the place is kept for a short while, unless a retry, on any replica, has extended it since."""
        if not place.keyed:
            await self._give_up(place.claim_id)
            return
        try:
            async with self._db.begin() as tx:
                await claims.keep_place(tx, place.claim_id, seconds=_RETRY_WINDOW_SECONDS, expires_at=place.expires_at)
        except DatabaseUnavailable:
            log.info("claim.place_not_freed", claim=str(place.claim_id))  # it expires by itself

    async def _give_up(self, claim_id: UUID) -> None:
        why = "nobody waits for it any more"
        try:
            async with self._db.begin() as tx:
                await claims.end(tx, [claim_id], ClaimState.FAILED, sources=[ClaimState.PENDING], reason=why)
        except DatabaseUnavailable:
            self._on_abandoned(claim_id)

    async def _estimate(self, pool_id: UUID) -> WaitEstimate:
        async with self._db.begin() as tx:
            return await estimate_in_pool(tx, pool_id, None)

    async def _read(self, claim_id: UUID) -> StoredClaim:
        async with self._db.begin() as tx:
            return await _read(tx, claim_id)


async def _read(tx: Tx, claim_id: UUID) -> StoredClaim:
    """The claim; while it is pending, with an estimate. Raises ClaimNotFound."""
    claim = await _get(tx, claim_id)
    if claim.state is not ClaimState.PENDING:
        return StoredClaim(claim)
    (claim,) = await tell_why_pending(tx, [claim])
    return StoredClaim(claim, estimate=await estimate_in_pool(tx, claim.pool_id, claim_id))


async def _get(tx: Tx, claim_id: UUID) -> ClaimRow:
    claim = await claims.get(tx, claim_id)
    if claim is None:
        raise no_such_claim(claim_id)
    return claim


def _unwritten(claim: NewClaim) -> Place:
    return Place(claim.id, keyed=claim.request.key is not None)


def _refuse_other_body(claim: ClaimRow, request: ClaimRequest) -> None:
    if claim.request_hash != request.request_hash:
        raise IdempotencyKeyReused(
            f"this Idempotency-Key belongs to claim {claim.id}, which was made with another body; "
            "send the same body to get that claim, or a new key to make a new one"
        )


def _retry_after(seconds: float | None) -> float:
    low, high = _RETRY_AFTER_BOUNDS
    return _DEFAULT_RETRY_AFTER if seconds is None else min(high, max(low, seconds))
