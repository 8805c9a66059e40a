"""Memory that this cluster keeps of VMs beside their disks, which KubeVirt does not: how it is asked for, told and started from.

- A VirtualMachineSnapshot asks with the annotation `KEEP`. The cluster answers with `BYTES` and `FINGERPRINT` before the snapshot
  succeeds, and with `STALE` once the memory can no longer be restored.
- A VirtualMachine asks with `START_FROM` (the name of such a snapshot) to begin in that memory. Its first VMI that runs does, and the
  VM is marked with `STARTED`: later ones boot from the disks, which are no longer those of the memory.
- A VMI that is to be restored has `RESTORE` (the UID of the snapshot). One whose memory cannot be restored fails, and its
  condition Synchronized says why.
- Discovery serves the group `GROUP` where memory is kept.
"""

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.objects import annotations_of, status_of, with_annotations
from app.devcluster.apiserver.registry import VIRTUAL_MACHINE_INSTANCES, VM_SNAPSHOTS
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Store, Stored
from app.devcluster.guests.memory import GROUP, MISMATCH, NOT_FOUND, RESTORE, restored_from

VERSION = "v1"
KEEP = f"{GROUP}/keep"
BYTES = f"{GROUP}/bytes"
FINGERPRINT = f"{GROUP}/fingerprint"
STALE = f"{GROUP}/stale"
START_FROM = f"{GROUP}/start-from"
STARTED = f"{GROUP}/started"


def asks_for_memory(snapshot: Json) -> bool:
    return annotations_of(snapshot).get(KEEP) == "true"


def has_memory(snapshot: Json) -> bool:
    return FINGERPRINT in annotations_of(snapshot)


def ask_to_restore(store: Store, vm: Json, vmi: Json) -> Json:
    """A new VMI of the VM, which begins in the memory that the VM asks for unless an earlier one has."""
    given = annotations_of(vm)
    if START_FROM not in given or STARTED in given:
        return vmi
    snapshot = store.get(VM_SNAPSHOTS, vm["metadata"]["namespace"], given[START_FROM])
    return with_annotations(vmi, {RESTORE: snapshot.uid if snapshot is not None else ""})


def has_started(vm: Json, vmi: Stored | None) -> bool:
    """Whether the VM has to be marked because a VMI has begun in the memory that it asked for."""
    given = annotations_of(vm)
    if vmi is None or START_FROM not in given or STARTED in given:
        return False
    return any(each["phase"] == "Running" for each in status_of(vmi.obj).get("phaseTransitionTimestamps", ()))


def restore_problem(store: Store, vmi: Json, fingerprint: str | None = None) -> tuple[str, str] | None:
    """Why the memory that the VMI asks for cannot be restored, as reason and message; None: it may be tried.

    `fingerprint`: what the memory must have been kept with, if that is known beforehand.
    """
    handle = restored_from(vmi)
    found = store.by_uid(handle) if handle else None
    if found is None or found[1].deleting:
        return NOT_FOUND, "the VirtualMachineSnapshot whose memory it starts from does not exist any more"
    snapshot = found[1].obj
    name = snapshot["metadata"]["name"]
    if not has_memory(snapshot):
        return NOT_FOUND, f"VirtualMachineSnapshot {name} keeps no memory"
    if (stale := annotations_of(snapshot).get(STALE)) is not None:
        return MISMATCH, stale
    kept_with = annotations_of(snapshot)[FINGERPRINT]
    if fingerprint is not None and kept_with != fingerprint:
        return (
            MISMATCH,
            f"the memory of VirtualMachineSnapshot {name} was kept with {kept_with}, and this cluster has {fingerprint}",
        )
    return None


def mark_stale(api: Api, handle: str, message: str) -> None:
    """The memory of the snapshot with this UID can never be restored again."""
    found = api.store.by_uid(handle)
    if found is not None and STALE not in annotations_of(found[1].obj):
        api.modify(VM_SNAPSHOTS, found[1], lambda obj: with_annotations(obj, {STALE: message}))


def running_instance(store: Store, vm: Json) -> Stored | None:
    """The VMI whose memory can be kept; None where the VM does not run."""
    metadata = vm["metadata"]
    found = store.get(VIRTUAL_MACHINE_INSTANCES, metadata["namespace"], metadata["name"])
    return (
        found if found is not None and not found.deleting and status_of(found.obj).get("phase") == "Running" else None
    )
