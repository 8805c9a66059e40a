"""The data behind claims and snapshots, their users, and whether a guest has booted from them.

A PersistentVolume has the data of a bound claim, a VolumeSnapshotContent those of a ready snapshot. An annotation of this
cluster marks data from which a guest has booted: the next boot from them, or from a copy, is faster. Copies inherit it.
"""

from collections.abc import Collection
from datetime import datetime

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import find, holds
from app.devcluster.apiserver.objects import (
    annotations_of,
    new_object,
    owners_of,
    phase_of,
    status_of,
    with_annotations,
)
from app.devcluster.apiserver.quantities import whole
from app.devcluster.apiserver.registry import (
    CLAIMS,
    DATA_VOLUMES,
    PERSISTENT_VOLUMES,
    PODS,
    VIRTUAL_MACHINE_INSTANCES,
    VOLUME_SNAPSHOT_CONTENTS,
)
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Store, Stored
from app.devcluster.durations import Durations
from app.devcluster.storage.backend import Volume
from app.devcluster.storage.storage_classes import find_class, waits_for_consumer

IMAGE_PULL_FAILED = "ImagePullFailed"
"""The reason of a DataVolume's condition Running where the image of its source cannot be pulled."""
_BOOTED = "devcluster/booted"


class VolumeHistory:
    """Marks the volume from which a guest has booted, once its agent connects."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._unsubscribe = api.store.subscribe(self._notice)

    def stop(self) -> None:
        self._unsubscribe()

    def _notice(self, change: Change) -> None:
        if change.resource is not VIRTUAL_MACHINE_INSTANCES or change.new is None:
            return
        before = change.old.obj["status"].get("conditions") if change.old else None
        if holds(change.new.obj["status"].get("conditions"), "AgentConnected") and not holds(before, "AgentConnected"):
            name = boot_claim(change.new.obj["spec"])
            if name:
                mark_booted(self._api, change.key[0], name)


def boot_claim(spec: Json) -> str:
    """The claim from which a guest boots: the disk with the lowest bootOrder, else the first disk.

    Empty where that disk has no claim.
    """
    disks = (spec["domain"].get("devices") or {}).get("disks") or []
    first = min(disks, key=lambda disk: disk.get("bootOrder", 2**16), default=None)
    volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
    return claim_of(volumes.get(first["name"], {})) if first else ""


def boot_seconds(store: Store, vmi: Json, durations: Durations) -> float:
    """Seconds from the start of the guest until its agent connects."""
    name = boot_claim(vmi["spec"])
    prepared = bool(name) and has_booted(store, vmi["metadata"]["namespace"], name)
    return durations.guest_boot_prepared if prepared else durations.guest_boot


def has_booted(store: Store, namespace: str, claim_name: str) -> bool:
    claim = store.get(CLAIMS, namespace, claim_name)
    volume = store.get(PERSISTENT_VOLUMES, "", volume_name(claim.obj)) if claim else None
    return volume is not None and _is_marked(volume.obj)


def mark_booted(api: Api, namespace: str, claim_name: str) -> None:
    claim = api.store.get(CLAIMS, namespace, claim_name)
    volume = api.store.get(PERSISTENT_VOLUMES, "", volume_name(claim.obj)) if claim else None
    if volume is not None:
        api.modify(PERSISTENT_VOLUMES, volume, lambda obj: with_annotations(obj, {_BOOTED: "true"}))


def snapshot_has_booted(store: Store, snapshot: Json) -> bool:
    content = store.get(VOLUME_SNAPSHOT_CONTENTS, "", content_name(snapshot))
    return content is not None and _is_marked(content.obj)


def snapshot_driver(store: Store, snapshot: Json) -> str:
    """The driver that holds the snapshot's data; empty where it is not ready."""
    content = store.get(VOLUME_SNAPSHOT_CONTENTS, "", content_name(snapshot))
    return str(content.obj["spec"]["driver"]) if content else ""


def scheduling_hold(store: Store, pod: Json) -> str | None:
    """Why the scheduler must not bind the pod yet, because of its volumes.

    None where it may; empty where it only waits for a volume that is made once the pod is there.
    """
    claims = (store.get(CLAIMS, pod["metadata"]["namespace"], name) for name in claims_of(pod["spec"]))
    unbound = next((claim.obj for claim in claims if claim is not None and not is_bound(claim.obj)), None)
    if unbound is None:
        return None
    if waits_for_consumer(find_class(store, unbound["spec"].get("storageClassName", ""))):
        return ""
    return "pod has unbound immediate PersistentVolumeClaims"


