"""From a VM to its VMI and back: run strategies, start and stop requests, crash loops, and the VM's status."""

import uuid
from datetime import datetime, timedelta

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import drop, find, holds, make, put
from app.devcluster.apiserver.deletion import DeleteOptions, delete
from app.devcluster.apiserver.garbage import without_finalizer
from app.devcluster.apiserver.objects import Change, Key, Stored
from app.devcluster.apiserver.registry import CLAIMS, DATA_VOLUMES, VIRTUAL_MACHINE_INSTANCES, VIRTUAL_MACHINES
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.times import stamp
from app.devcluster.apiserver.work import Timers, WorkQueue
from app.devcluster.durations import Durations
from app.devcluster.kubevirt.instance_admission import refuse_instance
from app.devcluster.kubevirt.instances import build_instance
from app.devcluster.kubevirt.launcher import OBSERVED, VM_FINALIZER, claim_of
from app.devcluster.kubevirt.snapshot_sources import volume_status
from app.devcluster.kubevirt.vmi_controller import FINAL, phase_of
from app.devcluster.storage.volumes import is_bound

_PULL_ERRORS = frozenset({"ErrImagePull", "ImagePullBackOff"})
_AWAITED = ("WaitForFirstConsumer", "PendingPopulation")  # a DataVolume that waits for a VMI to use it


def strategy_of(vm: Json) -> str:
    """The run strategy, the deprecated `running` translated."""
    spec = vm["spec"]
    if "runStrategy" in spec:
        return str(spec["runStrategy"])
    return "Always" if spec.get("running") else "Halted"


def instance_of(api: Api, vm: Json) -> Stored | None:
    """The VMI the VM owns; one of its name with another owner is not its own."""
    metadata = vm["metadata"]
    stored = api.store.get(VIRTUAL_MACHINE_INSTANCES, metadata["namespace"], metadata["name"])
    if stored is None:
        return None
    owners = stored.obj["metadata"].get("ownerReferences", ())
    return stored if any(owner["uid"] == metadata["uid"] for owner in owners) else None


