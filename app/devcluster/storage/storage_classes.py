"""Storage classes and snapshot classes.

Claims of `standard` (the default) and `fast-ssd` can be snapshotted; the provisioner of `no-snapshots` has no
VolumeSnapshotClass; a claim of `local-wait` binds only when it has a user.
"""

from datetime import datetime

from app.devcluster.apiserver.objects import annotations_of, new_object, status_of
from app.devcluster.apiserver.registry import STORAGE_CLASSES, STORAGE_PROFILES, VOLUME_SNAPSHOT_CLASSES, Resource
from app.devcluster.apiserver.status import ApiError, Json
from app.devcluster.apiserver.store import Store

STORAGE_CLASS = "standard"
SNAPSHOT_CLASS = "devcluster-snapshots"
PROVISIONER = "csi.devcluster"
_LOCAL = "local.csi.devcluster"
_PLAIN = "plain.csi.devcluster"
_DEFAULT = "storageclass.kubernetes.io/is-default-class"
_DEFAULT_FOR_VMS = "storageclass.kubevirt.io/is-default-virt-class"
_DEFAULT_SNAPSHOTS = "snapshot.storage.kubernetes.io/is-default-class"
CLONE_STRATEGY = "cdi.kubevirt.io/clone-strategy"


def storage_objects(now: datetime) -> list[tuple[Resource, Json]]:
    """The classes that every dev cluster has."""
    clone = {CLONE_STRATEGY: "csi-clone"}
    return [
        _class(STORAGE_CLASS, PROVISIONER, now, annotations={_DEFAULT: "true", **clone}),
        _class("fast-ssd", PROVISIONER, now, annotations=clone),
        _class("no-snapshots", _PLAIN, now),
        _class("local-wait", _LOCAL, now, binding="WaitForFirstConsumer", annotations=clone),
        _snapshot_class(SNAPSHOT_CLASS, PROVISIONER, now),
        _snapshot_class("local-snapshots", _LOCAL, now),
    ]


def default_class(store: Store, *, for_machines: bool = False) -> str:
    """The class of claims that name none; empty where there is no default. CDI prefers the one marked for VMs."""
    marks = (_DEFAULT_FOR_VMS, _DEFAULT) if for_machines else (_DEFAULT,)
    for mark in marks:
        for stored in store.rows(STORAGE_CLASSES):
            if annotations_of(stored.obj).get(mark) == "true":
                return str(stored.obj["metadata"]["name"])
    return ""


def find_class(store: Store, name: str) -> Json | None:
    stored = store.get(STORAGE_CLASSES, "", name)
    return stored.obj if stored else None


def waits_for_consumer(storage_class: Json | None) -> bool:
    return storage_class is not None and storage_class.get("volumeBindingMode") == "WaitForFirstConsumer"


def snapshot_class_of(store: Store, name: str, *, profiled: bool = True) -> str:
    """The VolumeSnapshotClass for claims of a storage class; empty where there is none.

    As KubeVirt v1.9.0 chooses: the class of the profile, else the only class of the provisioner, else its default class.
    `profiled=False` ignores the profile. Raises ApiError where several classes match and none is the default.
    """
    storage_class = find_class(store, name)
    if storage_class is None:
        return ""
    profile = store.get(STORAGE_PROFILES, "", name) if profiled else None
    chosen = (status_of(profile.obj).get("snapshotClass") or "") if profile else ""
    if chosen:
        return chosen if store.get(VOLUME_SNAPSHOT_CLASSES, "", chosen) else ""
    matching = [
        item.obj for item in store.rows(VOLUME_SNAPSHOT_CLASSES) if item.obj["driver"] == storage_class["provisioner"]
    ]
    if len(matching) > 1:
        marked = [item for item in matching if _DEFAULT_SNAPSHOTS in annotations_of(item)]
        if not marked:
            raise ApiError(500, "InternalError", f"{len(matching)} matching VolumeSnapshotClasses for {name}")
        matching = marked
    return str(matching[0]["metadata"]["name"]) if matching else ""


def _class(
    name: str, provisioner: str, now: datetime, *, binding: str = "Immediate", annotations: dict[str, str] | None = None
) -> tuple[Resource, Json]:
    more = {"annotations": annotations} if annotations else {}
    return STORAGE_CLASSES, {
        **new_object(STORAGE_CLASSES, name, "", now, **more),
        "provisioner": provisioner,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": binding,
        "allowVolumeExpansion": True,
    }


def _snapshot_class(name: str, driver: str, now: datetime) -> tuple[Resource, Json]:
    snapshot_class = new_object(VOLUME_SNAPSHOT_CLASSES, name, "", now)
    return VOLUME_SNAPSHOT_CLASSES, {**snapshot_class, "driver": driver, "deletionPolicy": "Delete"}
