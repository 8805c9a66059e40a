"""The VM controller: run strategies, start and stop requests, crash loops, and the status of the VM."""

from datetime import datetime, timedelta

from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import drop, find, holds, make, put
from app.devcluster.apiserver.controller import KindController
from app.devcluster.apiserver.objects import (
    annotations_of,
    finalizers_of,
    is_deleting,
    is_owned_by,
    labels_of,
    new_object,
    owned_by,
    phase_of,
    status_of,
    with_annotations,
    with_finalizer,
    without_finalizer,
)
from app.devcluster.apiserver.registry import (
    CLAIMS,
    DATA_SOURCES,
    DATA_VOLUMES,
    VIRTUAL_MACHINE_INSTANCES,
    VIRTUAL_MACHINES,
)
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.apiserver.times import stamp
from app.devcluster.durations import Durations
from app.devcluster.kubevirt.instances import build_instance
from app.devcluster.kubevirt.launcher import OBSERVED, VM_FINALIZER
from app.devcluster.kubevirt.memory import STARTED, ask_to_restore, has_started
from app.devcluster.kubevirt.snapshot_sources import volume_status, volumes_of
from app.devcluster.kubevirt.start_validation import refuse_instance
from app.devcluster.kubevirt.state_volumes import snapshotted_volumes
from app.devcluster.kubevirt.vmi_controller import FINAL
from app.devcluster.storage.volumes import claim_of, has_failed_attempt, is_bound

_PULL_ERRORS = frozenset({"ErrImagePull", "ImagePullBackOff"})
_USABLE = frozenset({"Succeeded", "WaitForFirstConsumer", "PendingPopulation"})
"""Phases of a DataVolume in which a VMI may start: it is filled, or waits for its first consumer."""

_NO_DISKS = "Error encountered while creating DataVolumes: "


def strategy_of(vm: Json) -> str:
    """The run strategy, also where the VM has the deprecated `running`."""
    spec = vm["spec"]
    if "runStrategy" in spec:
        return str(spec["runStrategy"])
    return "Always" if spec.get("running") else "Halted"


def instance_of(api: Api, vm: Json) -> Stored | None:
    """The VMI that the VM owns; None for a VMI of the same name with another owner."""
    stored = api.store.get(VIRTUAL_MACHINE_INSTANCES, vm["metadata"]["namespace"], vm["metadata"]["name"])
    return stored if stored is not None and is_owned_by(stored.obj, vm) else None


