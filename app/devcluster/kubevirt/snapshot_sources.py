"""The sources of a VirtualMachineSnapshot: which volumes are included, whether the VM can be locked, and the content.

As in KubeVirt v1.9.0 (pkg/storage/snapshot: snapshot.go, source.go).
"""

from datetime import datetime

from app.devcluster.apiserver.conditions import find, holds
from app.devcluster.apiserver.objects import new_object, owned_by, status_of
from app.devcluster.apiserver.registry import (
    CLAIMS,
    DATA_VOLUMES,
    VIRTUAL_MACHINE_INSTANCES,
    VM_SNAPSHOT_CONTENTS,
    VOLUME_SNAPSHOTS,
)
from app.devcluster.apiserver.status import ApiError, Json
from app.devcluster.apiserver.store import Store
from app.devcluster.kubevirt.state_volumes import snapshotted_volumes
from app.devcluster.storage.storage_classes import snapshot_class_of
from app.devcluster.storage.volumes import claim_of, claims_of, is_bound, is_populated, pods_using

CONTENT_PROTECTION = "snapshot.kubevirt.io/vmsnapshotcontent-protection"
PARTIAL = "PartialSnapshot"
_TOLD = {
    "GuestAgent": "Guest agent was active and attempted to quiesce the filesystem for application consistency.",
    "NoGuestAgent": "Guest agent was not available. Snapshot is crash-consistent and may not be application-consistent.",
    "Online": "Snapshot taken while the VM was running. Consistency depends on guest-agent quiescing.",
    "Paused": "Snapshot taken while the VM was paused. Snapshot is crash-consistent and may not be application-consistent.",
    PARTIAL: (
        "Not all snapshotable volumes were included in the snapshot. Check status.snapshotVolumes for excluded volumes "
        "and VM VolumeSnapshotStatus for details."
    ),
}


def volumes_of(vm: Json) -> list[Json]:
    volumes: list[Json] = vm["spec"]["template"]["spec"].get("volumes") or []
    return volumes


def volume_status(store: Store, namespace: str, volume: Json) -> Json:
    """The entry in the VM's status that says whether a volume can be snapshotted, with KubeVirt's reason where not."""
    name = volume["name"]
    claim_name = claim_of(volume)
    if not claim_name:
        return _disabled(name, f"Snapshot is not supported for this volumeSource type [{name}]")
    storage_class = _storage_class(store, namespace, volume)
    if storage_class is None:
        return _disabled(name, "PVC not found")
    try:
        chosen = snapshot_class_of(store, storage_class)
    except ApiError as error:
        return _disabled(name, error.message)
    if not chosen:
        told = "No VolumeSnapshotClass: Volume snapshots are not configured for this StorageClass"
        return _disabled(name, f"{told} [{storage_class}] [{name}]")
    return {"enabled": True, "name": name}


def lock_problem(store: Store, vm: Json, snapshot_name: str) -> str:
    """Why the VM cannot be locked for a snapshot, as in the condition; empty where it can."""
    namespace, name = vm["metadata"]["namespace"], vm["metadata"]["name"]
    claims = claims_of({"volumes": snapshotted_volumes(store, vm)})
    for claim_name in claims:
        problem = _claim_problem(store, namespace, claim_name)
        if problem:
            return f"source {namespace}/{name} {problem}: {claim_name}"
    if store.get(VIRTUAL_MACHINE_INSTANCES, namespace, name) is None:
        using = len(pods_using(store, namespace, claims))
        if using:
            return f"source is offline but {using} pods using PVCs [{' '.join(claims)}]"
    other = status_of(vm).get("snapshotInProgress")
    return f'snapshot "{other}" in progress' if other and other != snapshot_name else ""


