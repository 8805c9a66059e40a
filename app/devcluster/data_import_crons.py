"""CDI's DataImportCrons: look at the source by a schedule, import what is new, keep the last ones (CDI v1.66.0).

The first look is at once. What is imported is a PVC; sources kept as VolumeSnapshots are not simulated.
"""

import uuid
from datetime import datetime

from app.devcluster.api import Api
from app.devcluster.cdi_conditions import cdi_condition
from app.devcluster.conditions import find
from app.devcluster.cron_schedule import Schedule
from app.devcluster.data_volumes import CRON_LABEL
from app.devcluster.deletion import DeleteOptions, delete
from app.devcluster.durations import Durations
from app.devcluster.image_sources import digest_of, pinned, url_of
from app.devcluster.objects import Change, Key, Stored
from app.devcluster.registry import CLAIMS, DATA_IMPORT_CRONS, DATA_SOURCES, DATA_VOLUMES, VOLUME_SNAPSHOTS, Resource
from app.devcluster.status import Json
from app.devcluster.storage import BIND_NOW
from app.devcluster.storage_classes import default_class
from app.devcluster.times import parse_stamp, stamp
from app.devcluster.work import Timers, WorkQueue

_DIGEST = "cdi.kubevirt.io/storage.import.sourceDesiredDigest"
_LOOKED = "cdi.kubevirt.io/storage.import.lastCronTime"
_NEXT = "cdi.kubevirt.io/storage.import.nextCronTime"
_USED = "cdi.kubevirt.io/storage.import.lastUseTime"
_CLASS = "cdi.kubevirt.io/storage.import.storageClass"
_CLEANUP = f"{CRON_LABEL}.cleanup"
_IMPORTS_TO_KEEP = 3
_SUFFIX = 12
_BROKEN = frozenset({"Error", "ImagePullFailed"})


