"""CDI's DataImportCrons: poll the source by a schedule, import new content, keep the last imports (CDI v1.66.0).

The first poll is at once.
"""

from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.controller import KindController
from app.devcluster.apiserver.objects import Key, annotations_of, labels_of, status_of, with_annotations
from app.devcluster.apiserver.registry import (
    CLAIMS,
    DATA_IMPORT_CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    STORAGE_PROFILES,
    VOLUME_SNAPSHOTS,
)
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.apiserver.times import parse_stamp, stamp
from app.devcluster.cdi.conditions import cdi_condition
from app.devcluster.cdi.cron_imports import CronImports, Import
from app.devcluster.cdi.cron_schedule import Schedule
from app.devcluster.cdi.data_volumes import CRON_LABEL
from app.devcluster.cdi.image_sources import digest_of, url_of
from app.devcluster.durations import Durations
from app.devcluster.storage.volumes import has_failed_attempt

_DIGEST = "cdi.kubevirt.io/storage.import.sourceDesiredDigest"
_LOOKED = "cdi.kubevirt.io/storage.import.lastCronTime"
_NEXT = "cdi.kubevirt.io/storage.import.nextCronTime"
_CLASS = "cdi.kubevirt.io/storage.import.storageClass"
_Told = tuple[str, str, str]


class DataImportCronController(KindController):
    resource = DATA_IMPORT_CRONS

    def __init__(self, api: Api, durations: Durations) -> None:
        super().__init__(api, durations.reaction)
        self._durations = durations
        self._imports = CronImports(api)

    def look_now(self, url: str) -> None:
        """Poll now for every cron of that URL, whatever its schedule."""
        for stored in self._store.rows(DATA_IMPORT_CRONS):
            if url_of(stored.obj) == url:
                self._look(stored.key)

    @override
    def _react(self, change: Change) -> None:
        if change.resource is STORAGE_PROFILES:
            self.resume()
        elif change.resource in {DATA_VOLUMES, CLAIMS, DATA_SOURCES, VOLUME_SNAPSHOTS}:
            name = labels_of(change.last.obj).get(CRON_LABEL)
            if name:
                self._queue.add((change.key[0], name))

    @override
    def _handle(self, key: Key) -> None:
        if self._store.get(DATA_IMPORT_CRONS, *key) is None:
            self._imports.clean_up(key)
        super()._handle(key)

    @override
    def _reconcile(self, stored: Stored) -> None:
        if not stored.deleting and self._is_manager(stored.obj):
            self._plan_look(stored)
            self._update(stored)

    def _is_manager(self, cron: Json) -> bool:
        """Whether this cron manages its DataSource: only the first cron that names it does."""
        name, namespace = cron["spec"]["managedDataSource"], cron["metadata"]["namespace"]
        source = self._store.get(DATA_SOURCES, namespace, name)
        manager = labels_of(source.obj).get(CRON_LABEL, "") if source else ""
        if manager in {"", cron["metadata"]["name"]}:
            return True
        other = self._store.get(DATA_IMPORT_CRONS, namespace, manager)
        return other is None or other.obj["spec"]["managedDataSource"] != name

    # Polling the source

    def _plan_look(self, stored: Stored) -> None:
        cron = stored.obj
        schedule = cron["spec"].get("schedule")
        if not schedule:
            return
        looked = annotations_of(cron).get(_LOOKED, "")
        now = self._api.clock.now()
        if not looked:
            delay = self._durations.cron_poll
        else:
            due = Schedule.parse(schedule).next(parse_stamp(looked))
            if due is None:
                return
            delay = max(0.0, (due - now).total_seconds())
        self._timers.ensure(stored.uid, f"look-{looked}", delay, lambda: self._look(stored.key))

    def _look(self, key: Key) -> None:
        stored = self._store.get(DATA_IMPORT_CRONS, *key)
        if stored is None:
            return
        now = self._api.clock.now()
        found = {_LOOKED: stamp(now)}
        digest = digest_of(self._store, stored.obj)
        if digest:
            found[_DIGEST] = digest
        if "pvc" in stored.obj["spec"]["template"]["spec"].get("source", {}):
            due = (
                Schedule.parse(stored.obj["spec"]["schedule"]).next(now) if stored.obj["spec"].get("schedule") else None
            )
            found |= {_NEXT: stamp(due)} if due else {}
        self._api.modify(DATA_IMPORT_CRONS, stored, lambda obj: with_annotations(obj, found))

    # Importing

    def _update(self, stored: Stored) -> None:
        cron, now = stored.obj, self._api.clock.now()
        status = {**status_of(cron)}
        imports = list(status.get("currentImports") or [])
        name = imports[0]["DataVolumeName"] if imports else ""
        current = self._imports.find(cron, name)
        if current.succeeded:
            self._note_success(cron, status, name)
            self._imports.settle(cron, current, now)
            current = self._imports.find(cron, name)
        elif current.volume is None:
            imports = imports[1:]
        progress = _progress(current)
        self._imports.point(cron, status.get("lastImportedPVC"))
        wanted = annotations_of(cron).get(_DIGEST, "")
        outdated = bool(wanted) and (not imports or imports[0]["Digest"] != wanted)
        if outdated:
            if current.volume is not None and has_failed_attempt(current.volume.obj):
                self._imports.discard(current.volume)
                imports = []
            if current.succeeded or not imports:
                imports = [self._imports.begin(cron, wanted, now)]
        elif current.succeeded:
            status["sourceFormat"] = self._imports.source_format(cron)
        looked = annotations_of(cron).get(_LOOKED, "")
        if looked:
            status["lastExecutionTimestamp"] = looked
        old, moment = status.get("conditions"), stamp(now)
        told = _currency(current, status.get("sourceFormat", ""), outdated=outdated, importing=bool(imports))
        status["conditions"] = [
            cdi_condition(old, "Progressing", *progress, moment),
            cdi_condition(old, "UpToDate", *told, moment),
        ]
        status["currentImports"] = imports
        if not imports:
            del status["currentImports"]
        storage_class = self._imports.storage_class(cron)
        noted = {_CLASS: storage_class} if storage_class else {}
        self._api.modify(DATA_IMPORT_CRONS, stored, lambda obj: {**with_annotations(obj, noted), "status": status})

    def _note_success(self, cron: Json, status: Json, name: str) -> None:
        imported = {"name": name, "namespace": cron["metadata"]["namespace"]}
        if status.get("lastImportedPVC") != imported:
            status["lastImportedPVC"] = imported
            status["lastImportTimestamp"] = stamp(self._api.clock.now())


def _progress(current: Import) -> _Told:
    if current.succeeded or current.volume is None:
        return "False", "NoImport", "No current import"
    if current.phase == "ImportScheduled":
        return "False", "ImportScheduled", "Import is scheduled"
    if current.phase == "ImportInProgress":
        return "True", "ImportProgressing", "Import is progressing"
    return "False", current.phase, f"Import DataVolume phase {current.phase}"


def _currency(current: Import, source_format: str, *, outdated: bool, importing: bool) -> _Told:
    """The condition UpToDate: whether the last import is what the source has now."""
    if outdated:
        return "False", "Outdated", "Source digest updated since last import"
    if current.succeeded and source_format == "snapshot" and not current.snapshot_ready:
        return "False", "ImportProgressing", "Snapshot of imported data is progressing"
    if current.succeeded:
        return "True", "UpToDate", "Latest import is up to date"
    if importing:
        return "False", "ImportProgressing", "Import is progressing"
    return "False", "NoDigest", "No source digest"
