"""The storage driver: binds claims, keeps those in use, and makes VolumeSnapshots ready."""

import uuid
from collections.abc import Callable

from app.devcluster.api import Api
from app.devcluster.durations import Durations, Jitter
from app.devcluster.garbage import without_finalizer
from app.devcluster.objects import Change, Key, Stored
from app.devcluster.registry import (
    CLAIMS,
    PODS,
    STORAGE_CLASSES,
    VOLUME_SNAPSHOT_CLASSES,
    VOLUME_SNAPSHOTS,
    Resource,
)
from app.devcluster.status import Json
from app.devcluster.times import stamp
from app.devcluster.work import Timers, WorkQueue

STORAGE_CLASS = "devcluster-fast"
SNAPSHOT_CLASS = "devcluster-snapshots"
PROVISIONER = "csi.devcluster"
PROTECTION = "kubernetes.io/pvc-protection"
_SNAPSHOT_GROUP = "snapshot.storage.k8s.io"


class StorageDriver:
    def __init__(self, api: Api, durations: Durations, jitter: Jitter) -> None:
        self._api = api
        self._durations = durations
        self._jitter = jitter
        self._timers: Timers[str] = Timers(api.clock)
        self._queue: WorkQueue[tuple[str, Key]] = WorkQueue("storage", self._visit, api.clock)
        self._unsubscribe = api.store.subscribe(self._notice)

    def resume(self) -> None:
        for resource in (CLAIMS, VOLUME_SNAPSHOTS):
            for stored in self._api.store.each(resource):
                self._queue.add((resource.id, _key(stored)))

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()
        self._timers.cancel_all()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def _notice(self, change: Change) -> None:
        if change.resource in {CLAIMS, VOLUME_SNAPSHOTS}:
            if change.new is None:
                self._timers.cancel(change.last.obj["metadata"]["uid"])
            self._queue.add((change.resource.id, change.key))
        if change.resource is VOLUME_SNAPSHOTS or (change.resource is PODS and change.new is None):
            for stored in self._api.store.rows(CLAIMS, change.key[0]):
                self._queue.add((CLAIMS.id, _key(stored)))

    def _visit(self, item: tuple[str, Key]) -> None:
        resource_id, key = item
        if resource_id == CLAIMS.id:
            claim = self._api.store.get(CLAIMS, *key)
            if claim is not None:
                self._visit_claim(key, claim)
            return
        snapshot = self._api.store.get(VOLUME_SNAPSHOTS, *key)
        if snapshot is not None and not (snapshot.obj.get("status") or {}).get("readyToUse"):
            self._wait(snapshot, "ready", self._durations.snapshot_total, lambda: self._make_ready(key))

    def _visit_claim(self, key: Key, claim: Stored) -> None:
        metadata = claim.obj["metadata"]
        if "deletionTimestamp" in metadata:
            if PROTECTION in metadata.get("finalizers", ()) and not self._in_use(key):
                self._api.modify(CLAIMS, claim, lambda obj: without_finalizer(obj, PROTECTION))
            return
        if (claim.obj.get("status") or {}).get("phase") == "Bound" or not self._source_is_ready(key[0], claim.obj):
            return
        if "volume.kubernetes.io/storage-provisioner" not in (metadata.get("annotations") or {}):
            self._api.modify(CLAIMS, claim, _provisioned)
            return
        copied = claim.obj["spec"].get("dataSource") is not None
        seconds = self._durations.snapshot_restore if copied else self._durations.volume_bind
        self._wait(claim, "bind", seconds, lambda: self._bind(key))

    def _source_is_ready(self, namespace: str, claim: Json) -> bool:
        source = claim["spec"].get("dataSource") or {}
        if source.get("apiGroup") != _SNAPSHOT_GROUP:
            return True
        snapshot = self._api.store.get(VOLUME_SNAPSHOTS, namespace, source["name"])
        return snapshot is not None and bool((snapshot.obj.get("status") or {}).get("readyToUse"))

    def _bind(self, key: Key) -> None:
        claim = self._api.store.get(CLAIMS, *key)
        if claim is None or "deletionTimestamp" in claim.obj["metadata"]:
            return
        claim = self._api.modify(CLAIMS, claim, _bound_spec)
        self._api.modify(CLAIMS, claim, _bound_status)

    def _make_ready(self, key: Key) -> None:
        snapshot = self._api.store.get(VOLUME_SNAPSHOTS, *key)
        if snapshot is None:
            return
        name = (snapshot.obj["spec"].get("source") or {}).get("persistentVolumeClaimName", "")
        claim = self._api.store.get(CLAIMS, key[0], name)
        if claim is None:
            return
        size = (claim.obj.get("status") or {}).get("capacity", {}).get("storage", "0")
        status = {
            "boundVolumeSnapshotContentName": f"snapcontent-{snapshot.obj['metadata']['uid']}",
            "creationTime": stamp(self._api.clock.now()),
            "readyToUse": True,
            "restoreSize": size,
        }
        self._api.modify(VOLUME_SNAPSHOTS, snapshot, lambda obj: {**obj, "status": status})

    def _wait(self, stored: Stored, stage: str, seconds: float, done: Callable[[], None]) -> None:
        self._timers.ensure(stored.obj["metadata"]["uid"], stage, self._jitter.spread(seconds), done)

    def _in_use(self, key: Key) -> bool:
        return any(
            (volume.get("persistentVolumeClaim") or {}).get("claimName") == key[1]
            for pod in self._api.store.each(PODS)
            if pod.obj["metadata"]["namespace"] == key[0]
            for volume in pod.obj["spec"].get("volumes", ())
        )


