"""The snapshotter: VolumeSnapshots become ready (external-snapshotter v8.6.0)."""

from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.objects import Key, owners_of, status_of
from app.devcluster.apiserver.registry import (
    CLAIMS,
    VM_SNAPSHOT_CONTENTS,
    VM_SNAPSHOTS,
    VOLUME_SNAPSHOT_CLASSES,
    VOLUME_SNAPSHOT_CONTENTS,
    VOLUME_SNAPSHOTS,
)
from app.devcluster.apiserver.status import ApiError, Json
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.durations import Durations, Jitter
from app.devcluster.faults.book import Fault, FaultBook
from app.devcluster.faults.controller import FaultyController
from app.devcluster.storage.backend import StorageBackend
from app.devcluster.storage.storage_classes import find_class, snapshot_class_of
from app.devcluster.storage.volumes import (
    build_content,
    content_name,
    content_of_snapshot,
    has_booted,
    is_bound,
    volume_name,
)

_FAILED = "failed to take snapshot of the volume: rpc error: code = Internal desc = "
_ORDERED = f"{_FAILED}ordered by a fault"
_RETRY_SECONDS = 1.0


class VolumeSnapshotter(FaultyController):
    resource = VOLUME_SNAPSHOTS

    def __init__(
        self, api: Api, durations: Durations, jitter: Jitter, faults: FaultBook, backend: StorageBackend
    ) -> None:
        super().__init__(api, durations, jitter, faults)
        self._backend = backend

    @override
    def _forget(self, uid: str) -> None:
        super()._forget(uid)
        self._backend.cancel(uid)
        self._backend.discard(content_of_snapshot(uid))

    @override
    def _react(self, change: Change) -> None:
        if change.resource is CLAIMS:
            for stored in self._store.rows(VOLUME_SNAPSHOTS, change.key[0]):
                if _source_of(stored.obj) == change.key[1]:
                    self._queue.add(stored.key)
        elif change.resource is VM_SNAPSHOTS and change.new is None:
            self._faults.forget(change.last.uid)

    @override
    def _reconcile(self, stored: Stored) -> None:
        if status_of(stored.obj).get("readyToUse"):
            return
        problem = self._problem(stored.key, stored.obj)
        if problem:
            self._backend.cancel(stored.uid)
            self._fail(stored, problem)
        elif self._strike("snapshot-hangs", stored.obj) is not None:
            self._backend.cancel(stored.uid)
        elif self._timers.waits_for(stored.uid) is None:
            self._freeze(stored)

    def _freeze(self, stored: Stored) -> None:
        key = stored.key
        claim = self._store.get(CLAIMS, key[0], _source_of(stored.obj))
        if claim is None:
            return

        def fail(problem: str) -> None:
            self._timers.ensure(stored.uid, "retry", _RETRY_SECONDS, lambda: self._queue.add(key))
            self._fail_now(key, f"{_FAILED}{problem}")

        content, volume = content_name(stored.obj), volume_name(claim.obj)
        self._backend.freeze(stored.uid, content, volume, lambda: self._make_ready(key), fail)

    def _problem(self, key: Key, snapshot: Json) -> str:
        """Why no snapshot can be taken; empty where it can."""
        fault = self._strike("snapshot-fails", snapshot)
        if fault is not None:
            return str(fault.settings.get("message", _ORDERED))
        name = _source_of(snapshot)
        claim = self._store.get(CLAIMS, key[0], name)
        if claim is None:
            return f'snapshot controller failed to update {key[1]} on API server: cannot get claim from snapshot: persistentvolumeclaims "{name}" not found'
        if not is_bound(claim.obj):
            return f"snapshot controller failed to update {key[1]} on API server: the PVC {name} is not yet bound to a PV, will not attempt to take a snapshot"
        try:
            chosen = self._class_name(snapshot, claim.obj)
        except ApiError as error:
            return error.message
        if not chosen:
            return "cannot find default snapshot class"
        if self._store.get(VOLUME_SNAPSHOT_CLASSES, "", chosen) is None:
            missing = f'volumesnapshotclass.snapshot.storage.k8s.io "{chosen}" not found'
            return f"Failed to get snapshot class with error {missing}"
        return ""

    def _class_name(self, snapshot: Json, claim: Json) -> str:
        """The class of the snapshot, else the default of the claim's driver. Raises ApiError where several match."""
        given = snapshot["spec"].get("volumeSnapshotClassName")
        return str(given or snapshot_class_of(self._store, claim["spec"].get("storageClassName", "")))

    def _strike(self, kind: str, snapshot: Json) -> Fault | None:
        """A fault that strikes the VirtualMachineSnapshot it belongs to, or the VolumeSnapshot itself."""
        namespace = snapshot["metadata"]["namespace"]
        for owner in owners_of(snapshot):
            content = self._store.get(VM_SNAPSHOT_CONTENTS, namespace, owner["name"])
            name = content.obj["spec"].get("virtualMachineSnapshotName", "") if content else ""
            whole = self._store.get(VM_SNAPSHOTS, namespace, name)
            if whole is not None:
                return self._faults.on_object(kind, VM_SNAPSHOTS.plural, whole.obj)
        return self._faults.on_object(kind, VOLUME_SNAPSHOTS.plural, snapshot)

    def _fail(self, stored: Stored, message: str) -> None:
        if (status_of(stored.obj).get("error") or {}).get("message") != message:
            error = {"message": message, "time": self._moment()}
            self._modify_status(stored, {"error": error, "readyToUse": False})

    def _fail_now(self, key: Key, message: str) -> None:
        stored = self._store.get(VOLUME_SNAPSHOTS, *key)
        if stored is not None:
            self._fail(stored, message)

    def _make_ready(self, key: Key) -> None:
        snapshot = self._store.get(VOLUME_SNAPSHOTS, *key)
        claim = self._store.get(CLAIMS, key[0], _source_of(snapshot.obj)) if snapshot else None
        if snapshot is None or claim is None:
            return
        spec = {**snapshot.obj["spec"], "volumeSnapshotClassName": self._class_name(snapshot.obj, claim.obj)}
        snapshot = self._api.modify(VOLUME_SNAPSHOTS, snapshot, lambda obj: {**obj, "spec": spec})
        driver = (find_class(self._store, claim.obj["spec"].get("storageClassName", "")) or {}).get("provisioner", "")
        booted = has_booted(self._store, *claim.key)
        content = build_content(snapshot.obj, claim.obj, driver, self._api.clock.now(), booted=booted)
        self._store.put(VOLUME_SNAPSHOT_CONTENTS, content)
        status = {
            "boundVolumeSnapshotContentName": content_name(snapshot.obj),
            "creationTime": self._moment(),
            "readyToUse": True,
            "restoreSize": status_of(claim.obj).get("capacity", {}).get("storage", "0"),
        }
        self._modify_status(snapshot, status)


def _source_of(snapshot: Json) -> str:
    """The claim of which it is taken; empty where it was made from an existing content."""
    return str((snapshot["spec"].get("source") or {}).get("persistentVolumeClaimName", ""))