class MachineController(KindController):
    """Makes one write in each reconciliation, like the real controller, so that watches see the same steps."""

    resource = VIRTUAL_MACHINES

    def __init__(self, api: Api, durations: Durations) -> None:
        super().__init__(api, durations.reaction)
        self._durations = durations
        self._blocked: set[str] = set()
        self._stopped: set[str] = set()

    @override
    def resume(self) -> None:
        for stored in self._store.each(VIRTUAL_MACHINES):
            failure = status_of(stored.obj).get("startFailure")
            if failure and instance_of(self._api, stored.obj) is None:
                self._block(stored, failure["consecutiveFailCount"])
        super().resume()

    @override
    def _forget(self, uid: str) -> None:
        super()._forget(uid)
        self._blocked.discard(uid)
        self._stopped.discard(uid)

    @override
    def _react(self, change: Change) -> None:
        if change.resource is VIRTUAL_MACHINE_INSTANCES:
            self._queue.add(change.key)
        elif change.resource in {DATA_VOLUMES, CLAIMS}:
            self._queue_owners(change)
            for stored in self._store.rows(VIRTUAL_MACHINES, change.key[0]):
                if any(claim_of(volume) == change.key[1] for volume in volumes_of(stored.obj)):
                    self._queue.add(stored.key)
        elif change.resource is DATA_SOURCES:
            for stored in self._store.each(VIRTUAL_MACHINES):
                if any(item["spec"].get("sourceRef") for item in stored.obj["spec"].get("dataVolumeTemplates", ())):
                    self._queue.add(stored.key)

    @override
    def _reconcile(self, stored: Stored) -> None:
        vm, volumes = stored.obj, volumes_of(stored.obj)
        if stored.deleting:
            self._follow(stored)
        elif volumes and "volumeSnapshotStatuses" not in status_of(vm):
            told = {"volumeSnapshotStatuses": self._volume_statuses(vm)}
            self._modify_status(stored, {"printableStatus": "Stopped", **status_of(vm), **told})
        elif not OBSERVED.keys() <= annotations_of(vm).keys():
            self._api.modify(VIRTUAL_MACHINES, stored, lambda obj: with_annotations(obj, OBSERVED))
        elif VM_FINALIZER not in finalizers_of(vm):
            self._api.modify(VIRTUAL_MACHINES, stored, lambda obj: with_finalizer(obj, VM_FINALIZER))
        elif (instance := instance_of(self._api, vm)) is not None and has_started(vm, instance):
            mark = {STARTED: instance.uid}
            self._api.modify(VIRTUAL_MACHINES, stored, lambda obj: with_annotations(obj, mark))
        else:
            self._follow(stored)

    def _follow(self, stored: Stored) -> None:
        vm = stored.obj
        instance = instance_of(self._api, vm)
        problem: Json | None = None
        if not stored.deleting:
            problem = self._run(stored, instance)
        elif instance is not None:
            self._delete(VIRTUAL_MACHINE_INSTANCES, instance)
        elif VM_FINALIZER in finalizers_of(vm):
            self._api.modify(VIRTUAL_MACHINES, stored, lambda obj: without_finalizer(obj, VM_FINALIZER))
        latest = self._store.get(VIRTUAL_MACHINES, *stored.key)
        if latest is not None and latest.uid == stored.uid:
            self._modify_status(latest, self._status(latest, instance, problem))

    def _run(self, stored: Stored, instance: Stored | None) -> Json | None:
        """Start or stop the VMI by the run strategy and the requests; gives a Failure condition where that fails."""
        vm = stored.obj
        strategy = strategy_of(vm)
        requests = status_of(vm).get("stateChangeRequests") or []
        wants_start = any(item["action"] == "Start" for item in requests)
        if instance is not None:
            stops = any(item["action"] == "Stop" and item.get("uid") == instance.uid for item in requests)
            ended = phase_of(instance.obj) in FINAL
            restarts = strategy == "Always" or (strategy == "RerunOnFailure" and phase_of(instance.obj) == "Failed")
            if stops:
                self._stopped.add(stored.uid)
            if strategy == "Halted" or stops or (ended and restarts):
                self._delete(VIRTUAL_MACHINE_INSTANCES, instance)
            return None
        once = strategy == "Once" and status_of(vm).get("runStrategy") != "Once"
        rerun = strategy == "RerunOnFailure" and stored.uid not in self._stopped
        if not (strategy == "Always" or wants_start or once or rerun) or stored.uid in self._blocked:
            return None
        self._stopped.discard(stored.uid)
        refusal = self._unresolved(vm) or refuse_instance(vm)
        if refusal is not None:
            reason, message = refusal
            return make("Failure", True, self._api.clock.now(), reason=reason, message=message)
        if not self._data_volumes_pending(vm):
            vmi = ask_to_restore(self._store, vm, build_instance(vm, self._api.clock.now()))
            self._store.put(VIRTUAL_MACHINE_INSTANCES, vmi)
        return None

    def _unresolved(self, vm: Json) -> tuple[str, str] | None:
        """Reason and message of the VM's Failure condition where a DataSource that a template clones is missing or empty."""
        namespace = vm["metadata"]["namespace"]
        for template in vm["spec"].get("dataVolumeTemplates", ()):
            reference = template["spec"].get("sourceRef")
            if not reference or self._store.get(DATA_VOLUMES, namespace, template["metadata"]["name"]) is not None:
                continue
            home, name = reference.get("namespace") or namespace, reference["name"]
            found = self._store.get(DATA_SOURCES, home, name)
            if found is None:
                told = f'unable to create DataVolume manifest: datasources.cdi.kubevirt.io "{name}" not found'
                return "FailedCreate", f"{_NO_DISKS}{told}"
            source = found.obj["spec"].get("source") or {}
            if "dataSource" in source:
                source = status_of(found.obj).get("source") or {}
            if not source.get("pvc") and not source.get("snapshot"):
                return "FailedCreate", f"{_NO_DISKS}DataVolume sourceRef not supported"
        return None

    def _data_volumes_pending(self, vm: Json) -> bool:
        """Create the DataVolumes of the VM's templates; a VMI waits until each has succeeded."""
        pending = False
        namespace = vm["metadata"]["namespace"]
        for template in vm["spec"].get("dataVolumeTemplates", ()):
            name = template["metadata"]["name"]
            volume = self._store.get(DATA_VOLUMES, namespace, name)
            if volume is None:
                self._store.put(DATA_VOLUMES, _data_volume(vm, template, self._api.clock.now()))
            if volume is None or phase_of(volume.obj) not in _USABLE:
                pending = True
        return pending

    def _block(self, stored: Stored, failures: int) -> None:
        """No new start before the backoff is over."""
        self._blocked.add(stored.uid)

        def release() -> None:
            self._blocked.discard(stored.uid)
            self._queue.add(stored.key)

        self._timers.ensure(stored.uid, f"backoff-{failures}", self._durations.backoff(failures), release)

    def _volume_statuses(self, vm: Json) -> list[Json]:
        namespace = vm["metadata"]["namespace"]
        return [volume_status(self._store, namespace, volume) for volume in snapshotted_volumes(self._store, vm)]

    def _status(self, stored: Stored, instance: Stored | None, problem: Json | None) -> Json:
        vm = stored.obj
        status: Json = {**status_of(vm)}
        now = self._api.clock.now()
        conditions = status.get("conditions") or []
        vmi = instance.obj if instance else None
        if vmi is None:
            ready = make("Ready", False, now, reason="VMINotExists", message="VMI does not exist", probed=True)
            conditions = put(conditions, ready)
            status.pop("created", None)
            self._settle_requests(status, "Stop")
        else:
            conditions = _mirror(conditions, vmi, now)
            status["created"] = True
            status["desiredGeneration"] = vm["metadata"]["generation"]
            status["observedGeneration"] = int(vmi["metadata"]["annotations"]["kubevirt.io/vm-generation"])
            status["runStrategy"] = strategy_of(vm)
            self._settle_requests(status, "Start")
            self._count_failure(stored, vmi, status)
        conditions = put(conditions, problem) if problem else drop(conditions, "Failure")
        status["conditions"] = conditions
        if holds(conditions, "Ready"):
            status["ready"] = True
        else:
            status.pop("ready", None)
        if volumes_of(vm):
            status["volumeSnapshotStatuses"] = self._volume_statuses(vm)
        status["printableStatus"] = self._printable(vm, vmi, status)
        return status

    def _settle_requests(self, status: Json, action: str) -> None:
        left = [item for item in status.get("stateChangeRequests") or () if item["action"] != action]
        if left:
            status["stateChangeRequests"] = left
        else:
            status.pop("stateChangeRequests", None)

    def _count_failure(self, stored: Stored, vmi: Json, status: Json) -> None:
        """Count a VMI that ended without running towards the crash loop; one that runs resets the count."""
        phases = {item["phase"] for item in vmi["status"].get("phaseTransitionTimestamps", ())}
        if "Running" in phases:
            status.pop("startFailure", None)
            return
        uid = vmi["metadata"]["uid"]
        failure = status.get("startFailure") or {}
        if phase_of(vmi) not in FINAL or failure.get("lastFailedVMIUID") == uid:
            return
        failures = failure.get("consecutiveFailCount", 0) + 1
        retry = self._api.clock.now() + timedelta(seconds=self._durations.backoff(failures))
        status["startFailure"] = {
            "consecutiveFailCount": failures,
            "lastFailedVMIUID": uid,
            "retryAfterTimestamp": stamp(retry),
        }
        self._block(stored, failures)

    def _printable(self, vm: Json, vmi: Json | None, status: Json) -> str:
        if is_deleting(vm):
            return "Terminating"
        blocked = vm["metadata"]["uid"] in self._blocked
        if vmi is None:
            if blocked:
                return "CrashLoopBackOff"
            if strategy_of(vm) != "Halted" and (storage := self._storage_status(vm)):
                return storage
            starting = instance_of(self._api, vm) is not None
            return "Starting" if starting else "Stopped"
        if phase_of(vmi) in FINAL:
            return "CrashLoopBackOff" if blocked else "Stopped"
        if is_deleting(vmi):
            return "Stopping"
        if holds(status["conditions"], "Paused"):
            return "Paused"
        if phase_of(vmi) == "Running":
            return "Running"
        return self._waiting_status(vm, vmi)

    def _waiting_status(self, vm: Json, vmi: Json) -> str:
        """The printable status while the VMI does not run yet, in KubeVirt's order of precedence."""
        conditions = vmi["status"].get("conditions")
        synchronized = find(conditions, "Synchronized") or {}
        if synchronized.get("reason") == "FailedPvcNotFound":
            return "ErrorPvcNotFound"
        storage = self._storage_status(vm)
        if storage == "DataVolumeError":
            return storage
        scheduled = find(conditions, "PodScheduled") or {}
        if scheduled.get("reason") == "Unschedulable" and scheduled["status"] == "False":
            return "ErrorUnschedulable"
        if storage:
            return storage
        return str(synchronized["reason"]) if synchronized.get("reason") in _PULL_ERRORS else "Starting"

    def _storage_status(self, vm: Json) -> str:
        """The printable status while DataVolumes or claims are not ready; empty where they are."""
        namespace = vm["metadata"]["namespace"]
        names = [claim_of(volume) for volume in volumes_of(vm) if "dataVolume" in volume]
        fillers = [item.obj for name in names if (item := self._store.get(DATA_VOLUMES, namespace, name)) is not None]
        if any(phase_of(item) == "Failed" or has_failed_attempt(item) for item in fillers):
            return "DataVolumeError"
        if any(phase_of(item) not in _USABLE for item in fillers):
            return "Provisioning"
        claims = [self._store.get(CLAIMS, namespace, claim_of(volume)) for volume in volumes_of(vm)]
        unbound = any(item is not None and not is_bound(item.obj) for item in claims)
        return "WaitingForVolumeBinding" if unbound else ""


def _mirror(conditions: list[Json], vmi: Json, now: datetime) -> list[Json]:
    """Copy the conditions of the VMI to the VM, and remove those of an earlier VMI."""
    given = vmi["status"].get("conditions") or []
    kinds = {item["type"] for item in given} | {"Ready", "Failure", "RestartRequired"}
    conditions = [item for item in conditions if item["type"] in kinds]
    if find(given, "Ready") is None:
        missing = make(
            "Ready",
            False,
            now,
            reason="VMIConditionMissing",
            message="VMI is missing the Ready condition",
            probed=True,
        )
        conditions = put(conditions, missing)
    for item in given:
        conditions = put(conditions, item)
    return conditions


def _data_volume(vm: Json, template: Json, now: datetime) -> Json:
    """The DataVolume of a template; the VM owns it."""
    volume = new_object(
        DATA_VOLUMES,
        template["metadata"]["name"],
        vm["metadata"]["namespace"],
        now,
        annotations={"cdi.kubevirt.io/allowClaimAdoption": "true", **annotations_of(template)},
        labels={**labels_of(template), "kubevirt.io/created-by": vm["metadata"]["uid"]},
        ownerReferences=owned_by(vm),
    )
    return {**volume, "spec": template["spec"]}
