"""Memory of VMs that a cluster keeps beside their disks. KubeVirt (v1.9.0) keeps none; the dev cluster does. Pure.

Such a cluster serves the API group `GROUP`. A VirtualMachineSnapshot asks with an annotation, and annotations of the same object tell
what was kept, and later that it cannot be restored any more. A VirtualMachine names the snapshot in whose memory it begins.
"""

from typing import Final

from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.labels import MEMORY_GROUP
from app.compute.kubevirt.templates.identity import carries_identity
from app.compute.kubevirt.templates.start_sources import keeps_state
from app.domain.paths import FromSnapshot, Start
from app.domain.snapshots import KeptMemory

GROUP: Final = MEMORY_GROUP
KEEP: Final = f"{GROUP}/keep"
BYTES: Final = f"{GROUP}/bytes"
FINGERPRINT: Final = f"{GROUP}/fingerprint"
STALE: Final = f"{GROUP}/stale"
START_FROM: Final = f"{GROUP}/start-from"
MEMORY_REASONS: Final = frozenset({"MemorySnapshotNotFound", "MemoryFingerprintMismatch", "MemoryNotRestored"})
"""Why a VMI that was to begin in kept memory failed: reasons of its condition Synchronized."""
WHY_NONE: Final = "this cluster keeps no memory of VMs, as KubeVirt does not. Leave memory out: VMs then start from the disks of the snapshot, and boot"
_STATEFUL: Final = ("hostDevices", "gpus", "filesystems")
"""Devices whose state QEMU cannot save: what is passed through from the node, and virtiofs."""


def asking(metadata: Manifest) -> Manifest:
    """The metadata of a VirtualMachineSnapshot, which asks for the memory too."""
    return {**metadata, "annotations": {**(metadata.get("annotations") or {}), KEEP: "true"}}


def read_memory(snapshot: Manifest) -> KeptMemory | None:
    """What a VirtualMachineSnapshot keeps; None: no memory, or none yet."""
    told = snapshot["metadata"].get("annotations") or {}
    if FINGERPRINT not in told:
        return None
    size = str(told.get(BYTES, ""))
    return KeptMemory(int(size) if size.isdecimal() else 0, str(told[FINGERPRINT]), told.get(STALE))


def ask_for_memory(vm: Manifest, start: Start) -> Manifest:
    """The VirtualMachine, which asks for the memory that it starts from, if any."""
    if not isinstance(start, FromSnapshot) or start.memory is None:
        return vm
    metadata = vm["metadata"]
    annotations = {**(metadata.get("annotations") or {}), START_FROM: start.memory.snapshot}
    return {**vm, "metadata": {**metadata, "annotations": annotations}}


def unkept_devices(spec: Manifest) -> list[str]:
    """The devices of an expanded spec that stand in the way of keeping its memory, in words."""
    devices = (spec["template"]["spec"].get("domain") or {}).get("devices") or {}
    found = [f"{key} of the node cannot be saved" for key in _STATEFUL if devices.get(key)]
    found += [
        f"interface {each.get('name')} (SR-IOV) is a device of the node, which cannot be saved"
        for each in devices.get("interfaces") or []
        if "sriov" in each
    ]
    if keeps_state(spec):
        found.append("the state of a persistent TPM or EFI is on a disk of its own, which no other VM gets")
    if carries_identity(spec):
        found.append("its guest has a channel (guest.channel), and its memory the token of this one VM")
    return found
