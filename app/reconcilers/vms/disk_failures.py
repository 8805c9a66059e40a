"""Finds out why VMs wait for their disks. A VM itself shows only that it waits; the objects of its disks say why.

They are read a few seconds after a VM began to wait, at once if it reports a failure, and again as long as it waits. If they
cannot be read, the VM's own status is all that is told. One list is for many VMs, and lists keep a distance.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from uuid import UUID

import structlog

from app.compute.gateway import Gateway
from app.domain.observation import Failure, Observation
from app.errors import ClusterError, ClusterForbidden
from app.reconcilers.runtime.loop import FORBIDDEN_SECONDS, Wake
from app.reconcilers.vms.boot_times import AT_ONCE
from app.store.database import Database
from app.store.vms import observed

_KEPT = 5000
_PATIENCE_SECONDS = 5.0
_BINDING_SECONDS = 15.0
_UNBOUND = "WaitingForVolumeBinding"
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Waiting:
    """One VM that waits for its disks, with the status that it shows. Times are those of `clock`."""

    uid: str
    status: str
    since: float
    look_at: float


class DiskFailures:
    """`note` and `explain` are called by the status writer, in the same event loop; `note` wakes the loop by `wake`. Disks are listed
    every `every_seconds` at most.
    """

    def __init__(
        self,
        db: Database,
        gateway: Gateway,
        wake: Wake,
        *,
        every_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._gateway = gateway
        self._wake = wake
        self._every_seconds = every_seconds
        self._clock = clock
        self._list_at = -math.inf
        self._waiting: dict[UUID, _Waiting] = {}
        self._known: dict[str, Failure] = {}
        self._forbidden_until = -math.inf

    def note(self, vms: Mapping[UUID, Observation]) -> None:
        """What the cluster shows of VMs. Those beyond what can be kept are not looked at."""
        now = self._clock()
        for vm_id, obs in vms.items():
            if obs.disks is None or obs.deleting or now < self._forbidden_until:
                self._forget(vm_id)
                continue
            look_at = now if obs.failure is not None else now + _PATIENCE_SECONDS
            known = self._waiting.get(vm_id)
            if known is not None and known.uid == obs.uid:
                known.status, known.look_at = obs.disks, min(known.look_at, look_at)
            elif len(self._waiting) < _KEPT:
                self._waiting[vm_id] = _Waiting(obs.uid, obs.disks, now, look_at)
        if any(obs.disks is not None and obs.failure is not None for obs in vms.values()):
            self._wake()

    def explain(self, obs: Observation) -> Observation:
        """The observation with the failure of the VM's disks, if it is known, in place of the status that says that one failed."""
        failure = self._known.get(obs.uid)
        if failure is None or obs.disks is None or obs.failure is None or not obs.failure.transient:
            return obs
        return replace(obs, failure=failure)

    async def step(self) -> bool:
        """Looks at the disks of one batch if it is time. Raises ClusterUnavailable: they are looked at later."""
        now = self._clock()
        due = sorted((vm.look_at, vm_id) for vm_id, vm in self._waiting.items() if vm.look_at <= now)
        batch = {vm_id: self._waiting[vm_id] for _, vm_id in due[:AT_ONCE]}
        if not batch or now < self._list_at:
            return False
        self._list_at = now + self._every_seconds
        try:
            found = await self._gateway.disk_failures([vm.uid for vm in batch.values()])
        except ClusterForbidden as error:
            log.warning("disk_failures.forbidden", error=error.detail)
            self._forbidden_until = now + FORBIDDEN_SECONDS
            self._waiting.clear()
            return False
        except ClusterError as error:
            log.info("disk_failures.skipped", error=error.detail, vms=len(batch))
            found = {}
        healths: dict[UUID, str | None] = {}
        for vm_id, vm in batch.items():
            vm.look_at = now + _PATIENCE_SECONDS
            failure = found.get(vm.uid) or _unbound(vm, now)
            if failure is not None:
                self._known[vm.uid] = failure
                healths[vm_id] = f"{failure.reason}: {failure.message}"
            elif vm.uid in found:
                self._known.pop(vm.uid, None)
                healths[vm_id] = None
        async with self._db.begin() as tx:
            booting = await observed.write_health(tx, list(batch), healths)
        for vm_id in batch.keys() - booting:
            self._forget(vm_id)
        return False

    def _forget(self, vm_id: UUID) -> None:
        vm = self._waiting.pop(vm_id, None)
        if vm is not None:
            self._known.pop(vm.uid, None)


def _unbound(vm: _Waiting, now: float) -> Failure | None:
    """A PVC that is not bound for long, of a VM whose disks tell nothing of it."""
    if vm.status != _UNBOUND or now - vm.since < _BINDING_SECONDS:
        return None
    return Failure(_UNBOUND, "a PVC of the VM is not bound", transient=True)
