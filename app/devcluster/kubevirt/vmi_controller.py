"""The VMI controller (virt-controller): creates the pod of a VMI, and sets phase and Ready condition from the pod."""

from collections.abc import Callable

from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import drop, find, make, put
from app.devcluster.apiserver.controller import KindController
from app.devcluster.apiserver.objects import (
    annotations_of,
    finalizers_of,
    is_deleting,
    labels_of,
    phase_of,
    with_annotations,
    with_metadata,
    with_status,
    without_finalizer,
)
from app.devcluster.apiserver.pod_images import LAUNCHER_IMAGE
from app.devcluster.apiserver.registry import CLAIMS, DATA_VOLUMES, PODS, VIRTUAL_MACHINE_INSTANCES
from app.devcluster.apiserver.status import ApiError, Json
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.apiserver.times import stamp
from app.devcluster.durations import Durations, Jitter
from app.devcluster.guests.runtime import Guest
from app.devcluster.kubevirt.launcher import OBSERVED, VM_FINALIZER, VMI_FINALIZERS, build_pod
from app.devcluster.kubevirt.launcher_resources import memory_overhead
from app.devcluster.kubevirt.state_volumes import STATUS_NAME, build_state_claim, keeps_state, state_claim_of
from app.devcluster.storage.storage_classes import find_class, waits_for_consumer
from app.devcluster.storage.volumes import claim_of, is_bound, is_populated

FINAL = frozenset({"Succeeded", "Failed"})
_PULL_ERRORS = ("ErrImagePull", "ImagePullBackOff")
_VOLUMES_READY = {
    "lastProbeTime": None,
    "lastTransitionTime": None,
    "message": "All of the VMI's DVs are bound and ready",
    "reason": "AllDVsReady",
    "status": "True",
    "type": "DataVolumesReady",
}
_VOLUMES_NOT_READY = {
    **_VOLUMES_READY,
    "message": "Not all of the VMI's DVs are ready",
    "reason": "NotAllDVsReady",
    "status": "False",
}
_NO_POD = ("PodNotExists", "virt-launcher pod has not yet been scheduled")
_NOT_RUNNING = ("GuestNotRunning", "Guest VM is not reported as running")


def with_phase(vmi: Json, phase: str, moment: str, **status: object) -> Json:
    """The VMI in another phase, with the time of the transition and further members of the status."""
    old = vmi["status"]
    history = [*old.get("phaseTransitionTimestamps", ()), {"phase": phase, "phaseTransitionTimestamp": moment}]
    return {**vmi, "status": {**old, "phase": phase, "phaseTransitionTimestamps": history, **status}}


def pod_of(api: Api, vmi: Json) -> Stored | None:
    """The launcher pod of the VMI; one that is being deleted only where there is no other."""
    going = None
    for resource_id, key in api.store.dependents(vmi["metadata"]["uid"]):
        if resource_id == PODS.id:
            pod = api.store.get(PODS, *key)
            if pod is not None and not pod.deleting:
                return pod
            going = pod or going
    return going


def guest_of(api: Api, vmi: Json) -> Guest | None:
    """The guest of the VMI; None where it has no pod."""
    pod = pod_of(api, vmi)
    return Guest((vmi["metadata"]["namespace"], vmi["metadata"]["name"]), vmi, pod.obj) if pod else None


