"""All of a replica's background work, from its start to its drain."""

import asyncio
import os
import socket
from collections.abc import Coroutine
from typing import Any

import structlog

from app.compute.capabilities import Capability
from app.compute.gateway import Gateway
from app.config import Settings
from app.errors import DatabaseUnavailable
from app.lifecycle.placement import Placing
from app.reconcilers.claims.failover import Reroute
from app.reconcilers.claims.reaper import Reap
from app.reconcilers.nodes.informer import WatchNodes
from app.reconcilers.pools.planner import Backfill
from app.reconcilers.preloads.reconciler import Preloads
from app.reconcilers.runtime.loop import Wake, run_loop
from app.reconcilers.snapshots.reconciler import Snapshots
from app.reconcilers.vm_pools.reconciler import Backings
from app.reconcilers.vms.boot_times import Measure
from app.reconcilers.vms.creator import Provision
from app.reconcilers.vms.informer import Observe
from app.reconcilers.vms.labeler import Labelling
from app.reconcilers.vms.remover import Removal
from app.store.database import Database
from app.store.notices import Listener, Topic

_CREATE_SECONDS = 0.5
_REMOVE_SECONDS = 1.0
_LABEL_SECONDS = 1.0
_MEASURE_SECONDS = 5.0
_PRELOAD_SECONDS = 1.0
_SNAPSHOT_SECONDS = 0.5
_BACKING_SECONDS = 1.0
log = structlog.get_logger(__name__)


class Workers:
    """Plan, create, remove, label, reap, observe VMs and nodes, take snapshots, keep VirtualMachinePools. `listener` must be running for wakes to be more than the intervals."""

    def __init__(self, db: Database, gateway: Gateway, listener: Listener, settings: Settings) -> None:
        self._settings = settings
        self._gateway = gateway
        placing = Placing(gateway)
        self._backfill = Backfill(db, every_seconds=settings.plan_seconds, placing=placing)
        self._provision = Provision(db, gateway, settings)
        self._removal = Removal(db, gateway, settings)
        self._labelling = Labelling(db, gateway, settings)
        self._preloads = Preloads(db, gateway, settings)
        self._reap = Reap(db, settings)
        self._reroute = Reroute(db, gateway, settings)
        holder = f"{socket.gethostname()}:{os.getpid()}"
        self._measure_wake = Wake()
        self._measure = Measure(db, gateway, self._measure_wake)
        self._observe = Observe(db, gateway, settings, holder=holder, on_boot=self._measure.note)
        self._nodes = WatchNodes(db, gateway, settings, holder=holder)
        self._snapshots = Snapshots(db, gateway, settings)
        self._plan_wake, self._create_wake, self._remove_wake, self._label_wake = Wake(), Wake(), Wake(), Wake()
        listener.on(Topic.PLAN, self._plan_wake)
        listener.on(Topic.CREATE, self._create_wake)
        listener.on(Topic.REMOVE, self._remove_wake)
        listener.on(Topic.CLAIMED, self._label_wake)
        self._preload_wake = Wake()
        listener.on(Topic.PRELOAD, self._preload_wake)
        self._backings = Backings(db, gateway, settings)
        self._backing_wake = Wake()
        for topic in (Topic.POOL, Topic.CREATE, Topic.REMOVE, Topic.CLAIMED):
            listener.on(topic, self._backing_wake)
        self._snapshot_wake = Wake()
        listener.on(Topic.SNAPSHOT, self._snapshot_wake)

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop`, finishes the calls under way, and hands the rest back. A loop that dies ends all of them."""
        async with asyncio.TaskGroup() as tasks:
            for name, work in self._loops(stop):
                tasks.create_task(work, name=name)
            if await self._gateway.unavailable(Capability.WATCH_NODES) is None:
                tasks.create_task(self._nodes.run(stop), name="nodes")
        for part in (self._provision, self._removal, self._snapshots, self._preloads, self._backings):
            try:
                await part.hand_back()
            except DatabaseUnavailable:
                log.info("workers.leases_left_to_run_out")
                break
        log.info("workers.stopped")

    def _loops(self, stop: asyncio.Event) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        s = self._settings
        return [
            ("plan", run_loop("plan", self._backfill.step, every=s.plan_seconds, wake=self._plan_wake, stop=stop)),
            (
                "create",
                run_loop("create", self._provision.step, every=_CREATE_SECONDS, wake=self._create_wake, stop=stop),
            ),
            (
                "remove",
                run_loop("remove", self._removal.step, every=_REMOVE_SECONDS, wake=self._remove_wake, stop=stop),
            ),
            ("label", run_loop("label", self._labelling.step, every=_LABEL_SECONDS, wake=self._label_wake, stop=stop)),
            (
                "backing",
                run_loop("backing", self._backings.step, every=_BACKING_SECONDS, wake=self._backing_wake, stop=stop),
            ),
            (
                "preload",
                run_loop(
                    "preload",
                    self._preloads.step,
                    every=min(_PRELOAD_SECONDS, s.preload_poll_seconds),
                    wake=self._preload_wake,
                    stop=stop,
                ),
            ),
            ("reap", run_loop("reap", self._reap.step, every=s.reap_seconds, wake=Wake(), stop=stop)),
            ("reroute", run_loop("reroute", self._reroute.step, every=s.reap_seconds, wake=Wake(), stop=stop)),
            (
                "measure",
                run_loop("measure", self._measure.step, every=_MEASURE_SECONDS, wake=self._measure_wake, stop=stop),
            ),
            ("observe", self._observe.run(stop)),
            (
                "snapshots",
                run_loop(
                    "snapshots", self._snapshots.step, every=_SNAPSHOT_SECONDS, wake=self._snapshot_wake, stop=stop
                ),
            ),
            (
                "snapshot-sweep",
                run_loop("snapshot-sweep", self._snapshots.sweep, every=s.relist_seconds, wake=Wake(), stop=stop),
            ),
        ]
