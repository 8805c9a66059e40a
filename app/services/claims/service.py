"""`POST /v1/claim`: a warm VM at once, else a place in the pool's queue, else a refusal that says when to come back.

Claiming never calls the cluster, and a warm claim writes one statement. What it costs to say no, or to wait, is paid only
by those who are not served at once (`queueing`).
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import structlog

from app.concurrency import first_of
from app.config import Settings
from app.errors import DatabaseUnavailable
from app.ids import new_id
from app.services.claims.batcher import Asker, ClaimBatcher
from app.services.claims.lifecycle import refuse_long_lease
from app.services.claims.preference import Preferences
from app.services.claims.queue import ClaimQueue, NewClaim, StoredClaim, UntilDisconnected
from app.services.claims.waiters import Waiters
from app.services.pools.service import no_such_pool
from app.services.single_flight import SingleFlight
from app.store.claims.warm import Bound, ClaimLane, ClaimRequest, Known, Outcome
from app.store.database import Database
from app.store.notices import Topic, notify
from app.store.pools import rows as pool_rows
from app.store.rows import PoolRow

_FACTS_SECONDS = 2.0
_SWEEP_SECONDS = 1.0
_TELL_SECONDS = 0.02
_BATCH_MARK = "\x1f"  # in no key that a client can send: a batch's keys are its own
log = structlog.get_logger(__name__)


class WarmClaim(NamedTuple):
    """Served at once: what the answer needs, with no further read. `shape` and `choice` are of a claim that describes its VM."""

    pool: str
    labels: dict[str, str]
    lease_seconds: int
    bound: Bound
    shape: str | None = None
    choice: dict[str, Any] | None = None


ClaimAnswer = WarmClaim | StoredClaim


@dataclass(frozen=True, slots=True)
class _PoolFacts:
    id: UUID
    default_lease_seconds: int
    max_lease_seconds: int
    good_until: float


class ClaimService:
    """One process's claims: a batcher a pool, and what is known of the pools.

    While `run` runs, hints are put right once a second and planners hear of claims at once; without it both come later.
    """

    def __init__(self, db: Database, lane: ClaimLane, room: Waiters, settings: Settings) -> None:
        self.queue = ClaimQueue(db, room, settings, self._note_change)
        self._db = db
        self._lane = lane
        self._preferences = Preferences(db)
        self._batchers: dict[UUID, ClaimBatcher] = {}
        self._facts: dict[str, _PoolFacts] = {}
        self._reading: SingleFlight[str, _PoolFacts] = SingleFlight(self._learn)
        self._claimed: set[UUID] = set()
        self._tell = asyncio.Event()

    async def claim(self, wish: NewClaim, until_disconnected: UntilDisconnected) -> ClaimAnswer:
        """Serves one wish; `until_disconnected` is only awaited while the claim waits.

        Raises PoolNotFound, PoolBeingDeleted, LeaseTooLong, IdempotencyKeyReused, NoWarmVm (with `retry_after`),
        DatabaseUnavailable.
        """
        facts, lease_seconds = await self._terms(wish)
        request = _request(wish, lease_seconds)
        outcome: Outcome = None
        if wish.prefer is not None:
            outcome = await self._preferences.claim(facts.id, request, wish.prefer)
            self._note_change(facts.id)
        if outcome is None:
            outcome = await self._batcher(facts.id).claim(request)
        return await self.conclude(wish, request, outcome, until_disconnected)

    def ask(self, wish: NewClaim, asker: Asker) -> bool:
        """The beginning of `claim`, up to the first outcome, which the asker hears; for the rest there is `conclude`.

        False where something has to be read first: nothing was asked then, and `claim` does it all. Raises LeaseTooLong.
        """
        facts = self._recall(wish.pool)
        if facts is None or wish.prefer is not None:
            return False
        self._batcher(facts.id).ask(_request(wish, _lease(wish, facts)), asker)
        return True

    async def conclude(
        self, wish: NewClaim, request: ClaimRequest, outcome: Outcome, until_disconnected: UntilDisconnected
    ) -> ClaimAnswer:
        """What `claim` does once it knows whether there is a warm VM; raises what it raises."""
        if isinstance(outcome, Bound):
            return WarmClaim(wish.pool, wish.labels, request.lease_seconds, outcome)
        if isinstance(outcome, Known):
            return await self.queue.replay(outcome.claim_id, wish, until_disconnected)
        # The pool may be another one of that name by now. The queue finds that one by its name; the claims after this one wait
        # for no read, as many would of a pool that is just empty.
        self._reading.begin(wish.pool)
        return await self.queue.join(wish, request, until_disconnected)

    async def claim_warm(self, wish: NewClaim) -> WarmClaim | Known | None:
        """A VM that is ready in the pool now, or nothing. Raises PoolNotFound, LeaseTooLong, DatabaseUnavailable."""
        facts, lease_seconds = await self._terms(wish)
        outcome = await self._batcher(facts.id).claim(_request(wish, lease_seconds))
        return WarmClaim(wish.pool, wish.labels, lease_seconds, outcome) if isinstance(outcome, Bound) else outcome

    async def claim_batch(self, wish: NewClaim, *, count: int, all_or_nothing: bool) -> list[ClaimAnswer]:
        """Up to `count` warm VMs, each its own claim, in one statement; none waits.

        With a key, a retry gets the claims of the first time, however many those were. Raises NoWarmVm where not one VM is
        ready (with `all_or_nothing`: fewer than asked for), and what `claim` raises.
        """
        facts, lease_seconds = await self._terms(wish)
        labels = orjson.dumps(wish.labels).decode()
        requests = [
            ClaimRequest(
                claim_id=new_id(),
                key=f"{wish.key}{_BATCH_MARK}{number}" if wish.key is not None else None,
                request_hash=wish.request_hash,
                lease_seconds=lease_seconds,
                labels=labels,
            )
            for number in range(count)
        ]
        # Whatever it takes it takes in one statement, so that its key has one answer on every replica: what lies at the hint
        # where that is enough, else what lies anywhere.
        outcomes = await self._lane.claim(facts.id, requests, batch=True, all_or_nothing=True)
        if not any(outcomes):
            outcomes = await self._lane.claim(
                facts.id, requests, from_start=True, batch=True, all_or_nothing=all_or_nothing
            )
        if any(isinstance(outcome, Bound) for outcome in outcomes):
            self._note_change(facts.id)
        answers: list[ClaimAnswer] = []
        for outcome in outcomes:
            if isinstance(outcome, Bound):
                answers.append(WarmClaim(wish.pool, wish.labels, lease_seconds, outcome))
            elif isinstance(outcome, Known):
                answers.append(await self.queue.recall(outcome.claim_id, wish))
        if not answers:
            if (await self._reading.get_fresh(wish.pool)).id != facts.id:  # another pool of that name by now
                return await self.claim_batch(wish, count=count, all_or_nothing=all_or_nothing)
            raise await self.queue.refuse_batch(wish.pool, count, all_or_nothing=all_or_nothing)
        return answers

    def forget_pools(self, payload: str = "") -> None:
        """What was known of the pool with that id, or without one of all, may have changed.

        The others stay known: one pool's edits would else have the next claims of all pools wait for a read.
        """
        for name in [name for name, facts in self._facts.items() if payload in {"", str(facts.id)}]:
            del self._facts[name]

    async def warm_up(self) -> None:
        """Reads the pools, finds where each one's queue begins, and has the statement planned: the first claim waits for nothing."""
        async with self._db.begin() as tx:
            pools = await pool_rows.page(tx, after="", limit=100_000)
        await self._lane.lower_hints([pool.id for pool in pools])
        await self._lane.warm_up()
        for pool in pools:
            self._note_facts(pool)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`: puts the hints right once a second, and tells planners of claims some 20 ms after them."""
        sweep_at = 0.0
        while not stop.is_set():
            try:
                await self._tell_planners()
                began = time.monotonic()
                if began >= sweep_at:
                    await self._lane.lower_hints()
                    self._drop_idle_batchers()
                    # Behind an old snapshot a sweep walks all that was ever claimed: it may have a twentieth of the time.
                    took = time.monotonic() - began
                    sweep_at = began + max(_SWEEP_SECONDS, 20 * took)
            except DatabaseUnavailable:
                log.debug("claim_desk.database_away")
            await self._rest(stop)

    async def _terms(self, wish: NewClaim) -> tuple[_PoolFacts, int]:
        """The pool, and the lease in seconds. Raises PoolNotFound, LeaseTooLong."""
        facts = self._recall(wish.pool)
        if facts is None:
            facts = await self._reading.get(wish.pool)
        return facts, _lease(wish, facts)

    def _recall(self, name: str) -> _PoolFacts | None:
        """What is known of the pool; read anew ahead of its end, so that a pool that is in use is never one to be read first."""
        facts = self._facts.get(name)
        left = facts.good_until - time.monotonic() if facts is not None else 0.0
        if left <= 0:
            return None
        if left < _FACTS_SECONDS / 2:
            self._reading.begin(name)
        return facts

    def _batcher(self, pool_id: UUID) -> ClaimBatcher:
        batcher = self._batchers.get(pool_id)
        if batcher is None:
            batcher = self._batchers[pool_id] = ClaimBatcher(self._lane, pool_id, self._note_change)
        return batcher

    async def _learn(self, name: str) -> _PoolFacts:
        async with self._db.begin() as tx:
            pool = await pool_rows.get(tx, name)
        if pool is None:
            self._facts.pop(name, None)
            raise no_such_pool(name)
        return self._note_facts(pool)

    def _note_facts(self, pool: PoolRow) -> _PoolFacts:
        good_until = time.monotonic() + _FACTS_SECONDS
        facts = _PoolFacts(pool.id, pool.spec.default_lease_seconds, pool.spec.max_lease_seconds, good_until)
        self._facts[pool.name] = facts
        return facts

    def _note_change(self, pool_id: UUID) -> None:
        self._claimed.add(pool_id)
        self._tell.set()

    async def _tell_planners(self) -> None:
        self._tell.clear()
        claimed, self._claimed = self._claimed, set()
        if not claimed:
            return
        try:
            async with self._db.begin() as tx:
                for pool_id in sorted(claimed):
                    await pool_rows.plan_soon(tx, pool_id)
                await notify(tx, Topic.CLAIMED)
        except DatabaseUnavailable:
            self._claimed |= claimed
            raise

    def _drop_idle_batchers(self) -> None:
        for pool_id in [pool_id for pool_id, batcher in self._batchers.items() if batcher.is_idle]:
            del self._batchers[pool_id]

    async def _rest(self, stop: asyncio.Event) -> None:
        await first_of(stop.wait(), self._tell.wait(), timeout=_SWEEP_SECONDS)
        if self._tell.is_set() and not stop.is_set():
            await asyncio.sleep(_TELL_SECONDS)  # one notice for all claims of this moment


def _lease(wish: NewClaim, facts: _PoolFacts) -> int:
    lease_seconds = wish.lease_seconds if wish.lease_seconds is not None else facts.default_lease_seconds
    refuse_long_lease(lease_seconds, facts.max_lease_seconds, wish.pool)
    return lease_seconds


def _request(wish: NewClaim, lease_seconds: int) -> ClaimRequest:
    labels = orjson.dumps(wish.labels).decode() if wish.labels else "{}"
    return ClaimRequest(new_id(), wish.key, wish.request_hash, lease_seconds, labels)
