"""The imports of a DataImportCron: DataVolumes or VolumeSnapshots, and the DataSource that points at the last one.

Where the profile of the storage class says `snapshot`, an import becomes a VolumeSnapshot and its claim is deleted (CDI
v1.66.0).
"""

from dataclasses import dataclass
from datetime import datetime

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.deletion import DeleteOptions, delete
from app.devcluster.apiserver.objects import (
    Key,
    annotations_of,
    labels_of,
    new_object,
    phase_of,
    status_of,
    with_annotations,
)
from app.devcluster.apiserver.registry import (
    CLAIMS,
    DATA_SOURCES,
    DATA_VOLUMES,
    STORAGE_PROFILES,
    VOLUME_SNAPSHOTS,
    Resource,
)
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Stored
from app.devcluster.cdi.data_volumes import CRON_LABEL
from app.devcluster.cdi.image_sources import pinned, url_of
from app.devcluster.storage.driver import BIND_NOW
from app.devcluster.storage.storage_classes import default_class

_USED = "cdi.kubevirt.io/storage.import.lastUseTime"
_CLEANUP = f"{CRON_LABEL}.cleanup"
_IMPORTS_TO_KEEP = 3
_SUFFIX = 12


@dataclass(frozen=True, slots=True)
class Import:
    """The objects of one import that exist."""

    volume: Stored | None
    claim: Stored | None
    snapshot: Stored | None

    @property
    def phase(self) -> str:
        return phase_of(self.volume.obj) if self.volume else ""

    @property
    def succeeded(self) -> bool:
        if self.volume is not None:
            return self.phase == "Succeeded"
        return self.claim is not None or self.snapshot is not None

    @property
    def snapshot_ready(self) -> bool:
        return self.snapshot is not None and bool(status_of(self.snapshot.obj).get("readyToUse"))


