"""The state that a persistent TPM or EFI keeps between boots: a claim beside the disks, which the VM's spec does not name.

As in KubeVirt v1.9.0 (pkg/storage/backend-storage, pkg/storage/utils), with a KubeVirt that names no storage class for it. Changed
block tracking, which keeps its state there too, and migrations are not modelled.
"""

from datetime import datetime

from app.devcluster.apiserver.objects import labels_of, owned_by, owners_of, status_of
from app.devcluster.apiserver.registry import (
    CLAIMS,
    STORAGE_PROFILES,
    VIRTUAL_MACHINES,
    VM_SNAPSHOT_CONTENTS,
    VM_SNAPSHOTS,
)
from app.devcluster.apiserver.status import Json, cause
from app.devcluster.apiserver.store import Store, Stored
from app.devcluster.storage.driver import build_claim
from app.devcluster.storage.storage_classes import default_class

STATE = "persistent-state-for"
"""The label of the claim (its value is the name of the VM), and the beginning of its name and of its volume's."""
STATUS_NAME = f"{STATE}-this-vm"
"""The name of the claim's entry in the VMI's `volumeStatus`."""
_SIZE = "10Mi"
_MODE = "Filesystem"
_LONGEST_NAME = 63


def keeps_state(spec: Json) -> bool:
    """Whether a VMI of this spec has a persistent TPM (one that is enabled) or EFI."""
    domain = spec["domain"]
    tpm = (domain.get("devices") or {}).get("tpm") or {}
    efi = ((domain.get("firmware") or {}).get("bootloader") or {}).get("efi") or {}
    return bool((tpm.get("persistent") and tpm.get("enabled", True)) or efi.get("persistent"))


def state_claim_of(store: Store, namespace: str, vm_name: str) -> Stored | None:
    """The newest claim with the VM's state that is not being deleted."""
    found = [
        each
        for each in store.rows(CLAIMS, namespace)
        if labels_of(each.obj).get(STATE) == vm_name and not each.deleting
    ]
    return max(found, key=lambda each: each.obj["metadata"]["creationTimestamp"], default=None)


def state_volume_name(vm_name: str) -> str:
    """The name under which snapshots have the state. In one that is too long, the beginning or the name of the VM becomes a hash."""
    name = f"{STATE}-{vm_name}"
    if len(name) <= _LONGEST_NAME:
        return name
    room = _LONGEST_NAME - len(f"-{_hash(STATE)}-{vm_name}")
    return f"{STATE[:room]}-{_hash(STATE)}-{vm_name}" if room > 0 else f"{STATE}-{_hash(name)}"


def snapshotted_volumes(store: Store, vm: Json) -> list[Json]:
    """The volumes of the VM, and one with its state if it keeps any."""
    metadata, spec = vm["metadata"], vm["spec"]["template"]["spec"]
    volumes: list[Json] = list(spec.get("volumes") or ())
    if keeps_state(spec):
        claim = state_claim_of(store, metadata["namespace"], metadata["name"])
        if claim is not None:
            source = {"claimName": claim.key[1]}
            volumes.append({"name": state_volume_name(metadata["name"]), "persistentVolumeClaim": source})
    return volumes


def build_state_claim(store: Store, vmi: Json, suffix: str, now: datetime) -> Json | None:
    """The new claim, which goes with the owner of the VMI, or with a VMI that has none; None without a default storage class."""
    storage_class = default_class(store, for_machines=True)
    if not storage_class:
        return None
    name = vmi["metadata"]["name"]
    return build_claim(
        f"{STATE}-{name}-{suffix}",
        vmi,
        {
            "accessModes": [_access_mode(store, storage_class)],
            "resources": {"requests": {"storage": _SIZE}},
            "storageClassName": storage_class,
            "volumeMode": _MODE,
        },
        now,
        generateName=f"{STATE}-{name}-",
        labels={STATE: name, "cdi.kubevirt.io/applyStorageProfile": "true"},
        ownerReferences=owners_of(vmi) or owned_by(vmi),
    )


def check_restore(store: Store, restore: Json) -> list[Json]:
    """A snapshot with state is restored only into the VM that it was taken of."""
    namespace, spec = restore["metadata"]["namespace"], restore["spec"]
    snapshot = store.get(VM_SNAPSHOTS, namespace, spec["virtualMachineSnapshotName"])
    told = status_of(snapshot.obj) if snapshot else {}
    content = store.get(VM_SNAPSHOT_CONTENTS, namespace, told.get("virtualMachineSnapshotContentName", ""))
    target = store.get(VIRTUAL_MACHINES, namespace, spec["target"]["name"])
    if content is None or (target is not None and target.uid == told.get("sourceUID")):
        return []
    if not keeps_state(content.obj["spec"]["source"]["virtualMachine"]["spec"]["template"]["spec"]):
        return []
    why = "Restore to a different VM is not supported when snapshotted VM has backend storage (persistent TPM or EFI)"
    return [cause("FieldValueInvalid", why, "spec")]


def _hash(text: str) -> str:
    """FNV-1a of 32 bits, as eight hexadecimal digits."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 % 2**32
    return f"{value:08x}"


def _access_mode(store: Store, storage_class: str) -> str:
    """ReadWriteMany where the profile of the class has it for file systems."""
    profile = store.get(STORAGE_PROFILES, "", storage_class)
    offered = (status_of(profile.obj).get("claimPropertySets") or ()) if profile else ()
    modes = [mode for each in offered if each.get("volumeMode") == _MODE for mode in each.get("accessModes") or ()]
    return "ReadWriteMany" if "ReadWriteMany" in modes else "ReadWriteOnce"
