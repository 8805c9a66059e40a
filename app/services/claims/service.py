"""`POST /v1/claim`: a warm VM at once, else a place in the pool's queue, else a refusal that says when to come back.

A claim never calls the cluster, and a warm one is one statement. Only claims that are not served at once pay for the reads
that explain why, and for their place in the queue (`queue`).
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from app.background import PartHealth
from app.concurrency import first_of
from app.config import Settings, read_keys
from app.domain.claims import ClaimRequest, KnownClaim, NewClaim, Outcome, WarmClaim
from app.domain.handovers import HandoverRequest
from app.domain.pools import PoolSpec
from app.errors import DatabaseUnavailable, NoWarmVm
from app.gate import Gate
from app.ids import new_id
from app.services.claims.abandoned import AbandonedClaims
from app.services.claims.batcher import ClaimBatcher, Recipient
from app.services.claims.handovers import HandoverClaims, refuse_without_channel
from app.services.claims.lifecycle import refuse_long_lease, tell_of_claim
from app.services.claims.preference import Preferences
from app.services.claims.queue import ClaimQueue, StoredClaim, UntilDisconnected
from app.services.claims.waiters import Waiters
from app.services.handovers.sealing import Sealer
from app.services.pools.service import no_such_pool
from app.services.single_flight import SingleFlight
from app.store.claims.warm import WarmClaimStore
from app.store.database import Database
from app.store.notices import Topic, notify
from app.store.pools import rows as pool_rows
from app.store.rows import PoolRow

_FACTS_SECONDS = 2.0
_SWEEP_SECONDS = 1.0
_CLAIMED_SECONDS = 60.0
_TELL_SECONDS = 0.02
_BATCH_MARK = "\x1f"  # in no key that a client can send, so that a batch's keys are its own
ClaimAnswer = WarmClaim | StoredClaim


@dataclass(frozen=True, slots=True)
class _PoolFacts:
    """What a claim has to know of its pool, read at most every two seconds."""

    id: UUID
    default_lease_seconds: int
    max_lease_seconds: int
    good_until: float
    has_channel: bool = False


class ClaimService:
    """One process's claims: a batcher for each pool, and cached facts of the pools.

    While `run` runs, hints are corrected once a second and planners are told of claims at once; without it both come later.
    """

    def __init__(
        self, db: Database, store: WarmClaimStore, waiters: Waiters, settings: Settings, *, gate: Gate | None = None
    ) -> None:
        self.gate = gate or Gate.opened()
        self._abandoned = AbandonedClaims(db)
        self.health = PartHealth("claims")
        self._db = db
        self._store = store
        self._preferences = Preferences(db)
        self.sealer = Sealer(read_keys(settings.handover_key) if settings.handover_key is not None else ())
        self.handovers = HandoverClaims(db, self.sealer)
        self.queue = ClaimQueue(db, waiters, settings, self._note_change, self._abandoned.add, self.handovers.write)
        self._batchers: dict[UUID, ClaimBatcher] = {}
        self._facts: dict[str, _PoolFacts] = {}
        self._reading: SingleFlight[str, _PoolFacts] = SingleFlight(self._read_facts)
        self._claimed: set[UUID] = set()
        self._claimed_at: dict[UUID, float] = {}
        self._sweep_all_at = 0.0
        self._tell = asyncio.Event()

    async def claim(self, request: ClaimRequest, until_disconnected: UntilDisconnected) -> ClaimAnswer:
        """Serves one request; `until_disconnected` is only awaited while the claim waits.

        Raises PoolNotFound, PoolBeingDeleted, LeaseTooLong, IdempotencyKeyReused, NoWarmVm (with `retry_after`),
        DatabaseUnavailable, InstallationWaits.
        """
        facts = await self._get_facts(request.pool)
        refuse_without_channel(request, has_channel=facts.has_channel)
        self.handovers.require(request)
        self.gate.require_claims()
        claim = _new(request, facts)
        outcome: Outcome = None
        if request.handover is not None:
            outcome = await self._claim_handed_over(facts.id, claim)
        else:
            if request.prefer is not None:
                with tell_of_claim(claim):
                    outcome = await self._preferences.claim(facts.id, claim, request.prefer)
                self._note_change(facts.id)
            if outcome is None:
                outcome = await self._take(facts.id, claim, until_disconnected)
        return await self.conclude(claim, outcome, until_disconnected)

    def submit(self, request: ClaimRequest, recipient: Recipient) -> bool:
        """The first part of `claim`, without waiting: the recipient gets the outcome, and `conclude` does the rest.

        False where something has to be read first: nothing was submitted, and `claim` does all of it. Raises LeaseTooLong.
        """
        facts = self._recall(request.pool)
        if facts is None or request.prefer is not None or request.handover is not None or self.gate.claims is not None:
            return False
        self._batcher(facts.id).submit(_new(request, facts), recipient)
        return True

    async def conclude(self, claim: NewClaim, outcome: Outcome, until_disconnected: UntilDisconnected) -> ClaimAnswer:
        """The second part of `claim`, once it is known whether there is a warm VM; raises what it raises."""
        if isinstance(outcome, WarmClaim):
            return outcome
        if isinstance(outcome, KnownClaim):
            return await self.queue.replay(outcome.claim_id, claim.request, until_disconnected)
        # Another pool may have the name by now. The queue finds the pool by its name, so this claim need not wait for the read.
        self._reading.begin(claim.request.pool)
        return await self.queue.join(claim, until_disconnected)

    async def claim_warm(self, pool: PoolRow, request: ClaimRequest, until_disconnected: UntilDisconnected) -> Outcome:
        """A VM that is ready in this pool now. Raises LeaseTooLong, DatabaseUnavailable."""
        claim = _new(request, pool.spec)
        if request.handover is not None:
            return await self._claim_handed_over(pool.id, claim)
        return await self._take(pool.id, claim, until_disconnected)

    async def _claim_handed_over(self, pool_id: UUID, claim: NewClaim) -> Outcome:
        with tell_of_claim(claim):
            outcome = await self.handovers.claim(pool_id, claim)
        self._note_change(pool_id)
        return outcome

    async def claim_batch(
        self,
        request: ClaimRequest,
        *,
        count: int,
        all_or_nothing: bool,
        handovers: Sequence[HandoverRequest | None] = (),
    ) -> list[ClaimAnswer]:
        """Up to `count` warm VMs, each its own claim, in one statement; none waits. `handovers`: what each hands over, if any does.

        With a key, a retry gets the claims of the first time, however many those were. Raises NoWarmVm where no VM is ready
        (with `all_or_nothing`: fewer than asked for), and what `claim` raises.
        """
        facts = await self._get_facts(request.pool)
        self.gate.require_claims()
        key = request.key
        new = [
            _new(request if key is None else request._replace(key=f"{key}{_BATCH_MARK}{number}"), facts)
            for number in range(count)
        ]
        if handovers:
            new = [
                each._replace(request=each.request._replace(handover=given))
                for each, given in zip(new, handovers, strict=True)
            ]
            for each in new:
                refuse_without_channel(each.request, has_channel=facts.has_channel)
                self.handovers.require(each.request)
        # One statement takes all, so that the key has one answer on every replica: from the hint on where that is enough, else
        # from the start of the queue.
        with tell_of_claim(new[0]):  # they are committed together
            if handovers:
                outcomes = await self.handovers.claim_all(facts.id, new, least=count if all_or_nothing else 1)
            else:
                outcomes = await self._store.claim(facts.id, new, batch=True, all_or_nothing=True)
            if not any(outcomes) and not handovers:
                outcomes = await self._store.claim(
                    facts.id, new, from_start=True, batch=True, all_or_nothing=all_or_nothing
                )
        if any(isinstance(outcome, WarmClaim) for outcome in outcomes):
            self._note_change(facts.id)
        answers: list[ClaimAnswer] = [
            outcome if isinstance(outcome, WarmClaim) else await self.queue.recall(outcome.claim_id, request)
            for outcome in outcomes
            if outcome is not None
        ]
        if not answers:
            if (await self._reading.get_fresh(request.pool)).id != facts.id:  # another pool has the name by now
                return await self.claim_batch(request, count=count, all_or_nothing=all_or_nothing, handovers=handovers)
            raise await self.queue.refuse_batch(request.pool, count, all_or_nothing=all_or_nothing)
        return answers

    def forget_pools(self, payload: str = "") -> None:
        """The pool with that id, or any pool without one, may have changed: its cached facts are dropped.

        The others stay: otherwise an edit of one pool would make the next claims of all pools wait for a read.
        """
        for name in [name for name, facts in self._facts.items() if payload in {"", str(facts.id)}]:
            del self._facts[name]

    async def warm_up(self) -> None:
        """Reads the pools, finds where each queue begins, and has the statement planned, so that the first claim is fast."""
        async with self._db.begin() as tx:
            pools = await pool_rows.page(tx, after="", limit=100_000)
        await self._store.lower_hints([pool.id for pool in pools])
        await self._store.warm_up()
        for pool in pools:
            self._note_facts(pool)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`: corrects the hints once a second, and tells planners of claims within some 20 ms."""
        sweep_at = 0.0
        while not stop.is_set():
            with self.health.attempt():
                await self._tell_planners()
                began = time.monotonic()
                if began >= sweep_at:
                    await self._store.lower_hints(self._pools_to_sweep(began))
                    await self._abandoned.end_some()
                    self._drop_idle_batchers()
                    # Behind an old snapshot a sweep reads all dead entries: it may use a twentieth of the time.
                    took = time.monotonic() - began
                    sweep_at = began + max(_SWEEP_SECONDS, 20 * took)
            await first_of(stop.wait(), self._tell.wait(), timeout=_SWEEP_SECONDS)
            if self._tell.is_set() and not stop.is_set():
                await asyncio.sleep(_TELL_SECONDS)  # one notice for all claims of this moment

    def _pools_to_sweep(self, now: float) -> list[UUID] | None:
        """Those of the last minute's claims: only claims raise a hint. None: all of them, once a minute."""
        if now >= self._sweep_all_at:
            self._sweep_all_at = now + _CLAIMED_SECONDS
            return None
        self._claimed_at = {pool: at for pool, at in self._claimed_at.items() if at > now - _CLAIMED_SECONDS}
        return list(self._claimed_at)

    async def _get_facts(self, pool: str) -> _PoolFacts:
        """Raises PoolNotFound."""
        return self._recall(pool) or await self._reading.get(pool)

    def _recall(self, name: str) -> _PoolFacts | None:
        """The cached facts. They are read again before they expire, so that claims of a busy pool never wait for a read."""
        facts = self._facts.get(name)
        left = facts.good_until - time.monotonic() if facts is not None else 0.0
        if left <= 0:
            return None
        if left < _FACTS_SECONDS / 2:
            self._reading.begin(name)
        return facts

    async def _take(self, pool_id: UUID, claim: NewClaim, until_disconnected: UntilDisconnected) -> Outcome:
        """A warm VM, for a client that is still there. Raises NoWarmVm where it has disconnected."""
        taking = asyncio.ensure_future(self._batcher(pool_id).claim(claim))
        try:
            done = await first_of(taking, until_disconnected())
        finally:
            taking.cancel()
        if taking not in done:
            raise NoWarmVm("the client disconnected before it was answered", retry_after=1)
        return taking.result()

    def _batcher(self, pool_id: UUID) -> ClaimBatcher:
        batcher = self._batchers.get(pool_id)
        if batcher is None:
            batcher = self._batchers[pool_id] = ClaimBatcher(
                self._store, pool_id, self._note_change, self._abandoned.add
            )
        return batcher

    async def _read_facts(self, name: str) -> _PoolFacts:
        async with self._db.begin() as tx:
            pool = await pool_rows.get(tx, name)
        if pool is None:
            self._facts.pop(name, None)
            raise no_such_pool(name)
        return self._note_facts(pool)

    def _note_facts(self, pool: PoolRow) -> _PoolFacts:
        good_until = time.monotonic() + _FACTS_SECONDS
        spec = pool.spec
        facts = _PoolFacts(
            pool.id, spec.default_lease_seconds, spec.max_lease_seconds, good_until, has_channel=spec.has_channel
        )
        self._facts[pool.name] = facts
        return facts

    def _note_change(self, pool_id: UUID) -> None:
        self._claimed.add(pool_id)
        self._claimed_at[pool_id] = time.monotonic()
        self._tell.set()

    async def _tell_planners(self) -> None:
        self._tell.clear()
        claimed, self._claimed = self._claimed, set()
        if not claimed:
            return
        try:
            async with self._db.begin() as tx:
                await pool_rows.plan_soon(tx, *sorted(claimed))
                await notify(tx, Topic.CLAIMED)
        except DatabaseUnavailable:
            self._claimed |= claimed
            raise

    def _drop_idle_batchers(self) -> None:
        for pool_id in [pool_id for pool_id, batcher in self._batchers.items() if batcher.is_idle]:
            del self._batchers[pool_id]


def _new(request: ClaimRequest, pool: _PoolFacts | PoolSpec) -> NewClaim:
    """Raises LeaseTooLong."""
    seconds = request.lease_seconds if request.lease_seconds is not None else pool.default_lease_seconds
    refuse_long_lease(seconds, pool.max_lease_seconds, request.pool)
    return NewClaim(new_id(), seconds, request)
