"""The storage driver: binds claims by their class, fills them from their source, and keeps them while in use."""

from datetime import datetime
from typing import Any

from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.events import EventRecorder
from app.devcluster.apiserver.objects import (
    Key,
    annotations_of,
    finalizers_of,
    new_object,
    status_of,
    with_annotations,
    without_finalizer,
)
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
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.durations import Durations, Jitter
from app.devcluster.faults.book import FaultBook
from app.devcluster.faults.controller import FaultyController
from app.devcluster.storage.backend import BLANK, Origin, StorageBackend
from app.devcluster.storage.storage_classes import default_class, find_class, waits_for_consumer
from app.devcluster.storage.volumes import (
    build_volume,
    content_name,
    data_of,
    filler_of,
    has_booted,
    has_consumer,
    is_bound,
    pods_using,
    snapshot_driver,
    snapshot_has_booted,
    volume_name,
    volume_of_claim,
)

PROTECTION = "kubernetes.io/pvc-protection"
BIND_NOW = "cdi.kubevirt.io/storage.bind.immediate.requested"
_SNAPSHOT_GROUP = "snapshot.storage.k8s.io"
_RETRY_SECONDS = 5.0


class StorageDriver(FaultyController):
    resource = CLAIMS

    def __init__(
        self, api: Api, durations: Durations, jitter: Jitter, faults: FaultBook, backend: StorageBackend
    ) -> None:
        super().__init__(api, durations, jitter, faults)
        self._backend = backend
        self._events = EventRecorder(api, "external-provisioner")

    @override
    def _forget(self, uid: str) -> None:
        super()._forget(uid)
        self._backend.cancel(uid)
        self._backend.discard(volume_of_claim(uid))

    @override
    def _react(self, change: Change) -> None:
        if change.resource is STORAGE_CLASSES:
            self.resume()
        elif change.resource in {CLAIMS, VOLUME_SNAPSHOTS} or (
            change.resource in {PODS, VIRTUAL_MACHINE_INSTANCES} and (change.old is None or change.new is None)
        ):
            # All claims that still wait or leave: one may be the source of another, or free now.
            for stored in self._store.rows(CLAIMS, change.key[0]):
                if not is_bound(stored.obj) or stored.deleting:
                    self._queue.add(stored.key)

    @override
    def _reconcile(self, stored: Stored) -> None:
        claim, key = stored.obj, stored.key
        if stored.deleting:
            self._backend.cancel(stored.uid)
            if PROTECTION in finalizers_of(claim) and not pods_using(self._store, key[0], [key[1]]):
                self._api.modify(CLAIMS, stored, lambda obj: without_finalizer(obj, PROTECTION))
            return
        if is_bound(claim):
            return
        name = claim["spec"].get("storageClassName")
        if name is None:
            chosen = default_class(self._store)
            if chosen:
                spec = {**claim["spec"], "storageClassName": chosen}
                self._api.modify(CLAIMS, stored, lambda obj: {**obj, "spec": spec})
            return
        storage_class = find_class(self._store, name)
        if storage_class is None or (waits_for_consumer(storage_class) and not self._is_wanted(key, claim)):
            return
        if "volume.kubernetes.io/storage-provisioner" not in annotations_of(claim):
            self._api.modify(CLAIMS, stored, lambda obj: _provisioned(obj, storage_class["provisioner"]))
            return
        origin = self._origin(key[0], claim, storage_class)
        if origin is None or self._faults.on_object("claim-never-binds", CLAIMS.plural, claim) is not None:
            self._backend.cancel(stored.uid)
        elif self._timers.waits_for(stored.uid) is None:
            self._backend.make(
                stored.uid,
                data_of(claim),
                origin,
                lambda: self._bind(key),
                lambda problem: self._retry_later(stored, problem),
            )

    def _retry_later(self, stored: Stored, problem: str) -> None:
        storage_class = stored.obj["spec"]["storageClassName"]
        told = f'failed to provision volume with StorageClass "{storage_class}": rpc error: code = Internal desc = {problem}'
        self._events.record(stored.obj, "ProvisioningFailed", told, warning=True)
        self._timers.ensure(stored.uid, "retry", _RETRY_SECONDS, lambda: self._queue.add(stored.key))

    def _is_wanted(self, key: Key, claim: Json) -> bool:
        """Whether a claim that waits for its first consumer has one: a pod, a VMI, or an import told not to wait."""
        filler = filler_of(self._store, claim)
        if filler is not None and annotations_of(filler).get(BIND_NOW) == "true":
            return True
        return has_consumer(self._store, *key)

    def _origin(self, namespace: str, claim: Json, storage_class: Json) -> Origin | None:
        """What the volume begins with; None where its source is missing, not ready, or does not fit."""
        source = claim["spec"].get("dataSource") or {}
        asked = whole(claim["spec"]["resources"]["requests"]["storage"])
        if source.get("apiGroup") == _SNAPSHOT_GROUP:
            snapshot = self._store.get(VOLUME_SNAPSHOTS, namespace, source["name"])
            status = status_of(snapshot.obj) if snapshot else {}
            if snapshot is None or not status.get("readyToUse") or whole(status.get("restoreSize", "0")) > asked:
                return None
            fits = snapshot_driver(self._store, snapshot.obj) == storage_class["provisioner"]
            return Origin("snapshot", content_name(snapshot.obj)) if fits else None
        if source.get("kind") == CLAIMS.kind:
            origin = self._store.get(CLAIMS, namespace, source["name"])
            same = (
                origin is not None and origin.obj["spec"].get("storageClassName") == claim["spec"]["storageClassName"]
            )
            found = origin is not None and same and is_bound(origin.obj)
            return Origin("volume", volume_name(origin.obj)) if origin is not None and found else None
        return BLANK

    def _bind(self, key: Key) -> None:
        claim = self._current(key)
        if claim is None:
            return
        provisioner = (find_class(self._store, claim.obj["spec"]["storageClassName"]) or {}).get("provisioner", "")
        booted = self._source_has_booted(key[0], claim.obj)
        volume = build_volume(claim.obj, provisioner, self._api.clock.now(), booted=booted)
        self._store.put(PERSISTENT_VOLUMES, volume)
        claim = self._api.modify(CLAIMS, claim, _bound_spec)
        self._api.modify(CLAIMS, claim, _bound_status)

    def _source_has_booted(self, namespace: str, claim: Json) -> bool:
        source = claim["spec"].get("dataSource") or {}
        if source.get("apiGroup") == _SNAPSHOT_GROUP:
            snapshot = self._store.get(VOLUME_SNAPSHOTS, namespace, source["name"])
            return snapshot is not None and snapshot_has_booted(self._store, snapshot.obj)
        return source.get("kind") == CLAIMS.kind and has_booted(self._store, namespace, source["name"])


def build_claim(name: str, owner: Json, spec: Json, now: datetime, **metadata: Any) -> Json:
    """A claim in the namespace of `owner`, as a controller creates it."""
    claim = new_object(CLAIMS, name, owner["metadata"]["namespace"], now, finalizers=[PROTECTION], **metadata)
    return {**claim, "spec": spec, "status": {"phase": "Pending"}}


def _provisioned(claim: Json, provisioner: str) -> Json:
    return with_annotations(
        claim,
        {
            "volume.beta.kubernetes.io/storage-provisioner": provisioner,
            "volume.kubernetes.io/storage-provisioner": provisioner,
        },
    )


def _bound_spec(claim: Json) -> Json:
    bound = {"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"}
    spec = {**claim["spec"], "volumeName": volume_name(claim)}
    return {**with_annotations(claim, bound), "spec": spec}


def _bound_status(claim: Json) -> Json:
    capacity = {"storage": claim["spec"]["resources"]["requests"]["storage"]}
    status = {"phase": "Bound", "accessModes": claim["spec"]["accessModes"], "capacity": capacity}
    return {**claim, "status": status}
