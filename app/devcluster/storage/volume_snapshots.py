"""The snapshotter: VolumeSnapshots become ready, and go with their contents (external-snapshotter v8.6.0)."""

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.objects import Change, Key, Stored
from app.devcluster.apiserver.registry import (
    CLAIMS,
    VM_SNAPSHOT_CONTENTS,
    VM_SNAPSHOTS,
    VOLUME_SNAPSHOT_CLASSES,
    VOLUME_SNAPSHOT_CONTENTS,
    VOLUME_SNAPSHOTS,
)
from app.devcluster.apiserver.status import ApiError, Json
from app.devcluster.apiserver.times import stamp
from app.devcluster.apiserver.work import Timers, WorkQueue
from app.devcluster.durations import Durations, Jitter
from app.devcluster.faults.faults import Fault, FaultBook
from app.devcluster.storage.storage_classes import find_class, snapshot_class_of
from app.devcluster.storage.volumes import build_content, content_name, has_booted, is_bound

_ORDERED = "failed to take snapshot of the volume: rpc error: code = Internal desc = ordered by a fault"


class VolumeSnapshotter:
    def __init__(self, api: Api, durations: Durations, jitter: Jitter, faults: FaultBook) -> None:
        self._api = api
        self._durations = durations
        self._jitter = jitter
        self._faults = faults
        self._timers: Timers[str] = Timers(api.clock)
        self._queue: WorkQueue[tuple[str, Key]] = WorkQueue("snapshotter", self._visit, api.clock)
        self._unsubscribe = api.store.subscribe(self._notice)
        faults.listen(self.resume)

    def resume(self) -> None:
        """Look at every snapshot and content: after a start from a saved state, and when faults come or go."""
        for resource in (VOLUME_SNAPSHOTS, VOLUME_SNAPSHOT_CONTENTS):
            for stored in self._api.store.each(resource):
                metadata = stored.obj["metadata"]
                self._queue.add((resource.id, (metadata.get("namespace", ""), metadata["name"])))

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()
        self._timers.cancel_all()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def _notice(self, change: Change) -> None:
        if change.resource is VOLUME_SNAPSHOTS:
            if change.new is None:
                self._timers.cancel(change.last.obj["metadata"]["uid"])
                self._queue.add((VOLUME_SNAPSHOT_CONTENTS.id, ("", content_name(change.last.obj))))
            self._queue.add((VOLUME_SNAPSHOTS.id, change.key))
        elif change.resource is CLAIMS:
            for stored in self._api.store.rows(VOLUME_SNAPSHOTS, change.key[0]):
                if _source_of(stored.obj) == change.key[1]:
                    self._queue.add((VOLUME_SNAPSHOTS.id, (change.key[0], stored.obj["metadata"]["name"])))
        elif change.resource is VM_SNAPSHOTS and change.new is None:
            self._faults.forget(change.last.obj["metadata"]["uid"])

    def _visit(self, item: tuple[str, Key]) -> None:
        resource_id, key = item
        if resource_id == VOLUME_SNAPSHOT_CONTENTS.id:
            content = self._api.store.get(VOLUME_SNAPSHOT_CONTENTS, *key)
            if content is not None and self._api.store.by_uid(content.obj["spec"]["volumeSnapshotRef"]["uid"]) is None:
                self._api.store.remove(VOLUME_SNAPSHOT_CONTENTS, *key)
            return
        snapshot = self._api.store.get(VOLUME_SNAPSHOTS, *key)
        if snapshot is None or (snapshot.obj.get("status") or {}).get("readyToUse"):
            return
        problem = self._problem(key, snapshot.obj)
        uid = snapshot.obj["metadata"]["uid"]
        if problem:
            self._timers.cancel(uid)
            self._fail(snapshot, problem)
        elif self._strike("snapshot-hangs", snapshot.obj) is not None:
            self._timers.cancel(uid)
        else:
            delay = self._jitter.spread(self._durations.snapshot_total)
            self._timers.ensure(uid, "ready", delay, lambda: self._make_ready(key))

    def _problem(self, key: Key, snapshot: Json) -> str:
        """Why no snapshot can be taken; empty where one can."""
        fault = self._strike("snapshot-fails", snapshot)
        if fault is not None:
            return str(fault.settings.get("message", _ORDERED))
        name = _source_of(snapshot)
        claim = self._api.store.get(CLAIMS, key[0], name)
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
        if self._api.store.get(VOLUME_SNAPSHOT_CLASSES, "", chosen) is None:
            missing = f'volumesnapshotclass.snapshot.storage.k8s.io "{chosen}" not found'
            return f"Failed to get snapshot class with error {missing}"
        return ""

    def _class_name(self, snapshot: Json, claim: Json) -> str:
        """The class named, else the default of the claim's driver. Raises ApiError where there are several."""
        given = snapshot["spec"].get("volumeSnapshotClassName")
        return str(given or snapshot_class_of(self._api.store, claim["spec"].get("storageClassName", "")))

    def _strike(self, kind: str, snapshot: Json) -> Fault | None:
        """A fault ordered for the VirtualMachineSnapshot it belongs to, or for the VolumeSnapshot itself."""
        namespace = snapshot["metadata"]["namespace"]
        for owner in snapshot["metadata"].get("ownerReferences", ()):
            content = self._api.store.get(VM_SNAPSHOT_CONTENTS, namespace, owner["name"])
            name = content.obj["spec"].get("virtualMachineSnapshotName", "") if content else ""
            whole = self._api.store.get(VM_SNAPSHOTS, namespace, name)
            if whole is not None:
                return self._faults.on_object(kind, VM_SNAPSHOTS.plural, whole.obj)
        return self._faults.on_object(kind, VOLUME_SNAPSHOTS.plural, snapshot)

    def _fail(self, snapshot: Stored, message: str) -> None:
        told = (snapshot.obj.get("status") or {}).get("error") or {}
        if told.get("message") != message:
            error = {"message": message, "time": stamp(self._api.clock.now())}
            self._api.modify(
                VOLUME_SNAPSHOTS, snapshot, lambda obj: {**obj, "status": {"error": error, "readyToUse": False}}
            )

    def _make_ready(self, key: Key) -> None:
        snapshot = self._api.store.get(VOLUME_SNAPSHOTS, *key)
        claim = self._api.store.get(CLAIMS, key[0], _source_of(snapshot.obj)) if snapshot else None
        if snapshot is None or claim is None:
            return
        moment = stamp(self._api.clock.now())
        chosen = self._class_name(snapshot.obj, claim.obj)
        storage_class = find_class(self._api.store, claim.obj["spec"].get("storageClassName", "")) or {}
        snapshot = self._api.modify(
            VOLUME_SNAPSHOTS, snapshot, lambda obj: {**obj, "spec": {**obj["spec"], "volumeSnapshotClassName": chosen}}
        )
        booted = has_booted(self._api.store, key[0], claim.obj["metadata"]["name"])
        driver = storage_class.get("provisioner", "")
        content = build_content(snapshot.obj, claim.obj, driver, moment, booted=booted)
        self._api.store.put(VOLUME_SNAPSHOT_CONTENTS, content)
        status = {
            "boundVolumeSnapshotContentName": content_name(snapshot.obj),
            "creationTime": moment,
            "readyToUse": True,
            "restoreSize": (claim.obj.get("status") or {}).get("capacity", {}).get("storage", "0"),
        }
        self._api.modify(VOLUME_SNAPSHOTS, snapshot, lambda obj: {**obj, "status": status})


def _source_of(snapshot: Json) -> str:
    """The claim it is taken of; empty where it was made from a content that was there."""
    return str((snapshot["spec"].get("source") or {}).get("persistentVolumeClaimName", ""))
