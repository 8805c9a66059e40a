"""Turns a VirtualMachine and its VirtualMachineInstance, as the cluster sends them, into an Observation. Pure.

Each object is reduced on its own as soon as it arrives, to what is read of it and no more: the service keeps the reduced form of
thousands. The two come from separate watches, so one may be older than the other. If the VMI runs, a failed start that its VM
still reports is from an earlier attempt. Statuses and conditions are those of KubeVirt v1.9.0.
"""

import ipaddress
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache

from app.compute.kubevirt import labels
from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.memory import MEMORY_REASONS
from app.domain.observation import Failure, Observation, PodTimes

_ENDED_PHASES = ("Failed", "Succeeded")
# While a VM has one of these as its printableStatus, KubeVirt keeps trying and succeeds once the cause is gone.
_TRANSIENT_STATUSES = frozenset(
    {
        "ErrorUnschedulable",
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrorPvcNotFound",
        "ErrorDataVolumeNotFound",
        "DataVolumeError",
        "DataVolumeNotFound",
    }
)
_WITHOUT_DISKS = frozenset({"Provisioning", "WaitingForVolumeBinding", "DataVolumeError"})
"""While a VM has one of these as its printableStatus, it has no pod yet because of its disks."""
_POOL_KIND = "VirtualMachinePool"
_NO_DISKS = "Error encountered while creating DataVolumes: "
_NO_DATA_SOURCE = re.compile(r'datasources\.cdi\.kubevirt\.io "([^"]+)" not found')
_FINAL_SYNC_REASONS = frozenset({"FailedCreate"})
_NO_DOMAIN = "Synchronizing with the Domain failed."


@dataclass(frozen=True, slots=True)
class ReducedVm:
    """What is read of a VirtualMachine. For the fields that `Observation` has too, see there.

    `crash`, `refused`: failures that the VM itself reports and that do not go away by themselves. `unsynced`, `unscheduled`:
    what its conditions Synchronized and PodScheduled say if they are False.
    """

    name: str
    namespace: str
    uid: str
    pool: str | None
    vm_id: str | None
    claim_id: str | None
    created_at: datetime | None
    deleting: bool
    owner: str | None
    pool_id: str | None
    revision: str | None
    installation: str | None
    printable: str | None
    crash: Failure | None
    refused: Failure | None
    unsynced: Failure | None
    unscheduled: Failure | None


@dataclass(frozen=True, slots=True)
class ReducedVmi:
    """What is read of a VirtualMachineInstance. For the fields that `Observation` has too, see there.

    `owner`: the UID of its controller. `ending`: it is being deleted. `ended`: how it ended. `unsynced`, `unscheduled`: as of a VM.
    """

    name: str
    uid: str
    owner: str | None
    created_at: datetime | None
    ending: bool
    phase: str | None
    ready: bool
    agent_connected: bool
    paused: bool
    node: str | None
    addresses: tuple[str, ...]
    scheduled_at: datetime | None
    running_at: datetime | None
    agent_at: datetime | None
    ended: Failure | None
    unsynced: Failure | None
    unscheduled: Failure | None


def observe_vm(vm: Manifest, vmi: Manifest | None) -> Observation:
    """Both objects as the cluster sent them; see `observe`."""
    return observe(reduce_vm(vm), reduce_vmi(vmi) if vmi is not None else None)


def observe(vm: ReducedVm, vmi: ReducedVmi | None) -> Observation:
    """`vmi` may be any VMI with the VM's name; one that another VM owns is ignored.

    A VMI that is being deleted counts as none: its phase is None, and it is not ready.
    """
    if vmi is not None and vmi.owner != vm.uid:
        vmi = None
    running = vmi if vmi is not None and not vmi.ending else None
    phase = running.phase if running is not None else None
    return Observation(
        name=vm.name,
        namespace=vm.namespace,
        uid=vm.uid,
        pool=vm.pool,
        vm_id=vm.vm_id,
        claim_id=vm.claim_id,
        created_at=vm.created_at,
        deleting=vm.deleting,
        vmi_uid=vmi.uid if vmi is not None else None,
        phase=phase,
        ready=running is not None and running.ready,
        agent_connected=running is not None and running.agent_connected,
        paused=running is not None and running.paused,
        node=vmi.node if vmi is not None else None,
        addresses=vmi.addresses if vmi is not None else (),
        failure=None if vm.deleting or phase == "Running" else _find_failure(vm, running),
        scheduled_at=vmi.scheduled_at if vmi is not None else None,
        running_at=vmi.running_at if vmi is not None else None,
        vmi_created_at=vmi.created_at if vmi is not None else None,
        agent_at=vmi.agent_at if vmi is not None else None,
        owner=vm.owner,
        pool_id=vm.pool_id,
        revision=vm.revision,
        installation=vm.installation,
        disks=vm.printable if vm.printable in _WITHOUT_DISKS else None,
    )


