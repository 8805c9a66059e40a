"""CDI's DataImportCrons: look at the source by a schedule, import what is new, keep the last ones (CDI v1.66.0).

The first look is at once.
"""

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import find
from app.devcluster.apiserver.objects import Change, Key, Stored
from app.devcluster.apiserver.registry import (
    CLAIMS,
    DATA_IMPORT_CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    STORAGE_PROFILES,
    VOLUME_SNAPSHOTS,
)
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.times import parse_stamp, stamp
from app.devcluster.apiserver.work import Timers, WorkQueue
from app.devcluster.cdi.conditions import cdi_condition
from app.devcluster.cdi.cron_imports import CronImports, Import, annotated, annotation
from app.devcluster.cdi.cron_schedule import Schedule
from app.devcluster.cdi.data_volumes import CRON_LABEL
from app.devcluster.cdi.image_sources import digest_of, url_of
from app.devcluster.durations import Durations

_DIGEST = "cdi.kubevirt.io/storage.import.sourceDesiredDigest"
_LOOKED = "cdi.kubevirt.io/storage.import.lastCronTime"
_NEXT = "cdi.kubevirt.io/storage.import.nextCronTime"
_CLASS = "cdi.kubevirt.io/storage.import.storageClass"
_BROKEN = frozenset({"Error", "ImagePullFailed"})
_Told = tuple[str, str, str]


class DataImportCronController:
    def __init__(self, api: Api, durations: Durations) -> None:
        self._api = api
        self._durations = durations
        self._imports = CronImports(api)
        self._timers: Timers[str] = Timers(api.clock)
        self._queue: WorkQueue[Key] = WorkQueue("dataimportcron", self._visit, api.clock, durations.reaction)
        self._unsubscribe = api.store.subscribe(self._notice)

    def resume(self) -> None:
        for stored in self._api.store.each(DATA_IMPORT_CRONS):
            self._queue.add((stored.obj["metadata"]["namespace"], stored.obj["metadata"]["name"]))

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()
        self._timers.cancel_all()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def look_now(self, url: str) -> None:
        """Every cron of that URL looks at once, whatever its schedule."""
        for stored in self._api.store.rows(DATA_IMPORT_CRONS):
            if url_of(stored.obj) == url:
                self._look((stored.obj["metadata"]["namespace"], stored.obj["metadata"]["name"]))

    def _notice(self, change: Change) -> None:
        if change.resource is DATA_IMPORT_CRONS:
            if change.new is None:
                self._timers.cancel(change.last.obj["metadata"]["uid"])
            self._queue.add(change.key)
        elif change.resource is STORAGE_PROFILES:
            self.resume()
        elif change.resource in {DATA_VOLUMES, CLAIMS, DATA_SOURCES, VOLUME_SNAPSHOTS}:
            name = (change.last.obj["metadata"].get("labels") or {}).get(CRON_LABEL)
            if name:
                self._queue.add((change.key[0], name))

    def _visit(self, key: Key) -> None:
        stored = self._api.store.get(DATA_IMPORT_CRONS, *key)
        if stored is None:
            self._imports.clean_up(key)
            return
        if "deletionTimestamp" in stored.obj["metadata"] or not self._is_manager(stored.obj):
            return
        self._plan_look(key, stored.obj)
        self._update(stored)

    def _is_manager(self, cron: Json) -> bool:
        """One DataSource is kept by one cron: the first that has it."""
        name, namespace = cron["spec"]["managedDataSource"], cron["metadata"]["namespace"]
        source = self._api.store.get(DATA_SOURCES, namespace, name)
        manager = (source.obj["metadata"].get("labels") or {}).get(CRON_LABEL, "") if source else ""
        if manager in {"", cron["metadata"]["name"]}:
            return True
        other = self._api.store.get(DATA_IMPORT_CRONS, namespace, manager)
        return other is None or other.obj["spec"]["managedDataSource"] != name

    # Looking at the source

    def _plan_look(self, key: Key, cron: Json) -> None:
        schedule = cron["spec"].get("schedule")
        if not schedule:
            return
        looked = annotation(cron, _LOOKED)
        now = self._api.clock.now()
        if not looked:
            delay = self._durations.cron_poll
        else:
            due = Schedule.parse(schedule).next(parse_stamp(looked))
            if due is None:
                return
            delay = max(0.0, (due - now).total_seconds())
        self._timers.ensure(cron["metadata"]["uid"], f"look-{looked}", delay, lambda: self._look(key))

    def _look(self, key: Key) -> None:
        stored = self._api.store.get(DATA_IMPORT_CRONS, *key)
        if stored is None:
            return
        now = self._api.clock.now()
        found = {_LOOKED: stamp(now)}
        digest = digest_of(self._api.store, stored.obj)
        if digest:
            found[_DIGEST] = digest
        if "pvc" in stored.obj["spec"]["template"]["spec"].get("source", {}):
            due = (
                Schedule.parse(stored.obj["spec"]["schedule"]).next(now) if stored.obj["spec"].get("schedule") else None
            )
            found |= {_NEXT: stamp(due)} if due else {}
        self._api.modify(DATA_IMPORT_CRONS, stored, lambda obj: annotated(obj, found))

    # Importing

    def _update(self, stored: Stored) -> None:
        cron, now = stored.obj, self._api.clock.now()
        status = {**(cron.get("status") or {})}
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
        wanted = annotation(cron, _DIGEST)
        outdated = bool(wanted) and (not imports or imports[0]["Digest"] != wanted)
        if outdated:
            if current.volume is not None and _is_broken(current.volume.obj):
                self._imports.discard(current.volume)
                imports = []
            if current.succeeded or not imports:
                imports = [self._imports.begin(cron, wanted, now)]
        elif current.succeeded:
            status["sourceFormat"] = self._imports.source_format(cron)
        looked = annotation(cron, _LOOKED)
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
        self._api.modify(DATA_IMPORT_CRONS, stored, lambda obj: {**annotated(obj, noted), "status": status})

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
    """Whether what was imported is what the source has now."""
    if outdated:
        return "False", "Outdated", "Source digest updated since last import"
    if current.succeeded and source_format == "snapshot" and not current.snapshot_ready:
        return "False", "ImportProgressing", "Snapshot of imported data is progressing"
    if current.succeeded:
        return "True", "UpToDate", "Latest import is up to date"
    if importing:
        return "False", "ImportProgressing", "Import is progressing"
    return "False", "NoDigest", "No source digest"


def _is_broken(volume: Json) -> bool:
    running = find((volume.get("status") or {}).get("conditions"), "Running") or {}
    return running.get("status") == "False" and running.get("reason") in _BROKEN