def storage_classes(moment: str) -> list[tuple[Resource, Json]]:
    """The classes every dev cluster has: one that binds at once, and one for its snapshots."""
    return [
        (
            STORAGE_CLASSES,
            {
                "apiVersion": STORAGE_CLASSES.api_version,
                "kind": STORAGE_CLASSES.kind,
                "metadata": {
                    "name": STORAGE_CLASS,
                    "uid": str(uuid.uuid4()),
                    "creationTimestamp": moment,
                    "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
                },
                "provisioner": PROVISIONER,
                "reclaimPolicy": "Delete",
                "volumeBindingMode": "Immediate",
                "allowVolumeExpansion": True,
            },
        ),
        (
            VOLUME_SNAPSHOT_CLASSES,
            {
                "apiVersion": VOLUME_SNAPSHOT_CLASSES.api_version,
                "kind": VOLUME_SNAPSHOT_CLASSES.kind,
                "metadata": {"name": SNAPSHOT_CLASS, "uid": str(uuid.uuid4()), "creationTimestamp": moment},
                "driver": PROVISIONER,
                "deletionPolicy": "Delete",
            },
        ),
    ]


def build_claim(name: str, owner: Json, spec: Json, moment: str, **metadata: Json) -> Json:
    """A claim that `owner` controls, as its controller creates it."""
    full = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": STORAGE_CLASS,
        "volumeMode": "Block",
        **spec,
    }
    return {
        "apiVersion": CLAIMS.api_version,
        "kind": CLAIMS.kind,
        "metadata": {
            "name": name,
            "namespace": owner["metadata"]["namespace"],
            "uid": str(uuid.uuid4()),
            "creationTimestamp": moment,
            **metadata,
            "ownerReferences": [
                {
                    "apiVersion": owner["apiVersion"],
                    "kind": owner["kind"],
                    "name": owner["metadata"]["name"],
                    "uid": owner["metadata"]["uid"],
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
            "finalizers": [PROTECTION],
        },
        "spec": full,
        "status": {"phase": "Pending"},
    }


def _provisioned(claim: Json) -> Json:
    return _annotated(
        claim,
        {
            "volume.beta.kubernetes.io/storage-provisioner": PROVISIONER,
            "volume.kubernetes.io/storage-provisioner": PROVISIONER,
        },
    )


def _bound_spec(claim: Json) -> Json:
    bound = {"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"}
    spec = {**claim["spec"], "volumeName": f"pvc-{claim['metadata']['uid']}"}
    return {**_annotated(claim, bound), "spec": spec}


def _bound_status(claim: Json) -> Json:
    capacity = {"storage": claim["spec"]["resources"]["requests"]["storage"]}
    status = {"phase": "Bound", "accessModes": claim["spec"]["accessModes"], "capacity": capacity}
    return {**claim, "status": status}


def _annotated(obj: Json, annotations: dict[str, str]) -> Json:
    metadata = obj["metadata"]
    return {**obj, "metadata": {**metadata, "annotations": {**(metadata.get("annotations") or {}), **annotations}}}


def _key(stored: Stored) -> Key:
    metadata = stored.obj["metadata"]
    return (metadata["namespace"], metadata["name"])
