"""Turns a VirtualMachine and its VirtualMachineInstance, as the cluster sends them, into an Observation. Pure.

The two objects come from separate watches, so one may be older than the other. If the VMI runs, a failed start that its VM still
reports is from an earlier attempt. Statuses and conditions are those of KubeVirt v1.9.0.
"""

import ipaddress
import re
import uuid
from collections.abc import Iterator
from datetime import datetime

from app.compute.kubevirt import labels
from app.compute.kubevirt.kinds import Manifest
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


def observe_vm(vm: Manifest, vmi: Manifest | None) -> Observation:
    """`vmi` may be any VMI with the VM's name; one that another VM owns is ignored.

    A VMI that is being deleted counts as none: its phase is None, and it is not ready.
    """
    metadata = vm.get("metadata") or {}
    uid = str(metadata.get("uid") or "")
    if vmi is not None and not _is_owned(vmi, uid):
        vmi = None
    vm_status = vm.get("status") or {}
    vmi_metadata = (vmi or {}).get("metadata") or {}
    vmi_status = (vmi or {}).get("status") or {}
    ending = bool(vmi_metadata.get("deletionTimestamp"))
    found_true = _true(vmi_status)
    true_of = {} if ending else found_true
    phase = None if ending else vmi_status.get("phase") or None
    deleting = bool(metadata.get("deletionTimestamp"))
    found_labels = metadata.get("labels") or {}
    return Observation(
        name=str(metadata.get("name") or ""),
        namespace=str(metadata.get("namespace") or ""),
        uid=uid,
        pool=found_labels.get(labels.POOL),
        vm_id=_read_id(found_labels.get(labels.VM_ID)),
        claim_id=_read_id(found_labels.get(labels.CLAIM)),
        created_at=read_time(metadata.get("creationTimestamp")),
        deleting=deleting,
        vmi_uid=vmi_metadata.get("uid"),
        phase=phase,
        ready="Ready" in true_of,
        agent_connected="AgentConnected" in true_of,
        paused="Paused" in true_of,
        node=vmi_status.get("nodeName"),
        addresses=tuple(_read_addresses(vmi_status)),
        failure=None if deleting or phase == "Running" else _find_failure(vm_status, {} if ending else vmi_status),
        phase_times=dict(_read_phase_times(vmi_status)),
        vmi_created_at=read_time(vmi_metadata.get("creationTimestamp")),
        agent_at=read_time(found_true.get("AgentConnected", {}).get("lastTransitionTime")),
        owner=_find_pool(metadata),
        pool_id=_read_id(found_labels.get(labels.POOL_ID)),
        revision=(metadata.get("annotations") or {}).get(labels.REVISION),
        disks=printable if (printable := vm_status.get("printableStatus")) in _WITHOUT_DISKS else None,
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


def trim(item: Manifest) -> Manifest:
    """Only what `observe_vm` reads of a VM or VMI, so that a cache of thousands does not hold their specs."""
    metadata, status = item.get("metadata") or {}, item.get("status") or {}
    kept = ("name", "namespace", "uid", "labels", "creationTimestamp", "deletionTimestamp", "ownerReferences")
    revision = (metadata.get("annotations") or {}).get(labels.REVISION)
    of_status = (
        "conditions",
        "interfaces",
        "nodeName",
        "phase",
        "phaseTransitionTimestamps",
        "printableStatus",
        "reason",
        "startFailure",
    )
    return {
        "metadata": {
            **{key: metadata[key] for key in kept if key in metadata},
            **({"annotations": {labels.REVISION: revision}} if revision is not None else {}),
        },
        "status": {key: status[key] for key in of_status if key in status},
    }


def _is_owned(vmi: Manifest, vm_uid: str) -> bool:
    owners = (vmi.get("metadata") or {}).get("ownerReferences") or []
    return any(owner.get("uid") == vm_uid for owner in owners if owner.get("controller"))


def _find_pool(metadata: Manifest) -> str | None:
    owners = metadata.get("ownerReferences") or []
    return next(
        (str(owner.get("uid")) for owner in owners if owner.get("controller") and owner.get("kind") == _POOL_KIND), None
    )


def conditions_of(status: Manifest) -> Iterator[tuple[str, Manifest]]:
    """The conditions of an object's status, by their type."""
    for condition in status.get("conditions") or []:
        yield str(condition.get("type")), condition


def _true(status: Manifest) -> dict[str, Manifest]:
    """The conditions that are true, by their type."""
    return {kind: condition for kind, condition in conditions_of(status) if condition.get("status") == "True"}


def _find_failure(vm_status: Manifest, vmi_status: Manifest) -> Failure | None:
    """The most serious failure that is reported: first those that do not go away by themselves."""
    return (
        _find_crash(vm_status, vmi_status)
        or _find_refused_start(vm_status, vmi_status)
        or _find_wait(vm_status, vmi_status)
    )


def _find_crash(vm_status: Manifest, vmi_status: Manifest) -> Failure | None:
    printable = vm_status.get("printableStatus")
    start_failure = vm_status.get("startFailure") or {}
    times = start_failure.get("consecutiveFailCount") or 0
    # The count stays while the next attempt starts, so it shows the failure even if the status itself was missed.
    if printable == "CrashLoopBackOff" or times:
        again = start_failure.get("retryAfterTimestamp")
        message = f"the VM stopped before its guest ran, {times or 1} time{'s' if times > 1 else ''} in a row"
        return Failure("CrashLoopBackOff", message + (f"; KubeVirt tries again at {again}" if again else ""))
    phase = vmi_status.get("phase")
    if phase in _ENDED_PHASES:
        reason = vmi_status.get("reason")
        return Failure(phase, f"the VM's instance ended in phase {phase}" + (f" ({reason})" if reason else ""))
    return None


def _find_refused_start(vm_status: Manifest, vmi_status: Manifest) -> Failure | None:
    """KubeVirt could not create the VMI (condition Failure of the VM) or its pod (condition Synchronized of the VMI)."""
    if failure := _true(vm_status).get("Failure"):
        return _find_disk_refusal(failure) or _failure_of(failure)
    for kind, condition in (*conditions_of(vmi_status), *conditions_of(vm_status)):
        if (
            kind == "Synchronized"
            and condition.get("status") == "False"
            and condition.get("reason") in _FINAL_SYNC_REASONS
        ):
            return _failure_of(condition)
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


def _find_wait(vm_status: Manifest, vmi_status: Manifest) -> Failure | None:
    """What KubeVirt is waiting for. `kubectl get vm` shows the printableStatus; a condition has the full message."""
    printable = vm_status.get("printableStatus")
    waiting = [
        condition
        for wanted in ("Synchronized", "PodScheduled")
        for kind, condition in (*conditions_of(vmi_status), *conditions_of(vm_status))
        if kind == wanted and condition.get("status") == "False"
    ]
    if waiting:
        first = _failure_of(waiting[0])
        reason = printable if printable in _TRANSIENT_STATUSES else first.reason
        return Failure(reason, first.message, transient=True)
    if printable in _TRANSIENT_STATUSES:
        return Failure(printable, f"the VM's status is {printable}", transient=True)
    return None


def _failure_of(condition: Manifest) -> Failure:
    reason = str(condition.get("reason") or condition.get("type"))
    return Failure(reason, str(condition.get("message") or reason))


def _read_addresses(vmi_status: Manifest) -> list[str]:
    """The addresses that a client can use, in the order of the interfaces. Agents also report link-local ones; they are left out."""
    found: dict[str, None] = {}
    for interface in vmi_status.get("interfaces") or []:
        for text in interface.get("ipAddresses") or [interface.get("ipAddress")]:
            try:
                address = ipaddress.ip_address(text or "")
            except ValueError:
                continue
            if not address.is_link_local and not address.is_loopback:
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


def read_time(value: object) -> datetime | None:
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return at if at is not None and at.tzinfo is not None else None
