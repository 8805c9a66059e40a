"""The storage driver's claims: bound by their class, filled from their source, kept while in use."""

import uuid

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.garbage import without_finalizer
from app.devcluster.apiserver.objects import Change, Key, Stored
from app.devcluster.apiserver.quantities import whole
from app.devcluster.apiserver.registry import (
    CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    STORAGE_CLASSES,
    VIRTUAL_MACHINE_INSTANCES,
    VOLUME_SNAPSHOTS,
)
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.times import stamp
from app.devcluster.apiserver.work import Timers, WorkQueue
from app.devcluster.durations import Durations, Jitter
from app.devcluster.faults.faults import FaultBook
from app.devcluster.storage.storage_classes import default_class, find_class, waits_for_consumer
from app.devcluster.storage.volumes import (
    build_volume,
    filler_of,
    has_booted,
    has_consumer,
    is_bound,
    snapshot_driver,
    snapshot_has_booted,
)

PROTECTION = "kubernetes.io/pvc-protection"
BIND_NOW = "cdi.kubevirt.io/storage.bind.immediate.requested"
_SNAPSHOT_GROUP = "snapshot.storage.k8s.io"


class StorageDriver:
    def __init__(self, api: Api, durations: Durations, jitter: Jitter, faults: FaultBook) -> None:
        self._api = api
        self._durations = durations
        self._jitter = jitter
        self._faults = faults
        self._timers: Timers[str] = Timers(api.clock)
        self._queue: WorkQueue[tuple[str, Key]] = WorkQueue("storage", self._visit, api.clock)
        self._unsubscribe = api.store.subscribe(self._notice)
        faults.listen(self.resume)

    def resume(self) -> None:
        """Look at every claim and volume: after a start from a saved state, and when faults come or go."""
        for resource in (CLAIMS, PERSISTENT_VOLUMES):
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
        if change.resource is CLAIMS:
            if change.new is None:
                uid = change.last.obj["metadata"]["uid"]
                self._timers.cancel(uid)
                self._faults.forget(uid)
                self._queue.add((PERSISTENT_VOLUMES.id, ("", f"pvc-{uid}")))
            self._add_namespace(change.key[0])
        elif change.resource is VOLUME_SNAPSHOTS or (
            change.resource in {PODS, VIRTUAL_MACHINE_INSTANCES} and (change.old is None or change.new is None)
        ):
            self._add_namespace(change.key[0])
        elif change.resource is STORAGE_CLASSES:
            self.resume()

    def _add_namespace(self, namespace: str) -> None:
        """All claims that still wait or leave: one may be the source of another, or free now."""
        for stored in self._api.store.rows(CLAIMS, namespace):
            if not is_bound(stored.obj) or "deletionTimestamp" in stored.obj["metadata"]:
                self._queue.add((CLAIMS.id, _key(stored)))

    def _visit(self, item: tuple[str, Key]) -> None:
        resource_id, key = item
        if resource_id == CLAIMS.id:
            claim = self._api.store.get(CLAIMS, *key)
            if claim is not None:
                self._visit_claim(key, claim)
            return
        volume = self._api.store.get(PERSISTENT_VOLUMES, *key)
        if volume is not None and self._api.store.by_uid(volume.obj["spec"]["claimRef"]["uid"]) is None:
            self._api.store.remove(PERSISTENT_VOLUMES, *key)

    def _visit_claim(self, key: Key, claim: Stored) -> None:
        metadata = claim.obj["metadata"]
        if "deletionTimestamp" in metadata:
            self._timers.cancel(metadata["uid"])
            if PROTECTION in metadata.get("finalizers", ()) and not self._in_use(key):
                self._api.modify(CLAIMS, claim, lambda obj: without_finalizer(obj, PROTECTION))
            return
        if is_bound(claim.obj):
            return
        name = claim.obj["spec"].get("storageClassName")
        if name is None:
            chosen = default_class(self._api.store)
            if chosen:
                self._api.modify(CLAIMS, claim, lambda obj: _with_class(obj, chosen))
            return
        storage_class = find_class(self._api.store, name)
        if storage_class is None or (waits_for_consumer(storage_class) and not self._is_wanted(key, claim.obj)):
            return
        if "volume.kubernetes.io/storage-provisioner" not in (metadata.get("annotations") or {}):
            self._api.modify(CLAIMS, claim, lambda obj: _provisioned(obj, storage_class["provisioner"]))
            return
        seconds = self._seconds(key[0], claim.obj, storage_class)
        if seconds is None or self._faults.on_object("claim-never-binds", CLAIMS.plural, claim.obj) is not None:
            self._timers.cancel(metadata["uid"])
            return
        self._timers.ensure(metadata["uid"], "bind", self._jitter.spread(seconds), lambda: self._bind(key))

    def _is_wanted(self, key: Key, claim: Json) -> bool:
        """Whether a claim that waits for its first consumer has one: a pod, a VMI, or an import told not to wait."""
        filler = filler_of(self._api.store, claim)
        if filler is not None and (filler["metadata"].get("annotations") or {}).get(BIND_NOW) == "true":
            return True
        return has_consumer(self._api.store, *key)

    def _seconds(self, namespace: str, claim: Json, storage_class: Json) -> float | None:
        """How long the volume takes to make; None where its source is not there, not ready, or does not fit."""
        source = claim["spec"].get("dataSource") or {}
        asked = whole(claim["spec"]["resources"]["requests"]["storage"])
        if source.get("apiGroup") == _SNAPSHOT_GROUP:
            snapshot = self._api.store.get(VOLUME_SNAPSHOTS, namespace, source["name"])
            status = (snapshot.obj.get("status") or {}) if snapshot else {}
            if snapshot is None or not status.get("readyToUse") or whole(status.get("restoreSize", "0")) > asked:
                return None
            fits = snapshot_driver(self._api.store, snapshot.obj) == storage_class["provisioner"]
            return self._durations.snapshot_restore if fits else None
        if source.get("kind") == CLAIMS.kind:
            origin = self._api.store.get(CLAIMS, namespace, source["name"])
            same = (
                origin is not None and origin.obj["spec"].get("storageClassName") == claim["spec"]["storageClassName"]
            )
            return self._durations.clone_total if origin is not None and same and is_bound(origin.obj) else None
        return self._durations.volume_bind

    def _bind(self, key: Key) -> None:
        claim = self._api.store.get(CLAIMS, *key)
        if claim is None or "deletionTimestamp" in claim.obj["metadata"]:
            return
        storage_class = find_class(self._api.store, claim.obj["spec"]["storageClassName"]) or {}
        provisioner = storage_class.get("provisioner", "")
        moment = stamp(self._api.clock.now())
        volume = build_volume(claim.obj, provisioner, moment, booted=self._source_has_booted(key[0], claim.obj))
        self._api.store.put(PERSISTENT_VOLUMES, volume)
        claim = self._api.modify(CLAIMS, claim, _bound_spec)
        self._api.modify(CLAIMS, claim, _bound_status)

    def _source_has_booted(self, namespace: str, claim: Json) -> bool:
        source = claim["spec"].get("dataSource") or {}
        if source.get("apiGroup") == _SNAPSHOT_GROUP:
            snapshot = self._api.store.get(VOLUME_SNAPSHOTS, namespace, source["name"])
            return snapshot is not None and snapshot_has_booted(self._api.store, snapshot.obj)
        return source.get("kind") == CLAIMS.kind and has_booted(self._api.store, namespace, source["name"])

    def _in_use(self, key: Key) -> bool:
        return any(
            (volume.get("persistentVolumeClaim") or {}).get("claimName") == key[1]
            for pod in self._api.store.each(PODS)
            if pod.obj["metadata"]["namespace"] == key[0]
            for volume in pod.obj["spec"].get("volumes", ())
        )


def build_claim(name: str, owner: Json, spec: Json, moment: str, **metadata: Json) -> Json:
    """A claim that `owner` controls, as its controller creates it."""
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
        "spec": spec,
        "status": {"phase": "Pending"},
    }


def _with_class(claim: Json, name: str) -> Json:
    return {**claim, "spec": {**claim["spec"], "storageClassName": name}}


def _provisioned(claim: Json, provisioner: str) -> Json:
    return _annotated(
        claim,
        {
            "volume.beta.kubernetes.io/storage-provisioner": provisioner,
            "volume.kubernetes.io/storage-provisioner": provisioner,
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
    return (metadata.get("namespace", ""), metadata["name"])
