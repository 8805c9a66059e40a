"""Reads from DataVolumes why the disks of VMs are not made: a VM itself only shows that it waits for them. Pure.

Phases, conditions and reasons are those of CDI v1.66.0, labels those of KubeVirt v1.9.0.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.vms.observations import conditions_of, read_time
from app.domain.observation import Failure

CREATED_BY = "kubevirt.io/created-by"
"""On a DataVolume that was made from a VM's template: the UID of the VM."""
_CLONED = ("pvc", "snapshot")
_NO_NEWS = frozenset({"", "Completed"})
_UNBOUND = frozenset({"Pending", "NotFound"})
_AFTER_THE_POD = frozenset({"WaitForFirstConsumer", "PendingPopulation"})
_BINDING_TIME = timedelta(seconds=15)


def disks_of_vms(volumes: Iterable[Manifest], now: datetime) -> dict[str, Failure | None]:
    """See `Gateway.disk_failures`. Of several disks of a VM, one that fails counts."""
    found: dict[str, Failure | None] = {}
    silent: set[str] = set()
    for volume in volumes:
        vm_uid = str(((volume.get("metadata") or {}).get("labels") or {}).get(CREATED_BY))
        failure = find_failure(volume, now)
        if failure is None and _is_tried_again(volume):
            silent.add(vm_uid)
        found[vm_uid] = found.get(vm_uid) or failure
    return {vm_uid: failure for vm_uid, failure in found.items() if failure is not None or vm_uid not in silent}


def find_failure(volume: Manifest, now: datetime) -> Failure | None:
    """What keeps a DataVolume from being filled. None: nothing that it tells; it may only take its time."""
    status = volume.get("status") or {}
    told = dict(conditions_of(status))
    running, bound = told.get("Running") or {}, told.get("Bound") or {}
    if status.get("phase") == "Succeeded":
        return None
    if running.get("status") == "False" and str(running.get("reason") or "") not in _NO_NEWS:
        return _failure(_work(volume), running)
    if status.get("phase") == "Failed":
        return Failure(_work(volume), "it failed", transient=True)
    if bound.get("status") != "True" and bound.get("reason") and not _may_bind(bound, status.get("phase"), now):
        return _failure("disk", bound)
    return None


def _is_tried_again(volume: Manifest) -> bool:
    """Whether an import failed before and runs again. It then tells nothing of its failure."""
    status = volume.get("status") or {}
    return bool(status.get("restartCount")) and status.get("phase") != "Succeeded"


def _work(volume: Manifest) -> str:
    source = (volume.get("spec") or {}).get("source") or {}
    return "clone" if any(source.get(kind) for kind in _CLONED) else "import"


def _failure(work: str, condition: Manifest) -> Failure:
    return Failure(work, str(condition.get("message") or condition["reason"]), transient=True)


def _may_bind(bound: Manifest, phase: object, now: datetime) -> bool:
    """Whether a PVC that is missing or not bound may only take its time. One that is bound with its pod waits for that."""
    if bound["reason"] not in _UNBOUND:
        return False
    since = read_time(bound.get("lastTransitionTime"))
    return phase in _AFTER_THE_POD or since is None or now - since < _BINDING_TIME
