"""Storage classes, and the snapshot classes that go with them.

`standard` (the default) and `fast-ssd` can be snapshotted, `no-snapshots` has a provisioner without a VolumeSnapshotClass,
and a claim of `local-wait` binds only when something uses it.
"""

import uuid

from app.devcluster.apiserver.objects import Store
from app.devcluster.apiserver.registry import STORAGE_CLASSES, STORAGE_PROFILES, VOLUME_SNAPSHOT_CLASSES, Resource
from app.devcluster.apiserver.status import ApiError, Json

STORAGE_CLASS = "standard"
SNAPSHOT_CLASS = "devcluster-snapshots"
PROVISIONER = "csi.devcluster"
_LOCAL = "local.csi.devcluster"
_PLAIN = "plain.csi.devcluster"
_DEFAULT = "storageclass.kubernetes.io/is-default-class"
_DEFAULT_FOR_VMS = "storageclass.kubevirt.io/is-default-virt-class"
_DEFAULT_SNAPSHOTS = "snapshot.storage.kubernetes.io/is-default-class"
CLONE_STRATEGY = "cdi.kubevirt.io/clone-strategy"


def storage_objects(moment: str) -> list[tuple[Resource, Json]]:
    """The classes every dev cluster has."""
    clone = {CLONE_STRATEGY: "csi-clone"}
    return [
        _class(STORAGE_CLASS, PROVISIONER, moment, annotations={_DEFAULT: "true", **clone}),
        _class("fast-ssd", PROVISIONER, moment, annotations=clone),
        _class("no-snapshots", _PLAIN, moment),
        _class("local-wait", _LOCAL, moment, binding="WaitForFirstConsumer", annotations=clone),
        _snapshot_class(SNAPSHOT_CLASS, PROVISIONER, moment),
        _snapshot_class("local-snapshots", _LOCAL, moment),
    ]


def default_class(store: Store, *, for_machines: bool = False) -> str:
    """The class of claims that name none; empty where there is no default. CDI prefers the one marked for VMs."""
    marks = (_DEFAULT_FOR_VMS, _DEFAULT) if for_machines else (_DEFAULT,)
    for mark in marks:
        for stored in store.rows(STORAGE_CLASSES):
            if (stored.obj["metadata"].get("annotations") or {}).get(mark) == "true":
                return str(stored.obj["metadata"]["name"])
    return ""


def find_class(store: Store, name: str) -> Json | None:
    stored = store.get(STORAGE_CLASSES, "", name)
    return stored.obj if stored else None


def waits_for_consumer(storage_class: Json | None) -> bool:
    return storage_class is not None and storage_class.get("volumeBindingMode") == "WaitForFirstConsumer"


def snapshot_class_of(store: Store, name: str, *, profiled: bool = True) -> str:
    """The VolumeSnapshotClass for claims of a storage class; empty where there is none.

    As KubeVirt v1.9.0 chooses: the profile's first, then the only one of the provisioner, then the one marked as default.
    Without `profiled` the profile is left out. Raises ApiError where several match and none is marked.
    """
    storage_class = find_class(store, name)
    if storage_class is None:
        return ""
    profile = store.get(STORAGE_PROFILES, "", name) if profiled else None
    chosen = ((profile.obj.get("status") or {}).get("snapshotClass") or "") if profile else ""
    if chosen:
        return chosen if store.get(VOLUME_SNAPSHOT_CLASSES, "", chosen) else ""
    matching = [
        item.obj for item in store.rows(VOLUME_SNAPSHOT_CLASSES) if item.obj["driver"] == storage_class["provisioner"]
    ]
    if len(matching) > 1:
        marked = [item for item in matching if _DEFAULT_SNAPSHOTS in (item["metadata"].get("annotations") or {})]
        if not marked:
            raise ApiError(500, "InternalError", f"{len(matching)} matching VolumeSnapshotClasses for {name}")
        matching = marked
    return str(matching[0]["metadata"]["name"]) if matching else ""


def _class(
    name: str, provisioner: str, moment: str, *, binding: str = "Immediate", annotations: dict[str, str] | None = None
) -> tuple[Resource, Json]:
    metadata: Json = {"name": name, "uid": str(uuid.uuid4()), "creationTimestamp": moment}
    if annotations:
        metadata["annotations"] = annotations
    return STORAGE_CLASSES, {
        "apiVersion": STORAGE_CLASSES.api_version,
        "kind": STORAGE_CLASSES.kind,
        "metadata": metadata,
        "provisioner": provisioner,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": binding,
        "allowVolumeExpansion": True,
    }


def _snapshot_class(name: str, driver: str, moment: str) -> tuple[Resource, Json]:
    return VOLUME_SNAPSHOT_CLASSES, {
        "apiVersion": VOLUME_SNAPSHOT_CLASSES.api_version,
        "kind": VOLUME_SNAPSHOT_CLASSES.kind,
        "metadata": {"name": name, "uid": str(uuid.uuid4()), "creationTimestamp": moment},
        "driver": driver,
        "deletionPolicy": "Delete",
    }
