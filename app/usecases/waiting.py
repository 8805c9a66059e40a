"""Requests that wait for a claim to leave `pending`, and how they hear of it.

A notice that claims of a pool were bound wakes those that wait for it; once a second all of them look for themselves, so
that a lost notice costs a second and no more. One query serves every waiter of the process.
"""

import asyncio
from collections import defaultdict
from uuid import UUID

import structlog

from app.domain.states import ClaimState
from app.errors import DatabaseUnavailable
from app.store import claims
from app.store.database import Database
from app.store.rows import ClaimRow

_POLL_SECONDS = 1.0
log = structlog.get_logger(__name__)


class WaitingRoom:
    """All waiting requests of one process. `run` must be running for anybody to be woken; once it has ended nobody waits."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiters: dict[UUID, set[asyncio.Future[ClaimRow | None]]] = defaultdict(set)
        self._closed = False
        self._wake = asyncio.Event()

    def wake(self, _pool_id: str = "") -> None:
        """Looks at once instead of at the next poll."""
        if self._waiters:
            self._wake.set()

    async def wait(self, claim_id: UUID, seconds: float) -> ClaimRow | None:
        """The claim as soon as it is pending no more; None where it still was after `seconds`, or at the stop."""
        if self._closed:
            return None
        waiter: asyncio.Future[ClaimRow | None] = asyncio.get_running_loop().create_future()
        self._waiters[claim_id].add(waiter)
        self._wake.set()  # it may have been bound between its last read and now
        try:
            return await asyncio.wait_for(waiter, seconds)
        except TimeoutError:
            return None
        finally:
            self._waiters[claim_id].discard(waiter)
            if not self._waiters[claim_id]:
                del self._waiters[claim_id]

    async def run(self, stop: asyncio.Event) -> None:
        """Wakes waiters until `stop`, and lets them go then: the claims keep their places, other replicas can be asked.

        A database that is away is waited for.
        """
        while not stop.is_set():
            if self._waiters:
                try:
                    await self._look()
                except DatabaseUnavailable:
                    log.debug("waiting_room.database_away")
            await self._rest(stop)
        self._closed = True
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def _rest(self, stop: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(self._wake.wait())]
        try:
            await asyncio.wait(waits, timeout=_POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _look(self) -> None:
        self._wake.clear()
        async with self._db.begin() as tx:
            found = await claims.get_many(tx, list(self._waiters))
        for claim in found:
            if claim.state is not ClaimState.PENDING:
                for waiter in self._waiters.get(claim.id, ()):
                    if not waiter.done():
                        waiter.set_result(claim)