class MachineController:
    """One write for each visit, as the real controller: a watcher sees the same steps."""

    def __init__(self, api: Api, durations: Durations) -> None:
        self._api = api
        self._durations = durations
        self._timers: Timers[str] = Timers(api.clock)
        self._blocked: set[str] = set()
        self._stopped: set[str] = set()
        self._queue: WorkQueue[Key] = WorkQueue("vm", self._visit, api.clock, durations.reaction)
        self._unsubscribe = api.store.subscribe(self._notice)

    def resume(self) -> None:
        for stored in self._api.store.each(VIRTUAL_MACHINES):
            failure = stored.obj.get("status", {}).get("startFailure")
            if failure and instance_of(self._api, stored.obj) is None:
                self._block(stored.obj, failure["consecutiveFailCount"])
            self._queue.add((stored.obj["metadata"]["namespace"], stored.obj["metadata"]["name"]))

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()
        self._timers.cancel_all()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def _notice(self, change: Change) -> None:
        if change.resource is VIRTUAL_MACHINES:
            if change.new is None:
                uid = change.last.obj["metadata"]["uid"]
                self._timers.cancel(uid)
                self._blocked.discard(uid)
                self._stopped.discard(uid)
            self._queue.add(change.key)
        elif change.resource is VIRTUAL_MACHINE_INSTANCES:
            self._queue.add(change.key)
        elif change.resource in {DATA_VOLUMES, CLAIMS}:
            for reference in change.last.obj["metadata"].get("ownerReferences", ()):
                if reference["kind"] == "VirtualMachine":
                    self._queue.add((change.key[0], reference["name"]))
            for stored in self._api.store.rows(VIRTUAL_MACHINES, change.key[0]):
                volumes = stored.obj["spec"]["template"]["spec"].get("volumes", ())
                if any(claim_of(volume) == change.key[1] for volume in volumes):
                    self._queue.add((change.key[0], stored.obj["metadata"]["name"]))

    def _visit(self, key: Key) -> None:
        stored = self._api.store.get(VIRTUAL_MACHINES, *key)
        if stored is None:
            return
        vm = stored.obj
        metadata = vm["metadata"]
        status = vm.get("status") or {}
        going = "deletionTimestamp" in metadata
        if vm["spec"]["template"]["spec"].get("volumes") and "volumeSnapshotStatuses" not in status and not going:
            volumes = vm["spec"]["template"]["spec"]["volumes"]
            snapshots = {"volumeSnapshotStatuses": [volume_status(self._api.store, key[0], item) for item in volumes]}
            self._set_status(stored, {"printableStatus": "Stopped", **status, **snapshots})
        elif not set(OBSERVED) <= set(metadata.get("annotations") or {}) and not going:
            self._api.modify(VIRTUAL_MACHINES, stored, _observe)
        elif VM_FINALIZER not in metadata.get("finalizers", ()) and not going:
            finalizers = [*metadata.get("finalizers", ()), VM_FINALIZER]
            self._api.modify(
                VIRTUAL_MACHINES, stored, lambda obj: {**obj, "metadata": {**obj["metadata"], "finalizers": finalizers}}
            )
        else:
            self._reconcile(stored)

    def _reconcile(self, stored: Stored) -> None:
        vm = stored.obj
        instance = instance_of(self._api, vm)
        before = instance
        problem: Json | None = None
        if "deletionTimestamp" in vm["metadata"]:
            if instance is not None:
                self._delete_instance(instance)
            elif VM_FINALIZER in vm["metadata"].get("finalizers", ()):
                self._api.modify(VIRTUAL_MACHINES, stored, lambda obj: without_finalizer(obj, VM_FINALIZER))
        else:
            problem = self._run(stored, instance)
        latest = self._api.store.get(VIRTUAL_MACHINES, vm["metadata"]["namespace"], vm["metadata"]["name"])
        if latest is not None and latest.obj["metadata"]["uid"] == vm["metadata"]["uid"]:
            self._set_status(latest, self._status(latest.obj, before, problem))

    def _run(self, stored: Stored, instance: Stored | None) -> Json | None:
        """Start or stop what the strategy and the requests ask for; gives a Failure condition where it cannot."""
        vm = stored.obj
        strategy = strategy_of(vm)
        requests = (vm.get("status") or {}).get("stateChangeRequests") or []
        wants_start = any(item["action"] == "Start" for item in requests)
        if instance is not None:
            stops = any(
                item["action"] == "Stop" and item.get("uid") == instance.obj["metadata"]["uid"] for item in requests
            )
            ended = phase_of(instance.obj) in FINAL
            restarts = strategy == "Always" or (strategy == "RerunOnFailure" and phase_of(instance.obj) == "Failed")
            if stops:
                self._stopped.add(vm["metadata"]["uid"])
            if strategy == "Halted" or stops or (ended and restarts):
                self._delete_instance(instance)
            return None
        uid = vm["metadata"]["uid"]
        once = strategy == "Once" and (vm.get("status") or {}).get("runStrategy") != "Once"
        rerun = strategy == "RerunOnFailure" and uid not in self._stopped
        if not (strategy == "Always" or wants_start or once or rerun) or uid in self._blocked:
            return None
        self._stopped.discard(uid)
        refusal = refuse_instance(vm)
        if refusal is not None:
            reason, message = refusal
            return make("Failure", True, self._api.clock.now(), reason=reason, message=message)
        if self._data_volumes_pending(vm):
            return None
        self._api.store.put(VIRTUAL_MACHINE_INSTANCES, build_instance(vm, self._api.clock.now()))
        return None

    def _data_volumes_pending(self, vm: Json) -> bool:
        """Create the DataVolumes of the VM's templates; a VMI waits until each has succeeded."""
        pending = False
        namespace = vm["metadata"]["namespace"]
        for template in vm["spec"].get("dataVolumeTemplates", ()):
            name = template["metadata"]["name"]
            volume = self._api.store.get(DATA_VOLUMES, namespace, name)
            if volume is None:
                self._api.store.put(DATA_VOLUMES, _data_volume(vm, template, stamp(self._api.clock.now())))
            if volume is None or _phase(volume) not in {"Succeeded", *_AWAITED}:
                pending = True
        return pending

    def _delete_instance(self, instance: Stored) -> None:
        metadata = instance.obj["metadata"]
        if "deletionTimestamp" not in metadata:
            options = DeleteOptions(uid=metadata["uid"])
            delete(self._api, VIRTUAL_MACHINE_INSTANCES, metadata["namespace"], metadata["name"], options)

    def _block(self, vm: Json, failures: int) -> None:
        """No new start before the backoff is over."""
        metadata = vm["metadata"]
        uid, key = metadata["uid"], (metadata["namespace"], metadata["name"])
        self._blocked.add(uid)

        def release() -> None:
            self._blocked.discard(uid)
            self._queue.add(key)

        self._timers.ensure(uid, f"backoff-{failures}", self._durations.backoff(failures), release)

    def _set_status(self, stored: Stored, status: Json) -> None:
        if status != stored.obj.get("status"):
            self._api.modify(VIRTUAL_MACHINES, stored, lambda obj: {**obj, "status": status})

    def _status(self, vm: Json, instance: Stored | None, problem: Json | None) -> Json:
        status: Json = {**(vm.get("status") or {})}
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
            self._count_failure(vm, vmi, status)
        conditions = put(conditions, problem) if problem else drop(conditions, "Failure")
        status["conditions"] = conditions
        if holds(conditions, "Ready"):
            status["ready"] = True
        else:
            status.pop("ready", None)
        volumes = vm["spec"]["template"]["spec"].get("volumes")
        if volumes:
            namespace = vm["metadata"]["namespace"]
            status["volumeSnapshotStatuses"] = [volume_status(self._api.store, namespace, item) for item in volumes]
        status["printableStatus"] = self._printable(vm, vmi, status)
        return status

    def _settle_requests(self, status: Json, action: str) -> None:
        left = [item for item in status.get("stateChangeRequests") or () if item["action"] != action]
        if left:
            status["stateChangeRequests"] = left
        else:
            status.pop("stateChangeRequests", None)

    def _count_failure(self, vm: Json, vmi: Json, status: Json) -> None:
        """A VMI that ended without ever running counts towards the crash loop; one that runs clears it."""
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
        self._block(vm, failures)

    def _printable(self, vm: Json, vmi: Json | None, status: Json) -> str:
        if "deletionTimestamp" in vm["metadata"]:
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
        if "deletionTimestamp" in vmi["metadata"]:
            return "Stopping"
        if holds(status["conditions"], "Paused"):
            return "Paused"
        if phase_of(vmi) == "Running":
            return "Running"
        return self._waiting_status(vm, vmi)

    def _waiting_status(self, vm: Json, vmi: Json) -> str:
        """Of a VMI that does not run yet, in KubeVirt's order of precedence."""
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
        """What the VM's DataVolumes and claims are waited for; empty where they are there."""
        namespace = vm["metadata"]["namespace"]
        volumes = vm["spec"]["template"]["spec"].get("volumes", ())
        names = [claim_of(volume) for volume in volumes if "dataVolume" in volume]
        fillers = [item for name in names if (item := self._api.store.get(DATA_VOLUMES, namespace, name)) is not None]
        if any(_is_broken(item) for item in fillers):
            return "DataVolumeError"
        if any(_phase(item) not in {"Succeeded", *_AWAITED} for item in fillers):
            return "Provisioning"
        claims = [self._api.store.get(CLAIMS, namespace, claim_of(volume)) for volume in volumes]
        unbound = any(item is not None and not is_bound(item.obj) for item in claims)
        return "WaitingForVolumeBinding" if unbound else ""