def indications(store: Store, vm: Json) -> Json:
    """The indications of a snapshot of a running VM; empty for a VM that does not run."""
    metadata = vm["metadata"]
    vmi = store.get(VIRTUAL_MACHINE_INSTANCES, metadata["namespace"], metadata["name"])
    if vmi is None:
        return {}
    conditions = vmi.obj["status"].get("conditions")
    if holds(conditions, "Paused"):
        return indication_facts(["Online", "Paused"])
    return indication_facts(["NoGuestAgent" if find(conditions, "AgentConnected") is None else "GuestAgent", "Online"])


def indication_facts(names: list[str]) -> Json:
    names = sorted(names)
    return {
        "indications": names,
        "sourceIndications": [{"indication": name, "message": _TOLD[name]} for name in names],
    }


def build_content(store: Store, name: str, snapshot: Json, vm: Json, left_out: set[str], now: datetime) -> Json:
    """The VirtualMachineSnapshotContent with the present VM and claims; the volumes named in `left_out` are not included."""
    namespace = vm["metadata"]["namespace"]
    backups = []
    for volume in snapshotted_volumes(store, vm):
        claim = store.get(CLAIMS, namespace, claim_of(volume))
        enabled = volume_status(store, namespace, volume)["enabled"]
        if claim is None or not is_bound(claim.obj) or not enabled or volume["name"] in left_out:
            continue
        copy = {"metadata": claim.obj["metadata"], "spec": claim.obj["spec"]}
        snapshot_name = f"vmsnapshot-{snapshot['metadata']['uid']}-volume-{volume['name']}"
        backups.append(
            {"persistentVolumeClaim": copy, "volumeName": volume["name"], "volumeSnapshotName": snapshot_name}
        )
    # The copy has the spec of the VM, and only this of its status.
    machine = {"metadata": vm["metadata"], "spec": vm["spec"], "status": {"printableStatus": "Stopped"}}
    return {
        **new_object(VM_SNAPSHOT_CONTENTS, name, namespace, now, finalizers=[CONTENT_PROTECTION]),
        "spec": {
            "source": {"virtualMachine": machine},
            "virtualMachineSnapshotName": snapshot["metadata"]["name"],
            "volumeBackups": backups,
        },
    }


def build_volume_snapshot(store: Store, content: Json, backup: Json, now: datetime) -> Json:
    vm = content["spec"]["source"]["virtualMachine"]["metadata"]
    claim = backup["persistentVolumeClaim"]
    labels = {
        "snapshot.kubevirt.io/source-vm-name": vm["name"],
        "snapshot.kubevirt.io/source-vm-namespace": vm["namespace"],
    }
    name, owners = backup["volumeSnapshotName"], owned_by(content)
    return {
        **new_object(VOLUME_SNAPSHOTS, name, vm["namespace"], now, labels=labels, ownerReferences=owners),
        "spec": {
            "source": {"persistentVolumeClaimName": claim["metadata"]["name"]},
            "volumeSnapshotClassName": snapshot_class_of(store, claim["spec"].get("storageClassName", "")),
        },
    }


def _disabled(name: str, reason: str) -> Json:
    return {"enabled": False, "name": name, "reason": reason}


def _storage_class(store: Store, namespace: str, volume: Json) -> str | None:
    """The storage class in the `pvc` of the DataVolume, else that of the claim; None where there is no claim yet."""
    name = claim_of(volume)
    if "dataVolume" in volume:
        filler = store.get(DATA_VOLUMES, namespace, name)
        given = ((filler.obj["spec"].get("pvc") or {}).get("storageClassName") or "") if filler else ""
        if given:
            return str(given)
    claim = store.get(CLAIMS, namespace, name)
    return str(claim.obj["spec"].get("storageClassName", "")) if claim else None


def _claim_problem(store: Store, namespace: str, name: str) -> str:
    claim = store.get(CLAIMS, namespace, name)
    if claim is None:
        return "volume doesnt exist"
    if claim.deleting:
        return "volume is being deleted"
    if not is_bound(claim.obj):
        return "volume not bound"
    return "" if is_populated(store, claim.obj) else "volume not populated"
