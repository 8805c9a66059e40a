"""CDI's DataVolumes: a claim, then its content, with progress (phases of CDI v1.66.0)."""

from app.devcluster.api import Api
from app.devcluster.durations import Durations, Jitter
from app.devcluster.objects import Change, Key, Stored
from app.devcluster.registry import CLAIMS, DATA_SOURCES, DATA_VOLUMES, VOLUME_SNAPSHOTS
from app.devcluster.status import Json
from app.devcluster.storage import build_claim
from app.devcluster.storage_classes import default_class
from app.devcluster.times import stamp
from app.devcluster.work import Timers, WorkQueue

_STEPS = 8
_IMPORTS = frozenset({"http", "s3", "gcs", "registry", "imageio", "vddk", "blank"})
_WORK_PHASES = frozenset({"ImportInProgress", "CSICloneInProgress", "CloneFromSnapshotSourceInProgress"})


class DataVolumeController:
    def __init__(self, api: Api, durations: Durations, jitter: Jitter) -> None:
        self._api = api
        self._durations = durations
        self._jitter = jitter
        self._timers: Timers[str] = Timers(api.clock)
        self._queue: WorkQueue[Key] = WorkQueue("datavolume", self._visit, api.clock, durations.reaction)
        self._unsubscribe = api.store.subscribe(self._notice)

    def resume(self) -> None:
        for stored in self._api.store.each(DATA_VOLUMES):
            self._queue.add((stored.obj["metadata"]["namespace"], stored.obj["metadata"]["name"]))

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()
        self._timers.cancel_all()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def _notice(self, change: Change) -> None:
        if change.resource is DATA_VOLUMES:
            if change.new is None:
                self._timers.cancel(change.last.obj["metadata"]["uid"])
            self._queue.add(change.key)
        elif change.resource in {CLAIMS, VOLUME_SNAPSHOTS, DATA_SOURCES}:
            for stored in self._api.store.each(DATA_VOLUMES):
                if _phase(stored.obj) != "Succeeded":
                    self._queue.add((stored.obj["metadata"]["namespace"], stored.obj["metadata"]["name"]))

    def _visit(self, key: Key) -> None:
        stored = self._api.store.get(DATA_VOLUMES, *key)
        if stored is None or "deletionTimestamp" in stored.obj["metadata"]:
            return
        volume = stored.obj
        claim = self._api.store.get(CLAIMS, *key)
        if claim is None and _phase(volume) != "Succeeded":
            claim = self._api.store.put(CLAIMS, self._claim(volume))
        if not _phase(volume):
            self._set(stored, "Pending", "N/A", bound=False)
            return
        if _phase(volume) == "Pending" and claim is not None and claim.obj["status"]["phase"] == "Bound":
            begun = self._first_phase(volume)
            if begun:
                self._set(stored, begun, "N/A", bound=True)
            return
        self._work(key, volume)

    def _first_phase(self, volume: Json) -> str:
        """What follows the bound claim, or nothing where the source is yet to come."""
        kind, ready = self._source(volume)
        if kind in _IMPORTS:
            return "ImportScheduled"
        if kind == "upload":
            return "UploadReady"
        return "CloneScheduled" if ready else ""

    def _source(self, volume: Json) -> tuple[str, bool]:
        """The kind of source, through a DataSource where one is named, and whether it is there."""
        namespace = volume["metadata"]["namespace"]
        source = volume["spec"].get("source") or {}
        reference = volume["spec"].get("sourceRef")
        if reference:
            found = self._api.store.get(DATA_SOURCES, reference.get("namespace") or namespace, reference["name"])
            source = (found.obj["spec"].get("source") or {}) if found else {}
        for kind, resource in (("pvc", CLAIMS), ("snapshot", VOLUME_SNAPSHOTS)):
            if kind in source:
                where = source[kind].get("namespace") or namespace
                return kind, self._api.store.get(resource, where, source[kind]["name"]) is not None
        return next(iter(source), ""), bool(source)

    def _work(self, key: Key, volume: Json) -> None:
        phase, uid = _phase(volume), volume["metadata"]["uid"]
        if phase not in {"ImportScheduled", "CloneScheduled"} | _WORK_PHASES:
            return
        kind, _ = self._source(volume)
        total = self._durations.import_total if kind in _IMPORTS else self._durations.clone_total
        steps = 1 if kind == "blank" else _STEPS
        done = _steps_done(volume, steps)
        step = self._jitter.spread(total / steps)
        self._timers.ensure(uid, f"step-{done + 1}", step, lambda: self._advance(key, done + 1, steps))

    def _advance(self, key: Key, done: int, steps: int) -> None:
        stored = self._api.store.get(DATA_VOLUMES, *key)
        if stored is None or "deletionTimestamp" in stored.obj["metadata"]:
            return
        kind, _ = self._source(stored.obj)
        working = {"pvc": "CSICloneInProgress", "snapshot": "CloneFromSnapshotSourceInProgress"}.get(
            kind, "ImportInProgress"
        )
        if done < steps:
            self._set(stored, working, f"{100 * done / steps:.2f}%", bound=True, running=True)
            return
        stored = self._set(stored, working, "99.00%", bound=True, running=True)
        claim = self._api.store.get(CLAIMS, *key)
        if claim is not None:
            self._api.modify(CLAIMS, claim, _pod_succeeded)
        self._set(stored, "Succeeded", "100.0%", bound=True, ready=True)

    def _claim(self, volume: Json) -> Json:
        metadata = volume["metadata"]
        given = volume["spec"].get("storage") or volume["spec"].get("pvc") or {}
        spec = {key: value for key, value in given.items() if value is not None}
        if "pvc" in volume["spec"]:
            spec.setdefault("volumeMode", "Filesystem")
        return build_claim(
            metadata["name"],
            volume,
            {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": default_class(self._api.store),
                "volumeMode": "Block",
                **spec,
            },
            stamp(self._api.clock.now()),
            labels={"app": "containerized-data-importer", **(metadata.get("labels") or {})},
            annotations={"cdi.kubevirt.io/storage.contentType": volume["spec"].get("contentType", "kubevirt")},
        )

    def _set(
        self, stored: Stored, phase: str, progress: str, *, bound: bool, running: bool = False, ready: bool = False
    ) -> Stored:
        now = stamp(self._api.clock.now())
        old = {item["type"]: item for item in (stored.obj.get("status") or {}).get("conditions", ())}

        def condition(kind: str, value: bool, reason: str) -> Json:  # noqa: FBT001
            status = "True" if value else "False"
            before = old.get(kind, {})
            since = before["lastTransitionTime"] if before.get("status") == status else now
            return {
                "lastHeartbeatTime": now,
                "lastTransitionTime": since,
                "message": "",
                "reason": reason,
                "status": status,
                "type": kind,
            }

        status = {
            "claimName": stored.obj["metadata"]["name"],
            "conditions": [
                condition("Bound", bound, "Bound" if bound else "Pending"),
                condition("Running", running, "Pod is running" if running else "Completed"),
                condition("Ready", ready, ""),
            ],
            "phase": phase,
            "progress": progress,
        }
        return self._api.modify(DATA_VOLUMES, stored, lambda obj: {**obj, "status": status})


def _phase(volume: Json) -> str:
    return str((volume.get("status") or {}).get("phase", ""))


def _steps_done(volume: Json, steps: int) -> int:
    progress = volume["status"].get("progress", "N/A")
    return 0 if progress == "N/A" else round(float(progress.removesuffix("%")) * steps / 100)


def _pod_succeeded(claim: Json) -> Json:
    metadata = claim["metadata"]
    annotations = {**(metadata.get("annotations") or {}), "cdi.kubevirt.io/storage.pod.phase": "Succeeded"}
    return {**claim, "metadata": {**metadata, "annotations": annotations}}