def _phase(volume: Stored) -> str:
    return str((volume.obj.get("status") or {}).get("phase", ""))


def _is_broken(volume: Stored) -> bool:
    """A DataVolume that failed for good, or whose importer ended in an error and will be tried again."""
    running = find((volume.obj.get("status") or {}).get("conditions"), "Running") or {}
    failing = running.get("status") == "False" and running.get("reason") in {"Error", "ImagePullFailed"}
    return _phase(volume) == "Failed" or failing


def _mirror(conditions: list[Json], vmi: Json, now: datetime) -> list[Json]:
    """The VMI's conditions on the VM; those of the VMI before it go."""
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


def _observe(vm: Json) -> Json:
    metadata = vm["metadata"]
    return {**vm, "metadata": {**metadata, "annotations": {**(metadata.get("annotations") or {}), **OBSERVED}}}


def _data_volume(vm: Json, template: Json, moment: str) -> Json:
    """A DataVolume of the VM: named by its template, owned by the VM, gone with it."""
    owner = vm["metadata"]
    metadata = {
        **template["metadata"],
        "annotations": {
            "cdi.kubevirt.io/allowClaimAdoption": "true",
            **(template["metadata"].get("annotations") or {}),
        },
        "creationTimestamp": moment,
        "generation": 1,
        "labels": {**(template["metadata"].get("labels") or {}), "kubevirt.io/created-by": owner["uid"]},
        "namespace": owner["namespace"],
        "ownerReferences": [
            {
                "apiVersion": vm["apiVersion"],
                "blockOwnerDeletion": True,
                "controller": True,
                "kind": vm["kind"],
                "name": owner["name"],
                "uid": owner["uid"],
            }
        ],
        "uid": str(uuid.uuid4()),
    }
    return {
        "apiVersion": DATA_VOLUMES.api_version,
        "kind": DATA_VOLUMES.kind,
        "metadata": metadata,
        "spec": template["spec"],
    }
