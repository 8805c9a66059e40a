"""CDI's StorageProfiles: the capabilities of each storage class, and defaults of claims by them (CDI v1.66.0)."""

import math

from typing_extensions import override

from app.devcluster.apiserver.controller import KindController
from app.devcluster.apiserver.objects import Key, annotations_of, new_object, status_of
from app.devcluster.apiserver.quantities import whole
from app.devcluster.apiserver.registry import STORAGE_CLASSES, STORAGE_PROFILES, VOLUME_SNAPSHOT_CLASSES
from app.devcluster.apiserver.status import ApiError, Json
from app.devcluster.apiserver.store import Change, Store, Stored
from app.devcluster.storage.storage_classes import (
    CLONE_STRATEGY,
    PROVISIONER,
    default_class,
    find_class,
    snapshot_class_of,
)

_SHARED = [("ReadWriteMany", "Block"), ("ReadWriteOnce", "Block"), ("ReadWriteOnce", "Filesystem")]
_CAPABILITIES = {
    PROVISIONER: _SHARED,
    "local.csi.devcluster": _SHARED[1:],
    "plain.csi.devcluster": _SHARED[2:],
}
_STRATEGIES = {"copy": "copy", "snapshot": "snapshot", "csi-clone": "csi-clone"}
_OVERHEAD = 0.06
_MEBI = 2**20


class ProfileError(Exception):
    """A claim cannot be completed; the message is CDI's."""


class StorageProfileController(KindController):
    """Keeps a profile for each storage class; its spec overrides what CDI knows of the class."""

    resource = STORAGE_PROFILES

    @override
    def resume(self) -> None:
        for stored in self._store.each(STORAGE_CLASSES):
            self._queue.add(stored.key)

    @override
    def _react(self, change: Change) -> None:
        if change.resource is STORAGE_CLASSES:
            self._queue.add(change.key)
        elif change.resource is VOLUME_SNAPSHOT_CLASSES:
            self.resume()

    @override
    def _handle(self, key: Key) -> None:
        if find_class(self._store, key[1]) is None:
            if self._store.get(STORAGE_PROFILES, *key) is not None:
                self._store.remove(STORAGE_PROFILES, *key)
            return
        if self._store.get(STORAGE_PROFILES, *key) is None:
            labels = {"app": "containerized-data-importer", "cdi.kubevirt.io": ""}
            profile = new_object(STORAGE_PROFILES, key[1], "", self._api.clock.now(), labels=labels)
            self._store.put(STORAGE_PROFILES, {**profile, "spec": {}})
        super()._handle(key)

    @override
    def _reconcile(self, stored: Stored) -> None:
        storage_class = find_class(self._store, stored.key[1])
        if storage_class is not None:
            self._modify_status(stored, self._status(storage_class, stored.obj.get("spec") or {}))

    def _status(self, storage_class: Json, spec: Json) -> Json:
        name, provisioner = storage_class["metadata"]["name"], storage_class["provisioner"]
        snapshots = spec.get("snapshotClass") or self._snapshot_class(name)
        known = [
            {"accessModes": [access], "volumeMode": volume} for access, volume in _CAPABILITIES.get(provisioner, ())
        ]
        annotated = annotations_of(storage_class).get(CLONE_STRATEGY, "")
        strategy = spec.get("cloneStrategy") or _STRATEGIES.get(annotated) or ("snapshot" if snapshots else "copy")
        status: Json = {
            "claimPropertySets": spec.get("claimPropertySets") or known,
            "cloneStrategy": strategy,
            "dataImportCronSourceFormat": spec.get("dataImportCronSourceFormat") or "pvc",
            "provisioner": provisioner,
            "storageClass": name,
        }
        if snapshots:
            status["snapshotClass"] = snapshots
        return status

    def _snapshot_class(self, name: str) -> str:
        """The snapshot class of the provisioner; the profile's own status must not decide it."""
        try:
            return snapshot_class_of(self._store, name, profiled=False)
        except ApiError:
            return ""


def clone_strategy(store: Store, storage_class: str) -> str:
    profile = store.get(STORAGE_PROFILES, "", storage_class)
    return str(status_of(profile.obj).get("cloneStrategy", "copy")) if profile else "copy"


def claim_spec(store: Store, volume: Json, source_size: str) -> Json:
    """The spec of a DataVolume's claim; a clone that names no size requests `source_size`. Raises ProfileError."""
    if "pvc" in volume["spec"]:
        given = {key: value for key, value in volume["spec"]["pvc"].items() if value is not None}
        chosen = given.get("storageClassName") or default_class(store)
        return {"volumeMode": "Filesystem", **given, **({"storageClassName": chosen} if chosen else {})}
    given = {key: value for key, value in (volume["spec"].get("storage") or {}).items() if value is not None}
    chosen = given.get("storageClassName") or default_class(store, for_machines=True)
    if find_class(store, chosen) is None:
        if not given.get("accessModes"):
            raise ProfileError("PVC spec is missing accessMode and no storageClass to choose profile")
        return {"volumeMode": "Filesystem", **given}
    access, mode = _modes(store, chosen, given)
    size = (given.get("resources") or {}).get("requests", {}).get("storage")
    asked = source_size if size is None else _with_overhead(size, mode)
    resources = {**(given.get("resources") or {}), "requests": {"storage": asked}}
    return {**given, "accessModes": access, "resources": resources, "storageClassName": chosen, "volumeMode": mode}


def _modes(store: Store, storage_class: str, given: Json) -> tuple[list[str], str]:
    """Access modes and volume mode; missing ones come from the first set of the profile that fits."""
    access, mode = given.get("accessModes") or [], given.get("volumeMode") or ""
    if access and mode:
        return access, mode
    profile = store.get(STORAGE_PROFILES, "", storage_class)
    sets = (status_of(profile.obj).get("claimPropertySets") or []) if profile else []
    fitting = [
        item
        for item in sets
        if (not mode or item["volumeMode"] == mode) and (not access or item["accessModes"] == access)
    ]
    if fitting:
        return access or fitting[0]["accessModes"], mode or fitting[0]["volumeMode"]
    if access:
        return access, "Filesystem"
    raise ProfileError(f"no accessMode specified in StorageProfile {storage_class}")


def _with_overhead(size: str, mode: str) -> str:
    """The size of the claim for a disk of this size: a file system needs some space of its own."""
    if mode == "Block":
        return size
    aligned = math.ceil(whole(size) / _MEBI) * _MEBI
    return str(math.ceil(aligned * (1 + _OVERHEAD)))
