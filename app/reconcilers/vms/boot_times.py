"""Reads from pods what only they know of a boot: when a node was found, and when the images were there.

Pods are read once for a batch of VMs, right after these became ready, and the stages of the VMs are written again. If pods
cannot be read, or the process dies before it has read them, those two stages stay unknown.
"""

import math
import time
from collections.abc import Callable, Mapping
from uuid import UUID

import structlog

from app.compute.gateway import Gateway
from app.domain.stages import BootMarks, measure_stages
from app.errors import ClusterError, ClusterForbidden
from app.reconcilers.runtime.loop import FORBIDDEN_SECONDS, Wake
from app.store.database import Database
from app.store.vms import observed

_AT_ONCE = 50
_KEPT = 5000
log = structlog.get_logger(__name__)


class BootTimes:
    """`note` is called for VMs that became ready, in the same event loop, and wakes the loop by `wake`."""

    def __init__(
        self, db: Database, gateway: Gateway, wake: Wake, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._db = db
        self._gateway = gateway
        self._wake = wake
        self._clock = clock
        self._booted: dict[UUID, BootMarks] = {}
        self._forbidden_until = -math.inf

    def note(self, booted: Mapping[UUID, BootMarks]) -> None:
        """VMs became ready. Those beyond what can be kept are dropped."""
        if self._clock() >= self._forbidden_until and len(self._booted) < _KEPT:
            self._booted.update(booted)
            self._wake()

    async def step(self) -> bool:
        """Reads one batch. True if there is more. Raises ClusterUnavailable: the batch is read again later."""
        batch = dict(list(self._booted.items())[:_AT_ONCE])
        if not batch:
            return False
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
        return bool(self._booted)
