"""Keeps the rows true to the cluster: one replica at a time watches, and writes down what it sees in batches.

Watch events are for speed. A whole list is the truth: it finds what a watch missed, VMs whose object has gone, and objects
that carry our label though no row knows them. Whoever holds the lease watches; where it dies another takes over once the
lease has run out. One that is only slow finds its lease taken before its next write, and stops.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog

from app.cluster.gateway import ClusterEvent, Gateway
from app.config import Settings
from app.errors import DatabaseUnavailable
from app.ids import new_id
from app.store import leases, watches
from app.store.database import Database, Tx
from app.telemetry import LOOP_ERRORS
from app.usecases.observing import Observing
from app.workers.backlog import Backlog, Batch
from app.workers.loop import rest

_RENEWALS = 4  # in one lease, at least: three may fail before another takes over
_RENEW_SECONDS = 3.0  # at most; so often standbys look whether the watch is free
_GATHER_SECONDS = 0.01
_HEARD_SECONDS = 2.0
log = structlog.get_logger(__name__)


class _Taken(Exception):
    """Another holds the watch."""


class Observe:
    """`run` is this replica's part: to watch while it holds the lease, and to stand by while it does not."""

    def __init__(self, db: Database, gateway: Gateway, settings: Settings, *, holder: str) -> None:
        self._db = db
        self._gateway = gateway
        self._observing = Observing(db, gateway, settings, fence=self._require_lease)
        self._holder = holder
        self._lease_seconds = settings.watch_lease_seconds
        self._renew_seconds = min(_RENEW_SECONDS, settings.watch_lease_seconds / _RENEWALS)
        self._token = new_id()
        self._heard_at = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                if await self._take():
                    await self._watch(stop)
            except DatabaseUnavailable as error:
                log.info("observe.waits", error=error.detail)
            except _Taken:
                log.info("observe.lease_lost", holder=self._holder)
            except Exception:
                # Whatever it was, a fresh list is the way to go on: one strange object must not end the other loops.
                LOOP_ERRORS.labels(loop="observe").inc()
                log.exception("observe.failed")
            await rest(self._renew_seconds, None, stop)
        await self.hand_back()

    async def hand_back(self) -> None:
        """Lets another replica take the watch over at once."""
        try:
            async with self._db.begin() as tx:
                await leases.give_back(tx, watches.VMS, token=self._token)
        except DatabaseUnavailable:
            log.info("observe.lease_left_to_run_out")

    async def _take(self) -> bool:
        async with self._db.begin() as tx:
            return await leases.take(
                tx, watches.VMS, holder=self._holder, token=self._token, seconds=self._lease_seconds
            )

    async def _require_lease(self, tx: Tx) -> None:
        if not await leases.holds(tx, watches.VMS, token=self._token):
            raise _Taken

    async def _watch(self, stop: asyncio.Event) -> None:
        """Watches until the stop, or until another holds the lease."""
        log.info("observe.watching", holder=self._holder)
        backlog = Backlog()
        async with aclosing(self._gateway.observe()) as source:
            reader = asyncio.create_task(_read(source, backlog), name="observe-reader")
            keeper = asyncio.create_task(self._keep(stop), name="observe-lease")
            try:
                while not (stop.is_set() or reader.done() or keeper.done()):
                    await _wait_for(backlog, keeper, reader)
                    await self._apply(backlog.take())
            finally:
                for task in (reader, keeper):
                    task.cancel()
                results = await asyncio.gather(reader, keeper, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        log.info("observe.stopped", holder=self._holder)

    async def _keep(self, stop: asyncio.Event) -> None:
        """Renews the lease until the stop; raises _Taken once another holds it."""
        while not stop.is_set():
            await rest(self._renew_seconds, None, stop)
            if not await self._take():
                raise _Taken

    async def _apply(self, batch: Batch) -> None:
        if batch.listed is not None:
            await self._observing.apply_list(batch.listed)
        await self._observing.apply_changes([change.observation for change in batch.changes])
        await self._observing.apply_gone(*batch.gone)
        if batch.broken is not None:
            async with self._db.begin() as tx:
                await watches.write_broken(tx, watches.VMS, holder=self._holder, reason=batch.broken.reason)
        elif batch.listed is not None or batch.changes or batch.gone:
            await self._write_heard(listed=batch.listed is not None)

    async def _write_heard(self, *, listed: bool) -> None:
        now = asyncio.get_running_loop().time()
        if listed or now - self._heard_at >= _HEARD_SECONDS:
            self._heard_at = now
            async with self._db.begin() as tx:
                await watches.write_heard(tx, watches.VMS, holder=self._holder, listed=listed)


async def _read(source: AsyncGenerator[ClusterEvent, None], backlog: Backlog) -> None:
    async for event in source:
        backlog.put(event)


async def _wait_for(backlog: Backlog, *ends: "asyncio.Task[None]") -> None:
    """Returns when there is something and what came with it, or when one of `ends` ended."""
    first = asyncio.ensure_future(backlog.wait())
    try:
        await asyncio.wait([first, *ends], return_when=asyncio.FIRST_COMPLETED)
    finally:
        first.cancel()
    await asyncio.sleep(_GATHER_SECONDS)
