"""CDI's DataSources, and the sources of DataVolumes (CDI v1.66.0)."""

from dataclasses import dataclass, field

from typing_extensions import override

from app.devcluster.apiserver.controller import KindController
from app.devcluster.apiserver.objects import phase_of, status_of
from app.devcluster.apiserver.registry import CLAIMS, DATA_SOURCES, DATA_VOLUMES, VOLUME_SNAPSHOTS
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Store, Stored
from app.devcluster.cdi.conditions import cdi_condition
from app.devcluster.cdi.storage_profiles import clone_strategy
from app.devcluster.storage.backend import Origin
from app.devcluster.storage.storage_classes import find_class
from app.devcluster.storage.volumes import (
    content_name,
    has_booted,
    is_bound,
    is_populated,
    pods_using,
    snapshot_driver,
    snapshot_has_booted,
    volume_name,
)

IMPORTS = frozenset({"http", "s3", "gcs", "registry", "imageio", "vddk", "blank"})
_DEPTH = 5


@dataclass(frozen=True, slots=True)
class Source:
    """`kind` is the kind of source in the DataVolume, `given` what stands there; namespace and name are set for a clone."""

    kind: str
    namespace: str = ""
    name: str = ""
    given: Json = field(default_factory=dict)

    @property
    def is_clone(self) -> bool:
        return self.kind in {"pvc", "snapshot"}


def find_source(store: Store, volume: Json) -> Source | None:
    """The source, resolved through DataSources; None where the last of those is missing or empty."""
    namespace = volume["metadata"]["namespace"]
    given = volume["spec"].get("source") or {}
    reference = volume["spec"].get("sourceRef")
    for _ in range(_DEPTH):
        if not reference:
            break
        namespace = reference.get("namespace") or namespace
        found = store.get(DATA_SOURCES, namespace, reference["name"])
        given = (found.obj["spec"].get("source") or {}) if found else {}
        reference = given.get("dataSource")
    kind = next(iter(given), "")
    if not kind or kind == "dataSource":
        return None
    if kind in {"pvc", "snapshot"}:
        return Source(kind, given[kind].get("namespace") or namespace, given[kind]["name"])
    return Source(kind, given=given[kind] or {})


def is_there(store: Store, source: Source) -> bool:
    resource = CLAIMS if source.kind == "pvc" else VOLUME_SNAPSHOTS
    return store.get(resource, source.namespace, source.name) is not None


def size_of(store: Store, source: Source) -> str:
    """The size of a clone that names none; "0" where it is not known."""
    if source.kind == "pvc":
        claim = store.get(CLAIMS, source.namespace, source.name)
        return str(claim.obj["spec"]["resources"]["requests"]["storage"]) if claim else "0"
    snapshot = store.get(VOLUME_SNAPSHOTS, source.namespace, source.name)
    return str(status_of(snapshot.obj).get("restoreSize", "0")) if snapshot else "0"


def is_ready(store: Store, source: Source) -> bool:
    """Whether a clone may begin: a claim must be filled and not be used by a pod; a snapshot must be ready."""
    if source.kind == "snapshot":
        snapshot = store.get(VOLUME_SNAPSHOTS, source.namespace, source.name)
        return snapshot is not None and bool(status_of(snapshot.obj).get("readyToUse"))
    claim = store.get(CLAIMS, source.namespace, source.name)
    if claim is None or not is_bound(claim.obj) or not is_populated(store, claim.obj):
        return False
    return not pods_using(store, source.namespace, [source.name])


def origin_of(store: Store, source: Source) -> Origin:
    """The data of the source of a clone, with no handle where it is gone."""
    if source.kind == "pvc":
        claim = store.get(CLAIMS, source.namespace, source.name)
        return Origin("volume", volume_name(claim.obj) if claim else "")
    snapshot = store.get(VOLUME_SNAPSHOTS, source.namespace, source.name)
    return Origin("snapshot", content_name(snapshot.obj) if snapshot else "")


def source_has_booted(store: Store, source: Source) -> bool:
    if source.kind == "pvc":
        return has_booted(store, source.namespace, source.name)
    snapshot = store.get(VOLUME_SNAPSHOTS, source.namespace, source.name)
    return snapshot is not None and snapshot_has_booted(store, snapshot.obj)


def strategy_for(store: Store, source: Source, claim: Json) -> str:
    """How a clone is made: `csi-clone`, `snapshot`, `restore` (of a snapshot), or `copy` where drivers differ."""
    target = claim["spec"].get("storageClassName", "")
    driver = (find_class(store, target) or {}).get("provisioner")
    if source.kind == "snapshot":
        snapshot = store.get(VOLUME_SNAPSHOTS, source.namespace, source.name)
        return "restore" if snapshot is not None and snapshot_driver(store, snapshot.obj) == driver else "copy"
    origin = store.get(CLAIMS, source.namespace, source.name)
    origin_class = find_class(store, origin.obj["spec"].get("storageClassName", "")) if origin else None
    return clone_strategy(store, target) if origin_class and origin_class["provisioner"] == driver else "copy"


class DataSourceController(KindController):
    """Keeps the condition Ready of each DataSource: whether its source exists and is complete."""

    resource = DATA_SOURCES

    @override
    def _react(self, change: Change) -> None:
        if change.resource in {CLAIMS, DATA_VOLUMES, VOLUME_SNAPSHOTS, DATA_SOURCES}:
            self.resume()

    @override
    def _reconcile(self, stored: Stored) -> None:
        namespace, name = stored.key
        source = find_source(self._store, {"spec": {"sourceRef": {"name": name}}, "metadata": {"namespace": namespace}})
        ready, message, reason = self._judge(source)
        old = status_of(stored.obj).get("conditions")
        condition = cdi_condition(old, "Ready", "True" if ready else "False", reason, message, self._moment())
        told: Json = {"conditions": [condition], "source": {}}
        if ready and source is not None:
            told["source"] = {source.kind: {"name": source.name, "namespace": source.namespace}}
        self._modify_status(stored, told)

    def _judge(self, source: Source | None) -> tuple[bool, str, str]:
        if source is None:
            return False, "No source PVC set", "NoSource"
        if not is_there(self._store, source):
            return False, "PVC not found" if source.kind == "pvc" else "Snapshot not found", "NotFound"
        if source.kind == "snapshot":
            if not is_ready(self._store, source):
                return False, "Snapshot phase is not ready", "SnapshotNotReady"
        else:
            filler = self._store.get(DATA_VOLUMES, source.namespace, source.name)
            phase = phase_of(filler.obj) if filler else "Succeeded"
            if phase != "Succeeded":
                return False, f"Import DataVolume phase {phase}", phase
        return True, "DataSource is ready to be consumed", "Ready"
