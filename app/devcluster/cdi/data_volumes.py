"""CDI's DataVolumes: first the claim, then its import or clone, with progress, errors and retries (CDI v1.66.0).

An import that fails stays ImportInProgress; its Running condition says why, and the importer restarts after a backoff.
The phase becomes Failed only where a retry cannot help.
"""

from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.events import EventRecorder
from app.devcluster.apiserver.objects import (
    Key,
    annotations_of,
    is_owned_by,
    labels_of,
    owned_by,
    owners_of,
    phase_of,
    with_annotations,
    with_metadata,
)
from app.devcluster.apiserver.quantities import whole
from app.devcluster.apiserver.registry import (
    CLAIMS,
    DATA_IMPORT_CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    PODS,
    STORAGE_PROFILES,
    VOLUME_SNAPSHOTS,
)
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.cdi.data_sources import (
    IMPORTS,
    Source,
    find_source,
    is_ready,
    is_there,
    origin_of,
    size_of,
    source_has_booted,
    strategy_for,
)
from app.devcluster.cdi.data_volume_status import PERCENT, Told, build_status, percent_of, restarts_of
from app.devcluster.cdi.storage_profiles import ProfileError, claim_spec
from app.devcluster.durations import Durations, Jitter
from app.devcluster.faults.book import Fault, FaultBook
from app.devcluster.faults.controller import FaultyController
from app.devcluster.storage.backend import StorageBackend, Transfer, TransferFailure
from app.devcluster.storage.driver import BIND_NOW, build_claim
from app.devcluster.storage.storage_classes import find_class, waits_for_consumer
from app.devcluster.storage.volumes import (
    IMAGE_PULL_FAILED,
    data_of,
    has_consumer,
    has_failed_attempt,
    is_bound,
    mark_booted,
)

CRON_LABEL = "cdi.kubevirt.io/dataImportCron"
_CLONE_TYPE = "cdi.kubevirt.io/cloneType"
_POD_PHASE = "cdi.kubevirt.io/storage.pod.phase"
_OVER = frozenset({"Succeeded", "Failed"})
_CLONING = {
    "csi-clone": "CSICloneInProgress",
    "snapshot": "SnapshotForSmartCloneInProgress",
    "restore": "CloneFromSnapshotSourceInProgress",
    "copy": "CloneInProgress",
}
_DEFAULT_PERCENT = 60.0
_LONGEST_BACKOFF = 30