def claim_of(volume: Json) -> str:
    """The claim behind a volume of a pod or a VMI; empty for other kinds. A DataVolume's claim has its name."""
    named = (volume.get("persistentVolumeClaim") or {}).get("claimName") or (volume.get("dataVolume") or {}).get("name")
    return str(named or "")


def claims_of(spec: Json) -> list[str]:
    """The claims behind the volumes of a pod's or a VMI's spec."""
    return [name for volume in spec.get("volumes") or () if (name := claim_of(volume))]


def pods_using(store: Store, namespace: str, claims: Collection[str]) -> list[Stored]:
    """The pods that use one of the claims."""
    return [pod for pod in store.rows(PODS, namespace) if not set(claims).isdisjoint(claims_of(pod.obj["spec"]))]


def has_consumer(store: Store, namespace: str, claim_name: str) -> bool:
    """Whether a pod or a VMI uses the claim; for a VMI, virt-controller starts a pod at once."""
    return bool(pods_using(store, namespace, [claim_name])) or any(
        claim_name in claims_of(vmi.obj["spec"])
        for vmi in store.rows(VIRTUAL_MACHINE_INSTANCES, namespace)
        if not vmi.deleting
    )


def is_bound(claim: Json) -> bool:
    return phase_of(claim) == "Bound"


def filler_of(store: Store, claim: Json) -> Json | None:
    """The DataVolume that fills the claim."""
    for owner in owners_of(claim):
        if owner["kind"] == DATA_VOLUMES.kind:
            found = store.by_uid(owner["uid"])
            return found[1].obj if found else None
    return None


def is_populated(store: Store, claim: Json) -> bool:
    """Whether the claim has all its data; one without a DataVolume always does."""
    filler = filler_of(store, claim)
    return filler is None or phase_of(filler) == "Succeeded"


def has_failed_attempt(data_volume: Json) -> bool:
    """Whether the last attempt of the import ended in an error; another one follows."""
    running = find(status_of(data_volume).get("conditions"), "Running") or {}
    return running.get("status") == "False" and running.get("reason") in {"Error", IMAGE_PULL_FAILED}


def content_name(snapshot: Json) -> str:
    return content_of_snapshot(snapshot["metadata"]["uid"])


def content_of_snapshot(uid: str) -> str:
    """The name of the content of the snapshot with this uid, whether there is one or not."""
    return f"snapcontent-{uid}"


def volume_name(claim: Json) -> str:
    return volume_of_claim(claim["metadata"]["uid"])


def volume_of_claim(uid: str) -> str:
    """The name of the volume of the claim with this uid, whether there is one or not."""
    return f"pvc-{uid}"


def data_of(claim: Json) -> Volume:
    """What a backend is asked to make or fill for a claim."""
    return Volume(volume_name(claim), whole(claim["spec"]["resources"]["requests"]["storage"]))


def build_volume(claim: Json, provisioner: str, now: datetime, *, booted: bool) -> Json:
    """The volume that a claim is bound to."""
    metadata, spec = claim["metadata"], claim["spec"]
    annotations = {"pv.kubernetes.io/provisioned-by": provisioner, **({_BOOTED: "true"} if booted else {})}
    return {
        **new_object(PERSISTENT_VOLUMES, volume_name(claim), "", now, annotations=annotations),
        "spec": {
            "accessModes": spec["accessModes"],
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "claimRef": {
                "apiVersion": CLAIMS.api_version,
                "kind": CLAIMS.kind,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "csi": {"driver": provisioner, "volumeHandle": volume_name(claim)},
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": spec.get("storageClassName", ""),
            "volumeMode": spec.get("volumeMode", "Filesystem"),
        },
        "status": {"phase": "Bound"},
    }


def build_content(snapshot: Json, claim: Json, driver: str, now: datetime, *, booted: bool) -> Json:
    """The content of a snapshot that is ready."""
    metadata = snapshot["metadata"]
    more = {"annotations": {_BOOTED: "true"}} if booted else {}
    return {
        **new_object(VOLUME_SNAPSHOT_CONTENTS, content_name(snapshot), "", now, **more),
        "spec": {
            "deletionPolicy": "Delete",
            "driver": driver,
            "source": {"volumeHandle": claim["spec"].get("volumeName", "")},
            "volumeSnapshotClassName": snapshot["spec"].get("volumeSnapshotClassName", ""),
            "volumeSnapshotRef": {
                "apiVersion": snapshot["apiVersion"],
                "kind": snapshot["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
        },
        "status": {"readyToUse": True, "snapshotHandle": content_name(snapshot)},
    }


def _is_marked(obj: Json) -> bool:
    return annotations_of(obj).get(_BOOTED) == "true"