def reduce_vm(vm: Manifest) -> ReducedVm:
    metadata, status = vm.get("metadata") or {}, vm.get("status") or {}
    found = metadata.get("labels") or {}
    failure = _true(status).get("Failure")
    return ReducedVm(
        name=_text(metadata.get("name")) or "",
        namespace=_word(metadata.get("namespace")) or "",
        uid=_text(metadata.get("uid")) or "",
        pool=_word(found.get(labels.POOL)),
        vm_id=_read_id(found.get(labels.VM_ID)),
        claim_id=_read_id(found.get(labels.CLAIM)),
        created_at=read_time(metadata.get("creationTimestamp")),
        deleting=bool(metadata.get("deletionTimestamp")),
        owner=find_owner(metadata),
        pool_id=_read_id(found.get(labels.POOL_ID)),
        revision=_word((metadata.get("annotations") or {}).get(labels.REVISION)),
        installation=_word(found.get(labels.INSTALLATION)),
        printable=_word(status.get("printableStatus")),
        crash=_find_crash(status),
        refused=(_find_disk_refusal(failure) or _failure_of(failure)) if failure is not None else None,
        unsynced=_find_false(status, "Synchronized"),
        unscheduled=_find_false(status, "PodScheduled"),
    )


def reduce_vmi(vmi: Manifest) -> ReducedVmi:
    metadata, status = vmi.get("metadata") or {}, vmi.get("status") or {}
    true = _true(status)
    times = dict(_read_phase_times(status))
    return ReducedVmi(
        name=_text(metadata.get("name")) or "",
        uid=_text(metadata.get("uid")) or "",
        owner=_find_controller(metadata),
        created_at=read_time(metadata.get("creationTimestamp")),
        ending=bool(metadata.get("deletionTimestamp")),
        phase=_word(status.get("phase")),
        ready="Ready" in true,
        agent_connected="AgentConnected" in true,
        paused="Paused" in true,
        node=_word(status.get("nodeName")),
        addresses=tuple(_read_addresses(status)),
        scheduled_at=times.get("Scheduled"),
        running_at=times.get("Running"),
        agent_at=read_time(true.get("AgentConnected", {}).get("lastTransitionTime")),
        ended=_find_end(status),
        unsynced=_find_false(status, "Synchronized"),
        unscheduled=_find_false(status, "PodScheduled"),
    )


def observe_pod(pod: Manifest) -> tuple[str | None, PodTimes]:
    """The `vm_id` in the labels of a virt-launcher pod, and the pod's times. KubeVirt v1.9.0 copies the VMI's labels to the pod."""
    status = pod.get("status") or {}
    scheduled = read_time(_true(status).get("PodScheduled", {}).get("lastTransitionTime"))
    started = [
        read_time(((container.get("state") or {}).get("running") or {}).get("startedAt"))
        for container in status.get("containerStatuses") or []
    ]
    known = [moment for moment in started if moment is not None]
    vm_id = _read_id(((pod.get("metadata") or {}).get("labels") or {}).get(labels.VM_ID))
    return vm_id, PodTimes(scheduled, max(known) if known and len(known) == len(started) else None)


def conditions_of(status: Manifest) -> Iterator[tuple[str, Manifest]]:
    """The conditions of an object's status, by their type."""
    for condition in status.get("conditions") or []:
        yield str(condition.get("type")), condition


def read_time(value: object) -> datetime | None:
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return at if at is not None and at.tzinfo is not None else None


def find_owner(metadata: Manifest) -> str | None:
    """The UID of the VirtualMachinePool that owns a VM."""
    return _find_controller(metadata, _POOL_KIND)


def _find_controller(metadata: Manifest, kind: str | None = None) -> str | None:
    """The UID of what controls the object, if that is of the `kind`."""
    for owner in metadata.get("ownerReferences") or []:
        if owner.get("controller") and kind in {None, owner.get("kind")}:
            return _text(owner.get("uid"))
    return None


def _true(status: Manifest) -> dict[str, Manifest]:
    """The conditions that are true, by their type."""
    return {kind: condition for kind, condition in conditions_of(status) if condition.get("status") == "True"}


def _find_false(status: Manifest, wanted: str) -> Failure | None:
    """What the condition says if it is False."""
    for kind, condition in conditions_of(status):
        if kind == wanted and condition.get("status") == "False":
            return _failure_of(condition)
    return None


def _find_failure(vm: ReducedVm, vmi: ReducedVmi | None) -> Failure | None:
    """The most serious failure that is reported: first those that do not go away by themselves."""
    return (
        _find_memory_refusal(vm, vmi)
        or _explain(vm.crash, vm, vmi)
        or _explain(vmi.ended if vmi is not None else None, vm, vmi)
        or _find_refused_start(vm, vmi)
        or _find_wait(vm, vmi)
    )


def _explain(end: Failure | None, vm: ReducedVm, vmi: ReducedVmi | None) -> Failure | None:
    """The end of a VM's instance, with the reason why its domain could not be started if that is told."""
    for unsynced in (vmi.unsynced if vmi is not None else None, vm.unsynced):
        if end is not None and unsynced is not None and unsynced.reason == _NO_DOMAIN:
            return replace(end, message=f"{end.message}: {unsynced.message}")
    return end