class DataVolumeController(FaultyController):
    resource = DATA_VOLUMES

    def __init__(
        self, api: Api, durations: Durations, jitter: Jitter, faults: FaultBook, backend: StorageBackend
    ) -> None:
        super().__init__(api, durations, jitter, faults, durations.reaction)
        self._backend = backend
        self._events = EventRecorder(api, "datavolume-import-controller")

    @override
    def _forget(self, uid: str) -> None:
        super()._forget(uid)
        self._backend.cancel(uid)

    @override
    def resume(self) -> None:
        for stored in self._store.each(DATA_VOLUMES):
            if phase_of(stored.obj) not in _OVER:
                self._queue.add(stored.key)

    @override
    def _react(self, change: Change) -> None:
        if change.resource in {CLAIMS, VOLUME_SNAPSHOTS, DATA_SOURCES, DATA_VOLUMES, STORAGE_PROFILES} or (
            change.resource is PODS and change.new is None
        ):
            self.resume()

    @override
    def _reconcile(self, stored: Stored) -> None:
        phase = phase_of(stored.obj)
        source = find_source(self._store, stored.obj)
        if stored.deleting or phase in _OVER or source is None:
            return
        claim = self._store.get(CLAIMS, *stored.key) or self._make_claim(stored, source)
        if claim is None or claim.deleting:
            return
        if not is_owned_by(claim.obj, stored.obj):
            self._adopt(stored, claim)
        elif not phase:
            self._set(stored, Told("Pending"))
        elif not is_bound(claim.obj):
            waits = self._waits_for_consumer(stored, claim.obj)
            self._set(stored, Told("PendingPopulation" if waits else "Pending"))
        elif phase in {"Pending", "PendingPopulation"}:
            self._begin(stored, claim, source)
        elif source.is_clone:
            self._clone(stored, claim.obj, source)
        elif source.kind in IMPORTS:
            self._import(stored, claim.obj, source)

    def _begin(self, stored: Stored, claim: Stored, source: Source) -> None:
        refusal = self._backend.refusal(source.kind)
        if refusal:
            self._set(stored, Told("Failed", reason="Error", message=refusal))
        elif source.is_clone:
            self._set(stored, Told("CloneScheduled"))
        elif source.kind == "upload":
            self._set(stored, Told("UploadReady"))
        else:
            self._api.modify(CLAIMS, claim, lambda obj: with_annotations(obj, {_POD_PHASE: "Pending"}))
            self._set(stored, Told("ImportScheduled"))

    # The claim

    def _make_claim(self, stored: Stored, source: Source) -> Stored | None:
        """The new claim; None where it cannot be made, which the conditions then say."""
        volume = stored.obj
        if source.is_clone and not is_there(self._store, source):
            told = f"The source {source.kind} {source.name} doesn't exist"
            self._refuse(stored, "CloneWithoutSource", told)
            return None
        size = size_of(self._store, source) if source.is_clone else "0"
        try:
            spec = claim_spec(self._store, volume, size)
        except ProfileError as error:
            self._refuse(stored, "ErrClaimNotValid", str(error))
            return None
        if source.is_clone and whole(spec["resources"]["requests"]["storage"]) < whole(size):
            told = "target resources requests storage size is smaller than the source"
            self._refuse(stored, "CloneValidationFailed", f"The clone doesn't meet the validation requirements: {told}")
            return None
        claim = build_claim(
            stored.key[1],
            volume,
            spec,
            self._api.clock.now(),
            labels={"app": "containerized-data-importer", **labels_of(volume)},
            annotations={"cdi.kubevirt.io/storage.contentType": volume["spec"].get("contentType", "kubevirt")},
            ownerReferences=owned_by(volume),
        )
        return self._store.put(CLAIMS, claim)

    def _adopt(self, stored: Stored, claim: Stored) -> None:
        """Adopt a claim that existed before, where the DataVolume allows it; otherwise leave it alone."""
        allowed = annotations_of(stored.obj).get("cdi.kubevirt.io/allowClaimAdoption") == "true"
        if allowed and not any(owner.get("controller") for owner in owners_of(claim.obj)):
            self._api.modify(CLAIMS, claim, lambda obj: with_metadata(obj, ownerReferences=owned_by(stored.obj)))
            self._set(stored, Told("Succeeded", progress="100.0%"))

    def _waits_for_consumer(self, stored: Stored, claim: Json) -> bool:
        if annotations_of(stored.obj).get(BIND_NOW) == "true":
            return False
        storage_class = find_class(self._store, claim["spec"].get("storageClassName", ""))
        return waits_for_consumer(storage_class) and not has_consumer(self._store, *stored.key)

    # Imports

    def _import(self, stored: Stored, claim: Json, source: Source) -> None:
        volume, uid, key = stored.obj, stored.uid, stored.key
        attempt = restarts_of(volume)
        if has_failed_attempt(volume):
            backoff = self._durations.import_retry * min(2**attempt, _LONGEST_BACKOFF)
            self._timers.ensure(uid, f"retry-{attempt}", backoff, lambda: self._retry(key))
            return
        done = percent_of(volume)
        stop, fault = (PERCENT, None) if source.kind == "blank" else self._obstacle(volume)
        if fault is not None and fault.kind == "import-stalls" and done >= stop:
            self._backend.cancel(uid)
            return
        self._backend.transfer(
            uid,
            Transfer(data_of(claim), source.kind, source.given, attempt, done, stop),
            lambda percent: self._advance(key, percent, source),
            lambda failure: self._give_up(key, failure),
        )

    def _obstacle(self, volume: Json) -> tuple[float, Fault | None]:
        """The percent at which this attempt ends, and the fault that ends it there."""
        turn = f"#{restarts_of(volume)}"
        fault = self._faults.on_object("import-fails", DATA_VOLUMES.plural, volume, turn)
        if fault is None:
            name = labels_of(volume).get(CRON_LABEL, "")
            cron = self._store.get(DATA_IMPORT_CRONS, volume["metadata"]["namespace"], name)
            if cron is not None:
                turn = f"{volume['metadata']['name']}{turn}"
                fault = self._faults.on_object("cron-import-fails", DATA_IMPORT_CRONS.plural, cron.obj, turn)
        if fault is None:
            fault = self._faults.on_object("import-stalls", DATA_VOLUMES.plural, volume)
        if fault is None:
            return PERCENT, None
        return float(fault.settings.get("percent", _DEFAULT_PERCENT)), fault

    def _advance(self, key: Key, percent: float | None, source: Source) -> None:
        """The transfer is this far; None where that is not known."""
        stored = self._current(key)
        if stored is None:
            return
        reached = percent or 0.0
        stop, fault = (PERCENT, None) if source.kind == "blank" else self._obstacle(stored.obj)
        if fault is not None:
            reached = min(reached, max(stop, percent_of(stored.obj)))
        if fault is not None and fault.kind != "import-stalls" and reached >= stop:
            self._backend.cancel(stored.uid)
            self._strike(stored, reached, source, fault)
        elif reached >= PERCENT:
            self._finish(key)
        else:
            self._note_pod(key, "Running")
            progress = None if percent is None else f"{reached:.2f}%"
            self._set(stored, Told("ImportInProgress", progress=progress, running=True))

    def _strike(self, stored: Stored, percent: float, source: Source, fault: Fault) -> None:
        pulls = source.kind == "registry"
        problem = "failed to pull image: unexpected EOF" if pulls else "unexpected EOF"
        message = fault.settings.get("message", f"Unable to process data: {problem}")
        fatal = bool(fault.settings.get("fatal"))
        reason = "ChecksumError" if fatal else IMAGE_PULL_FAILED if pulls else "Error"
        self._fail(stored, TransferFailure(message, reason, fatal), f"{percent:.2f}%")

    def _give_up(self, key: Key, failure: TransferFailure) -> None:
        stored = self._current(key)
        if stored is not None:
            self._fail(stored, failure)

    def _fail(self, stored: Stored, failure: TransferFailure, progress: str | None = None) -> None:
        phase = "Failed" if failure.fatal else "ImportInProgress"
        self._events.record(stored.obj, failure.reason, failure.message, warning=True)
        self._set(stored, Told(phase, progress=progress, reason=failure.reason, message=failure.message))

    def _retry(self, key: Key) -> None:
        stored = self._current(key)
        if stored is not None:
            restarts = restarts_of(stored.obj) + 1
            self._set(stored, Told("ImportInProgress", progress="0.00%", running=True, restarts=restarts))

    # Clones

    def _clone(self, stored: Stored, claim: Json, source: Source) -> None:
        volume, uid, key = stored.obj, stored.uid, stored.key
        strategy = strategy_for(self._store, source, claim)
        phase = _CLONING[strategy]
        if phase_of(volume) == "CloneScheduled" and not is_ready(self._store, source):
            return
        copied = strategy == "copy"
        if phase_of(volume) != phase:
            kind = "snapshot" if strategy == "restore" else strategy
            stored = self._api.modify(DATA_VOLUMES, stored, lambda obj: with_annotations(obj, {_CLONE_TYPE: kind}))
            self._set(stored, Told(phase, running=copied))
            return
        if self._faults.on_object("clone-hangs", DATA_VOLUMES.plural, volume) is not None:
            self._backend.cancel(uid)
        elif self._timers.waits_for(uid) is None:
            self._backend.clone(
                uid,
                data_of(claim),
                origin_of(self._store, source),
                strategy,
                percent_of(volume),
                lambda percent: self._move(key, percent, source),
                lambda problem: self._clone_later(key, phase, problem),
            )

    def _clone_later(self, key: Key, phase: str, problem: str) -> None:
        """Say what went wrong, and try again."""
        stored = self._current(key)
        if stored is not None:
            delay = self._durations.import_retry
            self._timers.ensure(stored.uid, "retry", delay, lambda: self._queue.add(key))
            self._set(stored, Told(phase, reason="Error", message=problem))

    def _move(self, key: Key, percent: float | None, source: Source) -> None:
        stored = self._current(key)
        if stored is None or percent is None:
            return
        if percent < PERCENT:
            self._set(stored, Told("CloneInProgress", progress=f"{percent:.2f}%", running=True))
            return
        if source_has_booted(self._store, source):
            mark_booted(self._api, *key)
        self._set(stored, Told("Succeeded", progress="100.0%"))

    # The end

    def _finish(self, key: Key) -> None:
        stored = self._current(key)
        if stored is None:
            return
        stored = self._set(stored, Told("ImportInProgress", progress="99.00%", running=True))
        self._note_pod(key, "Succeeded")
        self._set(stored, Told("Succeeded", progress="100.0%"))

    def _note_pod(self, key: Key, phase: str) -> None:
        """Write the phase of the importer's pod to the claim."""
        claim = self._store.get(CLAIMS, *key)
        if claim is not None:
            self._api.modify(CLAIMS, claim, lambda obj: with_annotations(obj, {_POD_PHASE: phase}))

    def _refuse(self, stored: Stored, reason: str, message: str) -> None:
        """Say in the conditions why no claim can be made; the phase stays unset."""
        self._set(stored, Told("", claim=(reason, message)))

    def _set(self, stored: Stored, told: Told) -> Stored:
        claim = self._store.get(CLAIMS, *stored.key)
        return self._modify_status(stored, build_status(stored.obj, claim.obj if claim else None, told, self._moment()))