class DataImportCronController:
    def __init__(self, api: Api, durations: Durations) -> None:
        self._api = api
        self._durations = durations
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
        elif change.resource in {DATA_VOLUMES, CLAIMS, DATA_SOURCES}:
            name = (change.last.obj["metadata"].get("labels") or {}).get(CRON_LABEL)
            if name:
                self._queue.add((change.key[0], name))

    def _visit(self, key: Key) -> None:
        stored = self._api.store.get(DATA_IMPORT_CRONS, *key)
        if stored is None:
            self._clean_up(key)
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
        looked = _annotation(cron, _LOOKED)
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
        self._api.modify(DATA_IMPORT_CRONS, stored, lambda obj: _annotated(obj, found))

    # Importing

    def _update(self, stored: Stored) -> None:
        cron, now = stored.obj, self._api.clock.now()
        namespace = cron["metadata"]["namespace"]
        status = {**(cron.get("status") or {})}
        imports = list(status.get("currentImports") or [])
        name = imports[0]["DataVolumeName"] if imports else ""
        volume = self._api.store.get(DATA_VOLUMES, namespace, name) if name else None
        claim = self._api.store.get(CLAIMS, namespace, name) if name else None
        phase = (volume.obj.get("status") or {}).get("phase", "") if volume else ""
        succeeded = phase == "Succeeded" if volume else claim is not None
        progress = ("False", "NoImport", "No current import")
        if succeeded:
            self._succeed(cron, status, name, now)
        elif volume is not None:
            progress = _progress(phase)
        else:
            imports = imports[1:]
        self._keep_source(cron, status)
        wanted = _annotation(cron, _DIGEST)
        if wanted and (not imports or imports[0]["Digest"] != wanted):
            current = ("False", "Outdated", "Source digest updated since last import")
            if volume is not None and _is_broken(volume.obj):
                self._delete(DATA_VOLUMES, volume)
                imports = []
            if succeeded or not imports:
                imports = [self._begin(cron, wanted, now)]
        elif succeeded:
            status["sourceFormat"] = "pvc"
            current = ("True", "UpToDate", "Latest import is up to date")
        elif imports:
            current = ("False", "ImportProgressing", "Import is progressing")
        else:
            current = ("False", "NoDigest", "No source digest")
        looked = _annotation(cron, _LOOKED)
        if looked:
            status["lastExecutionTimestamp"] = looked
        old, moment = status.get("conditions"), stamp(now)
        status["conditions"] = [
            cdi_condition(old, "Progressing", *progress, moment),
            cdi_condition(old, "UpToDate", *current, moment),
        ]
        status["currentImports"] = imports
        if not imports:
            del status["currentImports"]
        storage_class = _storage_class(cron) or default_class(self._api.store, for_machines=True)
        noted = {_CLASS: storage_class} if storage_class else {}
        self._api.modify(DATA_IMPORT_CRONS, stored, lambda obj: {**_annotated(obj, noted), "status": status})

    def _succeed(self, cron: Json, status: Json, name: str, now: datetime) -> None:
        """The import is the latest; those beyond the number to keep go."""
        namespace = cron["metadata"]["namespace"]
        imported = {"name": name, "namespace": namespace}
        if status.get("lastImportedPVC") != imported:
            status["lastImportedPVC"] = imported
            status["lastImportTimestamp"] = stamp(now)
            claim = self._api.store.get(CLAIMS, namespace, name)
            if claim is not None:
                self._api.modify(CLAIMS, claim, lambda obj: _annotated(obj, {_USED: now.isoformat()}))
        if cron["spec"].get("garbageCollect", "Outdated") != "Outdated":
            return
        kept = cron["spec"].get("importsToKeep")
        limit = _IMPORTS_TO_KEEP if kept is None else kept
        claims = self._labelled(CLAIMS, namespace, cron["metadata"]["name"])
        claims.sort(key=lambda item: _annotation(item.obj, _USED), reverse=True)
        for item in claims[limit:]:
            volume = self._api.store.get(DATA_VOLUMES, namespace, item.obj["metadata"]["name"])
            self._delete(DATA_VOLUMES, volume) if volume else self._delete(CLAIMS, item)

    def _keep_source(self, cron: Json, status: Json) -> None:
        """The managed DataSource points at the last import; one that another made is left alone."""
        namespace, name = cron["metadata"]["namespace"], cron["spec"]["managedDataSource"]
        source = self._api.store.get(DATA_SOURCES, namespace, name)
        if source is None:
            metadata = self._metadata(name, namespace, self._labels(cron))
            empty = {"apiVersion": DATA_SOURCES.api_version, "kind": DATA_SOURCES.kind, "metadata": metadata}
            source = self._api.store.put(DATA_SOURCES, {**empty, "spec": {"source": {}}})
        if (source.obj["metadata"].get("labels") or {}).get(CRON_LABEL) != cron["metadata"]["name"]:
            return
        imported = status.get("lastImportedPVC")
        if imported:
            self._api.modify(DATA_SOURCES, source, lambda obj: {**obj, "spec": {"source": {"pvc": imported}}})

    def _begin(self, cron: Json, digest: str, now: datetime) -> Json:
        """Import what the digest names; what was imported before is taken as it is."""
        namespace = cron["metadata"]["namespace"]
        name = f"{cron['spec']['managedDataSource']}-{digest.partition(':')[2][:_SUFFIX]}"
        begun = {"DataVolumeName": name, "Digest": digest}
        claim = self._api.store.get(CLAIMS, namespace, name)
        if claim is not None:
            self._api.modify(CLAIMS, claim, lambda obj: _annotated(obj, {_USED: now.isoformat()}))
            return begun
        if self._api.store.get(DATA_VOLUMES, namespace, name) is not None:
            return begun
        template = cron["spec"]["template"]
        given = template.get("metadata") or {}
        metadata = self._metadata(name, namespace, {**(given.get("labels") or {}), **self._labels(cron)})
        noted = {**(given.get("annotations") or {}), BIND_NOW: "true", _USED: now.isoformat()}
        spec = template["spec"]
        if url_of(cron):
            registry = {**spec["source"]["registry"], "url": pinned(url_of(cron), digest)}
            spec = {**spec, "source": {"registry": registry}}
        volume = {"apiVersion": DATA_VOLUMES.api_version, "kind": DATA_VOLUMES.kind, "spec": spec}
        self._api.store.put(DATA_VOLUMES, {**volume, "metadata": {**metadata, "annotations": noted, "generation": 1}})
        return begun

    def _labels(self, cron: Json) -> dict[str, str]:
        labels = {"app": "containerized-data-importer", CRON_LABEL: cron["metadata"]["name"]}
        return {**labels, _CLEANUP: "true"} if cron["spec"].get("retentionPolicy") == "None" else labels

    def _metadata(self, name: str, namespace: str, labels: dict[str, str]) -> Json:
        moment = stamp(self._api.clock.now())
        return {
            "creationTimestamp": moment,
            "generation": 1,
            "labels": labels,
            "name": name,
            "namespace": namespace,
            "uid": str(uuid.uuid4()),
        }

    # The end

    def _clean_up(self, key: Key) -> None:
        """A deleted cron takes along what it made, where its retention policy was None."""
        for resource in (DATA_SOURCES, DATA_VOLUMES, CLAIMS, VOLUME_SNAPSHOTS):
            for stored in self._labelled(resource, *key):
                if (stored.obj["metadata"].get("labels") or {}).get(_CLEANUP) == "true":
                    self._delete(resource, stored)

    def _labelled(self, resource: Resource, namespace: str, cron_name: str) -> list[Stored]:
        return [
            stored
            for stored in self._api.store.rows(resource, namespace)
            if (stored.obj["metadata"].get("labels") or {}).get(CRON_LABEL) == cron_name
        ]

    def _delete(self, resource: Resource, stored: Stored) -> None:
        metadata = stored.obj["metadata"]
        if "deletionTimestamp" not in metadata:
            options = DeleteOptions(uid=metadata["uid"])
            delete(self._api, resource, metadata["namespace"], metadata["name"], options)


def _progress(phase: str) -> tuple[str, str, str]:
    if phase == "ImportScheduled":
        return "False", "ImportScheduled", "Import is scheduled"
    if phase == "ImportInProgress":
        return "True", "ImportProgressing", "Import is progressing"
    return "False", phase, f"Import DataVolume phase {phase}"


def _is_broken(volume: Json) -> bool:
    running = find((volume.get("status") or {}).get("conditions"), "Running") or {}
    return running.get("status") == "False" and running.get("reason") in _BROKEN


def _storage_class(cron: Json) -> str:
    spec = cron["spec"]["template"]["spec"]
    return str((spec.get("pvc") or spec.get("storage") or {}).get("storageClassName") or "")


def _annotation(obj: Json, name: str) -> str:
    return str((obj["metadata"].get("annotations") or {}).get(name, ""))


def _annotated(obj: Json, annotations: dict[str, str]) -> Json:
    metadata = obj["metadata"]
    return {**obj, "metadata": {**metadata, "annotations": {**(metadata.get("annotations") or {}), **annotations}}}
