"""Keeps the rows true to the cluster: one replica at a time watches, and writes down what it sees in batches.

Watch events are for speed. A whole list is the truth: it finds what a watch missed, VMs whose object has gone, and objects
that carry our label though no row knows them. Whoever holds the lease watches; where it dies another takes over once the
lease has run out. One that is only slow finds its lease taken before its next write, and stops.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from app.compute.gateway import Gateway
from app.compute.vms import ClusterEvent
from app.concurrency import first_of
from app.config import Settings
from app.reconcilers.runtime.backlog import Backlog, Batch
from app.reconcilers.runtime.leader import Leader
from app.reconcilers.vms.status_writer import Observing, OnBoot
from app.store import watch_state as watches
from app.store.database import Database

_GATHER_SECONDS = 0.01
_HEARD_SECONDS = 2.0


class Observe:
    """`run` is this replica's part: to watch while it holds the lease, and to stand by while it does not."""

    def __init__(
        self, db: Database, gateway: Gateway, settings: Settings, *, holder: str, on_boot: OnBoot | None = None
    ) -> None:
        self._db = db
        self._gateway = gateway
        self._duty = Leader(db, "observe", watches.VMS, holder=holder, lease_seconds=settings.watch_lease_seconds)
        self._observing = Observing(db, gateway, settings, fence=self._duty.require, on_boot=on_boot)
        self._holder = holder
        self._heard_at = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        await self._duty.run(self._watch, stop)

    async def hand_back(self) -> None:
        """Lets another replica take the watch over at once."""
        await self._duty.hand_back()

    async def _watch(self, stop: asyncio.Event) -> None:
        """Watches until the stop, or until another holds the lease."""
        backlog = Backlog()
        async with aclosing(self._gateway.observe()) as source:

            async def write(*ends: "asyncio.Task[None]") -> None:
                await _wait_for(backlog, *ends)
                await self._apply(backlog.take())

            await self._duty.beside(write, _read(source, backlog), stop)

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
    await first_of(backlog.wait(), *ends)
    await asyncio.sleep(_GATHER_SECONDS)
