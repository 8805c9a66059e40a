"""Leader election: of all replicas exactly one does a certain job, while it holds the lease of that name.

    standby --acquired--> leader --lost, failed--> standby
                            `-----stopped: released

If the leader dies, another replica acquires the lease once it has expired. A leader that is only slow finds its lease acquired
by another before its next write, and becomes a standby.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from app.errors import DatabaseUnavailable
from app.ids import new_id
from app.reconcilers.runtime.loop import rest
from app.store import leases
from app.store.database import Database, Tx
from app.telemetry import LOOP_ERRORS

_RENEWALS = 4  # in one lease, at least: three may fail before another replica acquires it
_RENEW_SECONDS = 3.0  # at most; standbys try to acquire the lease as often
log = structlog.get_logger(__name__)


class LeadershipLost(Exception):
    """Another replica is the leader."""


class Leader:
    """`loop` names the job in logs and metrics, `lease` is the name of its lease, `holder` names this replica."""

    def __init__(self, db: Database, loop: str, lease: str, *, holder: str, lease_seconds: float) -> None:
        self.holder = holder
        self._db = db
        self._loop = loop
        self._lease = lease
        self._log = log.bind(lease=lease, holder=holder)
        self._lease_seconds = lease_seconds
        self._renew_seconds = min(_RENEW_SECONDS, lease_seconds / _RENEWALS)
        self._token = new_id()

    async def run(self, work: Callable[[asyncio.Event], Awaitable[None]], stop: asyncio.Event) -> None:
        """Calls `work` whenever this replica is the leader, until `stop`."""
        while not stop.is_set():
            try:
                if await self._acquire():
                    self._log.info("leader.elected")
                    await work(stop)
                    self._log.info("leader.done")
            except DatabaseUnavailable as error:
                self._log.info("leader.waits", error=error.detail)
            except LeadershipLost:
                self._log.info("leader.lost")
            except Exception:
                # Whatever it was: the work begins anew, and one strange object does not end the other loops.
                LOOP_ERRORS.labels(loop=self._loop).inc()
                log.exception("leader.failed", lease=self._lease, holder=self.holder)
            await rest(self._renew_seconds, None, stop)
        await self.release()

    async def renew(self, stop: asyncio.Event) -> None:
        """Renews the lease until `stop`. Raises LeadershipLost once another replica holds it."""
        while not stop.is_set():
            await rest(self._renew_seconds, None, stop)
            if not await self._acquire():
                raise LeadershipLost

    async def require(self, tx: Tx) -> None:
        """Raises LeadershipLost if another replica holds the lease. Otherwise none can acquire it until `tx` ends."""
        if not await leases.holds(tx, self._lease, token=self._token):
            raise LeadershipLost

    async def release(self) -> None:
        """Lets another replica become the leader at once."""
        try:
            async with self._db.begin() as tx:
                await leases.release(tx, self._lease, token=self._token)
        except DatabaseUnavailable:
            self._log.info("leader.lease_left_to_expire")

    async def _acquire(self) -> bool:
        async with self._db.begin() as tx:
            return await leases.acquire(
                tx, self._lease, holder=self.holder, token=self._token, seconds=self._lease_seconds
            )