class CronImports:
    def __init__(self, api: Api) -> None:
        self._api = api

    def find(self, cron: Json, name: str) -> Import:
        namespace = cron["metadata"]["namespace"]
        if not name:
            return Import(None, None, None)
        store = self._api.store
        kinds = (DATA_VOLUMES, CLAIMS, VOLUME_SNAPSHOTS)
        return Import(*(store.get(resource, namespace, name) for resource in kinds))

    def source_format(self, cron: Json) -> str:
        """`pvc` or `snapshot`, depending on the storage class."""
        profile = self._api.store.get(STORAGE_PROFILES, "", self.storage_class(cron))
        return str(status_of(profile.obj).get("dataImportCronSourceFormat", "pvc")) if profile else "pvc"

    def storage_class(self, cron: Json) -> str:
        spec = cron["spec"]["template"]["spec"]
        named = (spec.get("pvc") or spec.get("storage") or {}).get("storageClassName")
        return str(named or default_class(self._api.store, for_machines=True))

    def begin(self, cron: Json, digest: str, now: datetime) -> Json:
        """Import this digest, or keep the import of it that exists. Gives the entry of currentImports."""
        namespace = cron["metadata"]["namespace"]
        name = f"{cron['spec']['managedDataSource']}-{digest.partition(':')[2][:_SUFFIX]}"
        found = self.find(cron, name)
        kept, resource = (found.snapshot, VOLUME_SNAPSHOTS) if found.snapshot else (found.claim, CLAIMS)
        if kept is not None:
            self._api.modify(resource, kept, lambda obj: with_annotations(obj, {_USED: now.isoformat()}))
        elif found.volume is None:
            self._api.store.put(DATA_VOLUMES, self._build_volume(cron, name, namespace, digest, now))
        return {"DataVolumeName": name, "Digest": digest}

    def settle(self, cron: Json, done: Import, now: datetime) -> None:
        """After a success: make a snapshot of it where that is the format, and delete the oldest imports."""
        if done.claim is not None and not annotations_of(done.claim.obj).get(_USED):
            self._api.modify(CLAIMS, done.claim, lambda obj: with_annotations(obj, {_USED: now.isoformat()}))
        if self.source_format(cron) == "snapshot":
            self._snapshot(cron, done, now)
        elif done.snapshot is not None:
            self._delete(VOLUME_SNAPSHOTS, done.snapshot)
        if cron["spec"].get("garbageCollect", "Outdated") != "Outdated":
            return
        kept = cron["spec"].get("importsToKeep")
        limit = _IMPORTS_TO_KEEP if kept is None else kept
        for resource in (CLAIMS, VOLUME_SNAPSHOTS):
            found = self._labelled(resource, cron["metadata"]["namespace"], cron["metadata"]["name"])
            found.sort(key=lambda item: annotations_of(item.obj).get(_USED, ""), reverse=True)
            for item in found[limit:]:
                self._drop(resource, item)

    def point(self, cron: Json, imported: Json | None) -> None:
        """Point the managed DataSource at the last import; a DataSource of somebody else is left alone."""
        namespace, name = cron["metadata"]["namespace"], cron["spec"]["managedDataSource"]
        source = self._api.store.get(DATA_SOURCES, namespace, name)
        if source is None:
            built = self._build(DATA_SOURCES, name, namespace, self._labels(cron))
            source = self._api.store.put(DATA_SOURCES, {**built, "spec": {"source": {}}})
        if labels_of(source.obj).get(CRON_LABEL) != cron["metadata"]["name"] or not imported:
            return
        target = {self.source_format(cron): imported}
        self._api.modify(DATA_SOURCES, source, lambda obj: {**obj, "spec": {"source": target}})

    def clean_up(self, key: Key) -> None:
        """Delete what a deleted cron made, where its retention policy was None."""
        for resource in (DATA_SOURCES, DATA_VOLUMES, CLAIMS, VOLUME_SNAPSHOTS):
            for stored in self._labelled(resource, *key):
                if labels_of(stored.obj).get(_CLEANUP) == "true":
                    self._delete(resource, stored)

    def discard(self, stored: Stored) -> None:
        """Delete an import that failed, so that the next can begin."""
        self._delete(DATA_VOLUMES, stored)

    def _snapshot(self, cron: Json, done: Import, now: datetime) -> None:
        if done.claim is None:
            return
        if done.snapshot is None:
            claim = done.claim.obj
            name, namespace = claim["metadata"]["name"], claim["metadata"]["namespace"]
            built = self._build(VOLUME_SNAPSHOTS, name, namespace, {"cdi.kubevirt.io": "", **self._labels(cron)})
            noted = {
                _USED: now.isoformat(),
                "cdi.kubevirt.io/storage.import.sourceVolumeMode": claim["spec"].get("volumeMode", "Filesystem"),
            }
            spec = {"source": {"persistentVolumeClaimName": name}}
            self._api.store.put(VOLUME_SNAPSHOTS, with_annotations({**built, "spec": spec}, noted))
        elif done.snapshot_ready:
            self._drop(CLAIMS, done.claim)

    def _build_volume(self, cron: Json, name: str, namespace: str, digest: str, now: datetime) -> Json:
        template = cron["spec"]["template"]
        built = self._build(DATA_VOLUMES, name, namespace, {**labels_of(template), **self._labels(cron)})
        spec = template["spec"]
        if url_of(cron):
            registry = {**spec["source"]["registry"], "url": pinned(url_of(cron), digest)}
            spec = {**spec, "source": {"registry": registry}}
        noted = {**annotations_of(template), BIND_NOW: "true", _USED: now.isoformat()}
        return with_annotations({**built, "spec": spec}, noted)

    def _labels(self, cron: Json) -> dict[str, str]:
        labels = {"app": "containerized-data-importer", CRON_LABEL: cron["metadata"]["name"]}
        return {**labels, _CLEANUP: "true"} if cron["spec"].get("retentionPolicy") == "None" else labels

    def _build(self, resource: Resource, name: str, namespace: str, labels: dict[str, str]) -> Json:
        return new_object(resource, name, namespace, self._api.clock.now(), labels=labels)

    def _labelled(self, resource: Resource, namespace: str, cron_name: str) -> list[Stored]:
        return [
            stored
            for stored in self._api.store.rows(resource, namespace)
            if labels_of(stored.obj).get(CRON_LABEL) == cron_name
        ]

    def _drop(self, resource: Resource, stored: Stored) -> None:
        """Delete an import; a claim goes with its DataVolume, where that still exists."""
        volume = self._api.store.get(DATA_VOLUMES, *stored.key)
        if resource is CLAIMS and volume is not None:
            self._delete(DATA_VOLUMES, volume)
        else:
            self._delete(resource, stored)

    def _delete(self, resource: Resource, stored: Stored) -> None:
        if not stored.deleting:
            delete(self._api, resource, *stored.key, DeleteOptions(uid=stored.uid))
