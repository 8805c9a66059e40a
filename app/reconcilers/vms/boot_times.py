"""Reads from pods what only they know of a boot: when a node was found, and when the images were there.

Pods are read soon after VMs became ready, in one list for all that gathered meanwhile, and the stages of the VMs are written
again: lists that grow with boots would load an API server that is busy with those boots. If pods cannot be read, or the process
dies before it has read them, those two stages stay unknown.
"""

import math
import time
from collections.abc import Callable, Mapping
from uuid import UUID

import structlog

from app.compute.gateway import Gateway
from app.domain.stages import BootMarks, measure_stages
from app.errors import ClusterError, ClusterForbidden
from app.reconcilers.runtime.loop import FORBIDDEN_SECONDS
from app.store.database import Database
from app.store.vms import observed

AT_ONCE = 150  # ids in a selector: some proxies take no URL above 8 KiB
_KEPT = 5000
log = structlog.get_logger(__name__)


class BootTimes:
    """`note` is called for VMs that became ready, in the same event loop. Pods are listed every `every_seconds` at most."""

    def __init__(
        self, db: Database, gateway: Gateway, *, every_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._db = db
        self._gateway = gateway
        self._every_seconds = every_seconds
        self._clock = clock
        self._booted: dict[UUID, BootMarks] = {}
        self._list_at = -math.inf
        self._forbidden_until = -math.inf

    def note(self, booted: Mapping[UUID, BootMarks]) -> None:
        """VMs became ready. Those beyond what can be kept are dropped."""
        if self._clock() >= self._forbidden_until and len(self._booted) < _KEPT:
            self._booted.update(booted)

    async def step(self) -> bool:
        """Reads what has gathered if it is time. Raises ClusterUnavailable: the same is read again later."""
        batch = dict(list(self._booted.items())[:AT_ONCE])
        if not batch or self._clock() < self._list_at:
            return False
        self._list_at = self._clock() + self._every_seconds
        try:
            pods = await self._gateway.pod_times([str(vm_id) for vm_id in batch])
        except ClusterForbidden as error:
            log.warning("boot_times.forbidden", error=error.detail, unknown=["schedule", "image"])
            self._forbidden_until = self._clock() + FORBIDDEN_SECONDS
            self._booted.clear()
            return False
        except ClusterError as error:
            log.info("boot_times.skipped", error=error.detail, vms=len(batch))
            pods = {}
        stages = {
            vm_id: measure_stages(marks, pods[str(vm_id)]) for vm_id, marks in batch.items() if str(vm_id) in pods
        }
        async with self._db.begin() as tx:
            await observed.write_stages(tx, stages)
        for vm_id in batch:
            self._booted.pop(vm_id, None)
        return False