def _find_memory_refusal(vm: ReducedVm, vmi: ReducedVmi | None) -> Failure | None:
    """The memory that the VM starts from was not restored. The VM's other failures are only what follows from that."""
    for unsynced in (vmi.unsynced if vmi is not None else None, vm.unsynced):
        if unsynced is not None and unsynced.reason in MEMORY_REASONS:
            return unsynced
    return None


def _find_crash(status: Manifest) -> Failure | None:
    start_failure = status.get("startFailure") or {}
    times = start_failure.get("consecutiveFailCount") or 0
    # The count stays while the next attempt starts, so it shows the failure even if the status itself was missed.
    if status.get("printableStatus") != "CrashLoopBackOff" and not times:
        return None
    again = start_failure.get("retryAfterTimestamp")
    message = f"the VM stopped before its guest ran, {times or 1} time{'s' if times > 1 else ''} in a row"
    return Failure("CrashLoopBackOff", message + (f"; KubeVirt tries again at {again}" if again else ""))


def _find_end(status: Manifest) -> Failure | None:
    phase, reason = status.get("phase"), status.get("reason")
    if phase not in _ENDED_PHASES:
        return None
    return Failure(phase, f"the VM's instance ended in phase {phase}" + (f" ({reason})" if reason else ""))


def _find_refused_start(vm: ReducedVm, vmi: ReducedVmi | None) -> Failure | None:
    """KubeVirt could not create the VMI (condition Failure of the VM) or its pod (condition Synchronized of the VMI)."""
    if vm.refused is not None:
        return vm.refused
    for unsynced in (vmi.unsynced if vmi is not None else None, vm.unsynced):
        if unsynced is not None and unsynced.reason in _FINAL_SYNC_REASONS:
            return unsynced
    return None


def _find_disk_refusal(failure: Manifest) -> Failure | None:
    """KubeVirt cannot create the VM's DataVolumes. It keeps trying, and names a DataSource without its namespace."""
    message = str(failure.get("message") or "")
    if not message.startswith(_NO_DISKS):
        return None
    why = message.removeprefix(_NO_DISKS).removeprefix("unable to create DataVolume manifest: ")
    if missing := _NO_DATA_SOURCE.fullmatch(why):
        why = f"DataSource {missing[1]}, which a sourceRef of the VM names, does not exist; waiting for it to appear"
    elif why == "DataVolume sourceRef not supported":
        why = (
            "the DataSource that a sourceRef of the VM names has no PVC and no snapshot yet; waiting for it to have one"
        )
    return Failure("disk", why, transient=True)


def _find_wait(vm: ReducedVm, vmi: ReducedVmi | None) -> Failure | None:
    """What KubeVirt is waiting for. `kubectl get vm` shows the printableStatus; a condition has the full message."""
    unsynced, unscheduled = (vmi.unsynced, vmi.unscheduled) if vmi is not None else (None, None)
    waiting = unsynced or vm.unsynced or unscheduled or vm.unscheduled
    known = vm.printable if vm.printable in _TRANSIENT_STATUSES else None
    if waiting is not None:
        return Failure(known or waiting.reason, waiting.message, transient=True)
    return Failure(known, f"the VM's status is {known}", transient=True) if known is not None else None


def _failure_of(condition: Manifest) -> Failure:
    reason = str(condition.get("reason") or condition.get("type"))
    return Failure(_shared(reason), _shared(str(condition.get("message") or reason)))


def _read_addresses(vmi_status: Manifest) -> list[str]:
    """The addresses that a client can use, in the order of the interfaces.

    Agents also report link-local ones, and the guest's own loopback; they are left out. An interface of the spec, which has a name, may have
    a loopback address of this machine: a guest of the dev cluster has.
    """
    found: dict[str, None] = {}
    for interface in vmi_status.get("interfaces") or []:
        for text in interface.get("ipAddresses") or [interface.get("ipAddress")]:
            try:
                address = ipaddress.ip_address(text or "")
            except ValueError:
                continue
            if not address.is_link_local and (interface.get("name") or not address.is_loopback):
                found[str(address)] = None
    return list(found)


def _read_phase_times(vmi_status: Manifest) -> Iterator[tuple[str, datetime]]:
    for entry in vmi_status.get("phaseTransitionTimestamps") or []:
        at = read_time(entry.get("phaseTransitionTimestamp"))
        if at is not None and entry.get("phase"):
            yield entry["phase"], at


def _read_id(value: object) -> str | None:
    try:
        return str(uuid.UUID(value)) if isinstance(value, str) else None
    except ValueError:
        return None


def _text(value: object) -> str | None:
    """None for what is missing or empty."""
    return str(value) if value else None


def _word(value: object) -> str | None:
    """The same for a text that many objects have: it is kept once."""
    return _shared(str(value)) if value else None


@lru_cache(maxsize=4096)
def _shared(text: str) -> str:
    """Equal texts as one object. `sys.intern` would never forget one in Python 3.12."""
    return text