class InstanceController(KindController):
    resource = VIRTUAL_MACHINE_INSTANCES

    def __init__(self, api: Api, durations: Durations, names: Jitter, refuse_pod: Callable[[Json], str | None]) -> None:
        """`refuse_pod` says why a pod may not be created (a quota), or None."""
        super().__init__(api, durations.reaction)
        self._names = names
        self._refuse_pod = refuse_pod

    @override
    def _react(self, change: Change) -> None:
        if change.resource is PODS:
            self._queue_owners(change)
        if change.resource in {CLAIMS, DATA_VOLUMES} or (change.resource is PODS and change.new is None):
            for stored in self._store.rows(VIRTUAL_MACHINE_INSTANCES, change.key[0]):
                if phase_of(stored.obj) == "Pending":
                    self._queue.add(stored.key)

    @override
    def _reconcile(self, stored: Stored) -> None:
        vmi = stored.obj
        if not OBSERVED.keys() <= annotations_of(vmi).keys():
            self._write(stored, lambda obj: with_annotations(obj, OBSERVED))
            return
        pod = pod_of(self._api, vmi)
        if stored.deleting:
            self._let_go(stored, pod)
        elif phase_of(vmi) == "Pending" and pod is None:
            self._start(stored)
        else:
            self._write(stored, lambda obj: self._follow(obj, pod))

    def _start(self, stored: Stored) -> None:
        """Create the pod, or say in the conditions what it waits for."""
        vmi = stored.obj
        missing = self._missing_volume(vmi)
        if missing:
            self._write(stored, lambda obj: self._waiting(obj, missing))
            return
        if self._is_populating(vmi):
            self._write(stored, self._populating)
            return
        now = self._api.clock.now()
        state = self._state_claim(vmi) if keeps_state(vmi["spec"]) else ""
        if state is None:
            return
        pod = build_pod(vmi, self._names.token(), now, state)
        refusal = self._refuse_pod(pod)
        if refusal:
            told = find(_conditions(vmi), "Synchronized")
            if told is not None and told.get("message", "").endswith(refusal):
                return
            message = f'failed to create virtual machine pod: pods "{pod["metadata"]["name"]}" is forbidden: {refusal}'
            failed = make("Synchronized", False, now, reason="FailedCreate", message=message, probed=True)
            conditions = put(put(_conditions(vmi), self._podless_condition()), failed)
            self._write(stored, lambda obj: _with_conditions(obj, conditions))
            return
        created = self._store.put(PODS, pod)

        def scheduling(obj: Json) -> Json:
            ready = make("Ready", False, now, reason=_NOT_RUNNING[0], message=_NOT_RUNNING[1], probed=True)
            kept = drop(_conditions(obj), "Synchronized", "PodScheduled", "DataVolumesReady")
            if any("dataVolume" in volume for volume in obj["spec"].get("volumes", ())):
                kept = put(kept, _VOLUMES_READY)
            return with_phase(
                obj,
                "Scheduling",
                stamp(now),
                activePods={created.uid: ""},
                conditions=put(kept, ready),
                launcherContainerImageVersion=LAUNCHER_IMAGE,
                memory={**obj["status"].get("memory", {}), "memoryOverhead": str(memory_overhead(obj["spec"]))},
            )

        self._write(stored, scheduling)

    def _state_claim(self, vmi: Json) -> str | None:
        """The claim with the state of the VMI's TPM or EFI, made where there is none; None: its conditions say why it waits."""
        now = self._api.clock.now()
        claim = state_claim_of(self._store, vmi["metadata"]["namespace"], vmi["metadata"]["name"])
        if claim is None:
            built = build_state_claim(self._store, vmi, self._names.token(), now)
            if built is None:
                self._state_waits(vmi, "FailedBackendStorageCreate", "no default storage class found")
                return None
            claim = self._store.put(CLAIMS, built)
        storage_class = find_class(self._store, claim.obj["spec"]["storageClassName"])
        if not is_bound(claim.obj) and not waits_for_consumer(storage_class):
            self._state_waits(vmi, "BackendStorageNotReady", "PVC pending")
            return None
        return claim.key[1]

    def _state_waits(self, vmi: Json, reason: str, message: str) -> None:
        waits = make("Synchronized", False, self._api.clock.now(), reason=reason, message=message, probed=True)
        conditions = put(put(_conditions(vmi), self._podless_condition()), waits)
        stored = self._store.get(VIRTUAL_MACHINE_INSTANCES, vmi["metadata"]["namespace"], vmi["metadata"]["name"])
        if stored is not None:
            self._write(stored, lambda obj: _with_conditions(obj, conditions))

    def _follow(self, vmi: Json, pod: Stored | None) -> Json:
        """The VMI after the present state of its pod."""
        if pod is None:
            if phase_of(vmi) in FINAL:
                return vmi
            lost = with_phase(vmi, "Failed", self._moment())
            return self._with_ready(lost, None)
        status = vmi["status"]
        pods = {pod.uid: pod.obj["spec"].get("nodeName", "")}
        if phase_of(vmi) == "Scheduling":
            vmi = self._follow_scheduling(vmi, pod.obj)
            status = vmi["status"]
            judged = find(pod.obj["status"].get("conditions"), "PodScheduled") is not None
            if status.get("activePods") != pods or (judged and "qosClass" not in status):
                vmi = {**vmi, "status": {**status, "activePods": pods, "qosClass": pod.obj["status"].get("qosClass")}}
            if pod.obj["status"]["phase"] == "Running" and status.get("activePods") == pods:
                vmi = self._scheduled(vmi, pod.obj)
        if phase_of(vmi) in FINAL and "memoryOverhead" not in status.get("memory", {}):
            overhead = str(memory_overhead(vmi["spec"]))
            memory = {**status.get("memory", {}), "memoryOverhead": overhead}
            vmi = {**vmi, "status": {**vmi["status"], "memory": memory}}
        return self._with_ready(vmi, pod.obj)

    def _follow_scheduling(self, vmi: Json, pod: Json) -> Json:
        now = self._api.clock.now()
        conditions = _conditions(vmi)
        scheduled = find(pod["status"].get("conditions"), "PodScheduled")
        if scheduled is not None and scheduled["status"] == "False":
            conditions = put(conditions, scheduled)
        else:
            conditions = drop(conditions, "PodScheduled")
        waiting = next(
            (
                container["state"]["waiting"]
                for kind in ("initContainerStatuses", "containerStatuses")
                for container in pod["status"].get(kind, ())
                if container.get("state", {}).get("waiting", {}).get("reason") in _PULL_ERRORS
            ),
            None,
        )
        if waiting is not None:
            conditions = put(
                conditions, make("Synchronized", False, now, reason=waiting["reason"], message=waiting["message"])
            )
        else:
            conditions = drop(conditions, "Synchronized")
        return _with_conditions(vmi, conditions)

    def _scheduled(self, vmi: Json, pod: Json) -> Json:
        node = pod["spec"]["nodeName"]
        interfaces = [
            {"name": item["name"], "podInterfaceName": f"eth{number}"}
            for number, item in enumerate(vmi["spec"]["domain"]["devices"].get("interfaces", ()))
        ]
        status: Json = {"migrationTransport": "Unix", "nodeName": node}
        if interfaces:
            status["interfaces"] = interfaces
        volumes = [
            self._volume_status(volume, vmi["metadata"]["namespace"]) for volume in vmi["spec"].get("volumes", ())
        ]
        if keeps_state(vmi["spec"]):
            named = state_claim_of(self._store, vmi["metadata"]["namespace"], vmi["metadata"]["name"])
            if named is not None:
                claim = {"accessModes": named.obj["spec"]["accessModes"], "claimName": named.key[1]}
                volumes.append({"name": STATUS_NAME, "persistentVolumeClaimInfo": claim, "target": ""})
        if volumes:
            status["volumeStatus"] = volumes
        labelled = with_metadata(vmi, labels={**labels_of(vmi), "kubevirt.io/nodeName": node})
        return with_phase(labelled, "Scheduled", self._moment(), **status)

    def _volume_status(self, volume: Json, namespace: str) -> Json:
        claim = self._store.get(CLAIMS, namespace, claim_of(volume))
        if claim is None:
            return {"name": volume["name"], "target": ""}
        spec, status = claim.obj["spec"], claim.obj["status"]
        information = {
            "accessModes": spec["accessModes"],
            "capacity": status.get("capacity", {}),
            "claimName": claim.obj["metadata"]["name"],
            "filesystemOverhead": "0" if spec.get("volumeMode") == "Block" else "0.055",
            "requests": spec["resources"]["requests"],
            "volumeMode": spec.get("volumeMode", "Filesystem"),
        }
        return {"name": volume["name"], "persistentVolumeClaimInfo": information, "target": ""}

    def _with_ready(self, vmi: Json, pod: Json | None) -> Json:
        if pod is None:
            why = _NO_POD
        elif is_deleting(pod):
            why = "PodTerminating", "virt-launcher pod is terminating"
        elif phase_of(vmi) != "Running":
            why = _NOT_RUNNING
        else:
            ready = find(pod["status"].get("conditions"), "Ready")
            if ready is not None:
                return _with_conditions(vmi, put(_conditions(vmi), ready))
            why = "PodConditionMissing", "virt-launcher pod is missing the Ready condition"
        condition = make("Ready", False, self._api.clock.now(), reason=why[0], message=why[1], probed=True)
        return _with_conditions(vmi, put(_conditions(vmi), condition))

    def _let_go(self, stored: Stored, pod: Stored | None) -> None:
        vmi = stored.obj
        finalizers = finalizers_of(vmi)
        if pod is not None:
            self._delete(PODS, pod)
            pod = pod_of(self._api, vmi)
        if pod is not None:
            followed = self._follow(vmi, pod)
            if followed is vmi and phase_of(vmi) in FINAL and VM_FINALIZER in finalizers:
                followed = without_finalizer(vmi, VM_FINALIZER)
            self._write(stored, lambda _: followed)
        elif VM_FINALIZER in finalizers:
            self._write(stored, lambda obj: without_finalizer(obj, VM_FINALIZER))
        elif VMI_FINALIZERS[1] in finalizers:
            self._write(stored, lambda obj: without_finalizer(self._podless(obj), VMI_FINALIZERS[1]))

    def _podless(self, vmi: Json) -> Json:
        status = {
            key: value
            for key, value in vmi["status"].items()
            if key not in {"activePods", "launcherContainerImageVersion"}
        }
        return self._with_ready({**vmi, "status": status}, None)

    def _missing_volume(self, vmi: Json) -> str | None:
        namespace = vmi["metadata"]["namespace"]
        for volume in vmi["spec"].get("volumes", ()):
            name = claim_of(volume)
            if name and self._store.get(CLAIMS, namespace, name) is None:
                return f"PVC {namespace}/{name} does not exist, waiting for it to appear"
        return None

    def _is_populating(self, vmi: Json) -> bool:
        namespace = vmi["metadata"]["namespace"]
        claims = [self._store.get(CLAIMS, namespace, claim_of(volume)) for volume in vmi["spec"].get("volumes", ())]
        return any(claim is not None and not is_populated(self._store, claim.obj) for claim in claims)

    def _populating(self, vmi: Json) -> Json:
        conditions = put(drop(_conditions(vmi), "Synchronized", "PodScheduled"), self._podless_condition())
        return _with_conditions(vmi, put(conditions, _VOLUMES_NOT_READY))

    def _waiting(self, vmi: Json, message: str) -> Json:
        now = self._api.clock.now()
        conditions = put(_conditions(vmi), self._podless_condition())
        conditions = put(conditions, make("Synchronized", False, now, reason="FailedPvcNotFound", message=message))
        unscheduled = make("PodScheduled", False, now, reason="Unschedulable", message=message)
        conditions = put(conditions, {**unscheduled, "lastTransitionTime": None})
        return _with_conditions(vmi, conditions)

    def _podless_condition(self) -> Json:
        return make("Ready", False, self._api.clock.now(), reason=_NO_POD[0], message=_NO_POD[1], probed=True)

    def _write(self, stored: Stored, change: Callable[[Json], Json]) -> None:
        try:
            self._api.modify(VIRTUAL_MACHINE_INSTANCES, stored, change)
        except ApiError as error:
            if error.code != 404:  # noqa: PLR2004  # gone meanwhile: nothing left to do
                raise


def _conditions(vmi: Json) -> list[Json]:
    conditions: list[Json] = vmi["status"].get("conditions") or []
    return conditions


def _with_conditions(vmi: Json, conditions: list[Json]) -> Json:
    return vmi if conditions == _conditions(vmi) else with_status(vmi, conditions=conditions)
