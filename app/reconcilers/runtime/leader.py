"""A watch that exactly one replica does: it watches while it holds the watch's lease, and stands by while it does not.

Where it dies another takes over once the lease has run out. One that is only slow finds its lease taken before its next write,
and stops.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from app.errors import DatabaseUnavailable
from app.ids import new_id
from app.reconcilers.runtime.loop import rest
from app.store import leases
from app.store.database import Database, Tx
from app.telemetry import LOOP_ERRORS

_RENEWALS = 4  # in one lease, at least: three may fail before another takes over
_RENEW_SECONDS = 3.0  # at most; so often standbys look whether the watch is free
log = structlog.get_logger(__name__)


class LeadershipLost(Exception):
    """Another holds the watch."""


class Leader:
    """`loop` names it in logs and metrics, `watch` is the name of its row and of its lease."""

    def __init__(self, db: Database, loop: str, watch: str, *, holder: str, lease_seconds: float) -> None:
        self.holder = holder
        self._db = db
        self._loop = loop
        self._watch = watch
        self._log = log.bind(watch=watch, holder=holder)
        self._lease_seconds = lease_seconds
        self._renew_seconds = min(_RENEW_SECONDS, lease_seconds / _RENEWALS)
        self._token = new_id()

    async def run(self, work: Callable[[asyncio.Event], Awaitable[None]], stop: asyncio.Event) -> None:
        """Does `work` whenever the lease is ours, until `stop`."""
        while not stop.is_set():
            try:
                if await self._take():
                    self._log.info("watch.begun")
                    await work(stop)
                    self._log.info("watch.ended")
            except DatabaseUnavailable as error:
                self._log.info("watch.waits", error=error.detail)
            except LeadershipLost:
                self._log.info("watch.lease_lost")
            except Exception:
                # Whatever it was, a fresh list is the way to go on: one strange object must not end the other loops.
                LOOP_ERRORS.labels(loop=self._loop).inc()
                log.exception("watch.failed", watch=self._watch, holder=self.holder)
            await rest(self._renew_seconds, None, stop)
        await self.hand_back()

    async def hand_back(self) -> None:
        """Lets another replica take the watch over at once."""
        try:
            async with self._db.begin() as tx:
                await leases.give_back(tx, self._watch, token=self._token)
        except DatabaseUnavailable:
            self._log.info("watch.lease_left_to_run_out")

    async def require(self, tx: Tx) -> None:
        """Raises LeadershipLost where another holds the lease; else nobody else begins to until `tx` ends."""
        if not await leases.holds(tx, self._watch, token=self._token):
            raise LeadershipLost

    async def beside(
        self, work: Callable[..., Awaitable[None]], reader: Coroutine[Any, Any, None], stop: asyncio.Event
    ) -> None:
        """Calls `work(*ends)` again and again while `reader` runs and the lease is renewed; `ends` are the tasks that end it.

        Raises what the reader raised, and LeadershipLost.
        """
        tasks = [asyncio.create_task(reader, name=f"{self._loop}-reader")]
        tasks.append(asyncio.create_task(self._keep(stop), name=f"{self._loop}-lease"))
        try:
            while not (stop.is_set() or any(task.done() for task in tasks)):
                await work(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _take(self) -> bool:
        async with self._db.begin() as tx:
            return await leases.take(
                tx, self._watch, holder=self.holder, token=self._token, seconds=self._lease_seconds
            )

    async def _keep(self, stop: asyncio.Event) -> None:
        """Renews the lease until the stop; raises LeadershipLost once another holds it."""
        while not stop.is_set():
            await rest(self._renew_seconds, None, stop)
            if not await self._take():
                raise LeadershipLost
