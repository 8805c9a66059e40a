"""Requests that wait for a claim to leave `pending`, and how they learn of it.

A notice names the claims that are settled, and wakes the requests that wait for them. Once a second all are checked, so that
a lost notice costs one second at most. One query serves all waiting requests.
"""

import asyncio
import time
from collections import defaultdict
from uuid import UUID

from app.background import PartHealth
from app.concurrency import first_of
from app.domain.states import ClaimState
from app.store.claims import rows as claims
from app.store.claims.warm import WarmClaimStore
from app.store.database import Database
from app.store.rows import ClaimRow

_POLL_SECONDS = 1.0


class Waiters:
    """All waiting requests of one process. They are woken while `run` runs; once it has ended nobody waits."""

    def __init__(self, db: Database, store: WarmClaimStore) -> None:
        self.health = PartHealth("waiters")
        self._db = db
        self._store = store
        self._waiters: dict[UUID, set[asyncio.Future[ClaimRow | None]]] = defaultdict(set)
        self._closed = False
        self._named: set[UUID] = set()
        self._wake = asyncio.Event()

    def wake(self, payload: str = "") -> None:
        """Has the claims that a notice names checked at once, as far as anybody waits for them; without names, all of them."""
        if not self._waiters:
            return
        named = self._waiters if not payload else {UUID(name) for name in payload.split(",")} & self._waiters.keys()
        if named:
            self._named.update(named)
            self._wake.set()

    async def wait(self, claim_id: UUID, seconds: float) -> ClaimRow | None:
        """The claim as soon as it is no longer pending; None where it still was after `seconds`, or at the stop."""
        if self._closed:
            return None
        waiter: asyncio.Future[ClaimRow | None] = asyncio.get_running_loop().create_future()
        self._waiters[claim_id].add(waiter)
        self._named.add(claim_id)  # it may have been settled between its last read and now
        self._wake.set()
        try:
            return await asyncio.wait_for(waiter, seconds)
        except TimeoutError:
            return None
        finally:
            self._waiters[claim_id].discard(waiter)
            if not self._waiters[claim_id]:
                del self._waiters[claim_id]

    async def run(self, stop: asyncio.Event) -> None:
        """Wakes waiting requests until `stop`, and then ends their wait: the claims keep their places, and other replicas serve
        them. While the database is away it tries again.
        """
        looked_at_all = 0.0
        while not stop.is_set():
            with self.health.attempt():
                if time.monotonic() - looked_at_all >= _POLL_SECONDS:
                    looked_at_all = time.monotonic()
                    self._named.update(await self._find_settled())
                await self._tell(self._take_named())
            await first_of(stop.wait(), self._wake.wait(), timeout=_POLL_SECONDS)
        self._closed = True
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def _find_settled(self) -> list[UUID]:
        """The claims that somebody waits for and that are no longer pending: a thousand pending ones cost next to nothing."""
        if not self._waiters:
            return []
        async with self._db.once() as tx:
            return await claims.settled(tx, list(self._waiters))

    def _take_named(self) -> list[UUID]:
        self._wake.clear()
        named, self._named = self._named, set()
        return [claim_id for claim_id in named if claim_id in self._waiters]

    async def _tell(self, named: list[UUID]) -> None:
        if not named:
            return
        for claim in await self._store.read(named):
            if claim.state is not ClaimState.PENDING:
                for waiter in self._waiters.get(claim.id, ()):
                    if not waiter.done():
                        waiter.set_result(claim)
