"""All of a replica's background work: the one list of what runs, from the start of the replica to its drain."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import structlog

from app.background import PartHealth
from app.compute.capabilities import Capability
from app.compute.gateway import Gateway
from app.concurrency import first_of
from app.config import Settings
from app.errors import DatabaseUnavailable
from app.gate import Gate
from app.lifecycle.on_demand_pools import retire_idle_pools
from app.lifecycle.placement import Placing
from app.reconcilers.claims.failover import ClaimFailover
from app.reconcilers.claims.reaper import Reaper
from app.reconcilers.guests.identities import IdentitySweeper
from app.reconcilers.history.pruner import HistoryPruner
from app.reconcilers.installation.keeper import InstallationKeeper
from app.reconcilers.nodes.informer import NodeInformer
from app.reconcilers.pools.planner import PoolPlanner
from app.reconcilers.preloads.reconciler import PreloadReconciler
from app.reconcilers.runtime.loop import Wake, run_loop
from app.reconcilers.snapshots.reconciler import SnapshotReconciler
from app.reconcilers.snapshots.sweeper import SnapshotSweeper
from app.reconcilers.vm_pools.reconciler import VmPoolReconciler
from app.reconcilers.vms.boot_times import BootTimes
from app.reconcilers.vms.creator import VmCreator
from app.reconcilers.vms.disk_failures import DiskFailures
from app.reconcilers.vms.informer import VmInformer
from app.reconcilers.vms.labeler import ClaimLabeler
from app.reconcilers.vms.remover import VmRemover
from app.store.database import Database
from app.store.notices import Listener, Topic

_MINUTE = 60.0
_KEEP_SECONDS = 2.0
log = structlog.get_logger(__name__)


class Reconcilers:
    """`healths`: of each loop. All but the one that keeps the installation work only while the `gate` is open. `listener` must be running: without its notices the loops wake only at their intervals."""

    def __init__(
        self, db: Database, gateway: Gateway, listener: Listener, settings: Settings, *, gate: Gate | None = None
    ) -> None:
        holder = f"{socket.gethostname()}:{os.getpid()}"
        placing = Placing(gateway)
        disks_fail = Wake()
        self._db = db
        self._gateway = gateway
        self._listener = listener
        self._settings = settings
        self._gate = gate or Gate.opened()
        self._keeper = InstallationKeeper(db, gateway, settings, replica=holder)
        self._planner = PoolPlanner(db, every_seconds=settings.plan_seconds, placing=placing)
        self._creates = self._on(Topic.CREATE)
        self._creator = VmCreator(db, gateway, settings, self._creates)
        self._remover = VmRemover(db, gateway, settings)
        self._labeler = ClaimLabeler(db, gateway, settings)
        self._preloads = PreloadReconciler(db, gateway, settings)
        self._snapshots = SnapshotReconciler(db, gateway, settings)
        self._snapshot_sweeper = SnapshotSweeper(db, gateway, settings)
        self._vm_pools = VmPoolReconciler(db, gateway, settings)
        self._reaper = Reaper(db, settings)
        self._failover = ClaimFailover(db, gateway, settings)
        self._boot_times = BootTimes(db, gateway, every_seconds=settings.boot_lookup_seconds)
        self._disk_failures = DiskFailures(db, gateway, disks_fail, every_seconds=settings.boot_lookup_seconds)
        self._vms = VmInformer(
            db, gateway, settings, holder=holder, on_boot=self._boot_times.note, disk_failures=self._disk_failures
        )
        self._nodes = NodeInformer(db, gateway, settings, holder=holder)
        self.healths: list[PartHealth] = []
        keep_seconds = min(_KEEP_SECONDS, settings.installation_renew_seconds)
        self._keep = self._loop("installation", self._keeper.step, keep_seconds, self._on(Topic.INSTALLATION))
        self._loops = self._list_loops(disks_fail)

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop`, while the gate is open. A loop that dies ends all of them."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep(stop=stop), name="installation")
            tasks.create_task(self._work_while_open(stop), name="work")
        try:
            await self._keeper.release()
        except DatabaseUnavailable:
            log.info("reconcilers.leases_left_to_expire")
        log.info("reconcilers.stopped")

    async def _work_while_open(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await first_of(stop.wait(), self._gate.until_work())
            if stop.is_set():
                return
            halt = asyncio.Event()
            working = asyncio.create_task(self._work(halt), name="reconcilers")
            try:
                await first_of(working, stop.wait(), self._gate.until_no_work())
            finally:
                halt.set()
                await working

    async def _work(self, stop: asyncio.Event) -> None:
        """Works until `stop`, finishes the calls under way, and releases all other work."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, loop in self._loops.items():
                    tasks.create_task(loop(stop=stop), name=name)
                if await self._gateway.unavailable(Capability.WATCH_NODES) is None:
                    tasks.create_task(self._nodes.run(stop), name="nodes")
            await self._release()
        finally:
            self._creator.cancel()

    async def _release(self) -> None:
        for worker in (self._creator, self._remover, self._snapshots, self._preloads, self._vm_pools):
            try:
                await worker.release()
            except DatabaseUnavailable:
                log.info("reconcilers.leases_left_to_expire")
                break

    def _list_loops(self, disks_fail: Wake) -> dict[str, "_Run"]:
        s = self._settings
        preload_seconds = min(1.0, s.preload_poll_seconds)
        vm_pool_topics = (Topic.POOL, Topic.CREATE, Topic.REMOVE, Topic.CLAIMED)
        steps: list[tuple[str, _Step, float, Wake]] = [
            # name, step, seconds between two steps that find nothing to do, what wakes it sooner
            ("plan", self._planner.step, min(1.0, s.plan_seconds), self._on(Topic.PLAN)),
            ("create", self._creator.begin, 0.5, self._creates),
            ("remove", self._remover.step, 1.0, self._on(Topic.REMOVE)),
            ("label", self._labeler.step, 1.0, self._on(Topic.CLAIMED)),
            ("identity-sweep", IdentitySweeper(self._db, self._gateway).step, s.relist_seconds, Wake()),
            ("boot-times", self._boot_times.step, 1.0, Wake()),
            ("disk-failures", self._disk_failures.step, 1.0, disks_fail),
            ("vm-pools", self._vm_pools.step, 1.0, self._on(*vm_pool_topics)),
            ("vm-pool-sweep", self._vm_pools.sweep, s.relist_seconds, Wake()),
            ("preloads", self._preloads.step, preload_seconds, self._on(Topic.PRELOAD)),
            ("preload-sweep", self._preloads.sweep, s.preload_idle_seconds, Wake()),
            ("snapshots", self._snapshots.step, 1.0, self._on(Topic.SNAPSHOT)),
            ("snapshot-sweep", self._snapshot_sweeper.step, s.relist_seconds, Wake()),
            ("reap", self._reaper.step, s.reap_seconds, Wake()),
            ("failover", self._failover.step, s.reap_seconds, Wake()),
            ("prune", HistoryPruner(self._db, s).step, _MINUTE, Wake()),
            ("retire", partial(retire_idle_pools, self._db), _MINUTE, Wake()),
        ]
        loops = {name: self._loop(name, step, every, wake) for name, step, every, wake in steps}
        return {**loops, "vms": self._vms.run}

    def _loop(self, name: str, step: "_Step", every: float, wake: Wake) -> "_Run":
        health = PartHealth(name)
        self.healths.append(health)
        return partial(run_loop, health, step, every=every, wake=wake)

    def _on(self, *topics: Topic) -> Wake:
        wake = Wake()
        for topic in topics:
            self._listener.on(topic, wake)
        return wake


_Step = Callable[[], Awaitable[bool]]
_Run = Callable[..., Coroutine[Any, Any, None]]
"""Runs until its argument `stop` is set."""
