"""What runs on the nodes: the kubelet that starts pods, and the virt-handler that starts guests and watches them."""

from collections.abc import Callable

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import find, holds, make, put
from app.devcluster.apiserver.objects import Change, Key, Stored
from app.devcluster.apiserver.registry import PODS, VIRTUAL_MACHINE_INSTANCES
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.work import Timers, WorkQueue
from app.devcluster.durations import Durations, Jitter
from app.devcluster.faults.faults import Fault, FaultBook
from app.devcluster.kubevirt.guests import connected, disconnected, failed, started, stopped
from app.devcluster.kubevirt.launcher import LAUNCHER_IMAGE
from app.devcluster.kubevirt.vmi_controller import FINAL, phase_of, pod_of
from app.devcluster.nodes.image_cache import ImageCache, images
from app.devcluster.nodes.image_pulls import PULL_ERRORS, ImagePuller, refuse_pull
from app.devcluster.nodes.pod_addresses import PodAddresses
from app.devcluster.nodes.pod_status import (
    accepted,
    initialized,
    is_initialized,
    pull_failed,
    running,
    unready_message,
    waiting_reason,
)
from app.devcluster.storage.volumes import boot_seconds

_UNPAUSED_GATE = 'corresponding condition of pod readiness gate "kubevirt.io/virtual-machine-unpaused" is not "True".'
_Timer = tuple[str, str]


class NodeAgent:
    """Drives each VMI's pod and guest through their stages by timers; dead nodes do nothing."""

    def __init__(
        self,
        api: Api,
        durations: Durations,
        jitter: Jitter,
        faults: FaultBook,
        images: ImageCache,
        addresses: PodAddresses,
    ) -> None:
        self._api = api
        self._durations = durations
        self._jitter = jitter
        self._faults = faults
        self._images = images
        self._dead: set[str] = set()
        self._thaw_listeners: list[Callable[[], None]] = []
        self._timers: Timers[_Timer] = Timers(api.clock)
        self.puller = ImagePuller(api.clock, durations, jitter, images, self.is_dead)
        self._shut_down: set[str] = set()
        self._addresses = addresses
        self._queue: WorkQueue[Key] = WorkQueue("node", self._visit, api.clock)
        self._unsubscribe = api.store.subscribe(self._notice)
        faults.listen(self.resume)

    def resume(self) -> None:
        """Look at every guest: after a start from a saved state, and when faults come or go."""
        for stored in self._api.store.each(VIRTUAL_MACHINE_INSTANCES):
            self._queue.add((stored.obj["metadata"]["namespace"], stored.obj["metadata"]["name"]))
        for stored in self._api.store.each(PODS):
            if stored.obj["status"]["phase"] == "Running":
                self._images.use(stored.obj["spec"]["nodeName"], stored.obj)
            address = stored.obj["status"].get("podIP", "")
            if address:
                self._addresses.skip(address)

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()
        self._timers.cancel_all()
        self.puller.stop()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def is_dead(self, node: str) -> bool:
        return node in self._dead

    def freeze(self, node: str) -> None:
        """The node is dead: nothing on it moves, and nothing that waits for it ends."""
        self._dead.add(node)

    def thaw(self, node: str) -> None:
        self._dead.discard(node)
        self.resume()
        for listener in self._thaw_listeners:
            listener()

    def on_thaw(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a dead node is back."""
        self._thaw_listeners.append(listener)

    def _notice(self, change: Change) -> None:
        if change.resource is VIRTUAL_MACHINE_INSTANCES:
            if change.new is None:
                self._forget(change.last.obj["metadata"]["uid"])
            self._queue.add(change.key)
        elif change.resource is PODS:
            if change.new is None:
                self._forget(change.last.obj["metadata"]["uid"])
            for reference in change.last.obj["metadata"].get("ownerReferences", ()):
                if reference["kind"] == "VirtualMachineInstance":
                    self._queue.add((change.key[0], reference["name"]))

    def _forget(self, uid: str) -> None:
        for stage in ("launch", "guest", "agent", "probe", "end", "cleanup", "pause", "flap", "retry"):
            self._timers.cancel((uid, stage))
        self._faults.forget(uid)
        self._shut_down.discard(uid)

    def _visit(self, key: Key) -> None:
        stored = self._api.store.get(VIRTUAL_MACHINE_INSTANCES, *key)
        if stored is None:
            return
        vmi = stored.obj
        pod = pod_of(self._api, vmi)
        if pod is None:
            return
        node = pod.obj["spec"].get("nodeName", "")
        going = "deletionTimestamp" in vmi["metadata"] or "deletionTimestamp" in pod.obj["metadata"]
        if node in self._dead:
            return
        if going:
            self._end(key, vmi, pod)
        elif not node or phase_of(vmi) in FINAL:
            self._finish_pod(key, vmi, pod)
        elif pod.obj["status"]["phase"] == "Pending":
            self._start_pod(key, vmi, pod, node)
        elif phase_of(vmi) == "Scheduled":
            self._start_guest(key, vmi)
        elif phase_of(vmi) == "Running":
            self._watch_guest(key, vmi, pod)

    # Pods

    def _start_pod(self, key: Key, vmi: Json, pod: Stored, node: str) -> None:
        fault = self._faults.guest("image-error", vmi, node)
        if fault is not None:
            image = (images(pod.obj) or [LAUNCHER_IMAGE])[-1]
            self._fail_pull(key, pod, image, fault)
            return
        uid = pod.obj["metadata"]["uid"]
        refusal = self.puller.never_pulled(node, pod.obj)
        if refusal is not None:
            again = self._jitter.spread(self._durations.image_retry)
            self._timers.ensure((uid, "retry"), "look", again, lambda: self._queue.add(key))
            self._on_pod(key, lambda obj: pull_failed(obj, refusal, self._api.clock.now()))
            return
        self._timers.cancel((uid, "retry"))
        if not self.puller.bring(node, pod.obj, lambda: self._queue.add(key)):
            if "startTime" not in pod.obj["status"]:
                self._on_pod(key, lambda obj: accepted(obj, self._api.clock.now()))
            return
        if not is_initialized(pod.obj):
            self._on_pod(key, lambda obj: initialized(obj, self._api.clock.now()))
        delay = self._jitter.spread(self._durations.launch)
        self._timers.ensure(
            (uid, "launch"),
            "launch",
            delay,
            lambda: self._on_pod(key, lambda obj: self._launched(obj, probed="readinessProbe" in vmi["spec"])),
        )

    def _fail_pull(self, key: Key, pod: Stored, image: str, fault: Fault) -> None:
        """ErrImagePull and ImagePullBackOff in turn, as long as the fault stands."""
        uid = pod.obj["metadata"]["uid"]
        if "startTime" not in pod.obj["status"]:
            self._on_pod(key, lambda obj: accepted(obj, self._api.clock.now()))
        delay = self._durations.image_retry if waiting_reason(pod.obj, image) in PULL_ERRORS else self._durations.launch
        self._timers.ensure(
            (uid, "retry"),
            "retry",
            self._jitter.spread(delay),
            lambda: self._on_pod(
                key, lambda obj: pull_failed(obj, refuse_pull(obj, image, fault), self._api.clock.now())
            ),
        )

    def _launched(self, pod: Json, *, probed: bool) -> Json:
        self._images.use(pod["spec"]["nodeName"], pod)
        return self._containers(running(pod, self._addresses.take(), self._api.clock.now()), not probed)

    def _finish_pod(self, key: Key, vmi: Json, pod: Stored) -> None:
        """A pod whose guest has ended ends soon after it."""
        if phase_of(vmi) in FINAL and pod.obj["status"]["phase"] not in FINAL:
            phase = phase_of(vmi)
            self._timers.ensure(
                (vmi["metadata"]["uid"], "end"),
                "finish",
                self._jitter.spread(self._durations.graceful_stop),
                lambda: self._on_pod(key, lambda obj: {**obj, "status": {**obj["status"], "phase": phase}}),
            )

    # Guests

    def _start_guest(self, key: Key, vmi: Json) -> None:
        if self._faults.guest("never-boots", vmi) is not None:
            self._timers.cancel((vmi["metadata"]["uid"], "guest"))
            return
        fails = self._faults.guest("boot-fails", vmi) is not None
        delay = self._jitter.spread(self._durations.domain_start)
        turn = self._fail if fails else self._start
        self._timers.ensure(
            (vmi["metadata"]["uid"], "guest"), "fail" if fails else "start", delay, lambda: self._on_vmi(key, turn)
        )

    def _start(self, vmi: Json) -> Json:
        pod = pod_of(self._api, vmi)
        address = pod.obj["status"].get("podIP", "") if pod else ""
        return started(vmi, address, self._api.clock.now())

    def _fail(self, vmi: Json) -> Json:
        return failed(vmi, self._api.clock.now())

    def _connect(self, vmi: Json) -> Json:
        return connected(vmi, self._api.clock.now())

    def _watch_guest(self, key: Key, vmi: Json, pod: Stored) -> None:
        uid = vmi["metadata"]["uid"]
        death = self._faults.guest("guest-dies", vmi)
        if death is not None:
            delay = float(death.settings.get("seconds", 0))
            self._timers.ensure((uid, "end"), "die", delay, lambda: self._on_vmi(key, self._fail))
        else:
            self._timers.cancel((uid, "end"))
        answers = holds(vmi["status"].get("conditions"), "AgentConnected")
        mute = self._faults.guest("no-agent", vmi) or self._faults.guest("agent-lost", vmi)
        if mute is not None:
            self._timers.cancel((uid, "agent"))
            if answers:
                self._on_vmi(key, disconnected)
                return
        elif not answers:
            delay = self._jitter.spread(boot_seconds(self._api.store, vmi, self._durations))
            self._timers.ensure((uid, "agent"), "agent", delay, lambda: self._on_vmi(key, self._connect))
        self._probe(key, vmi, pod, answers=answers and mute is None)

    def _probe(self, key: Key, vmi: Json, pod: Stored, *, answers: bool) -> None:
        """Keep the pod's Ready condition true to the guest: by its probe where it has one, else from the start."""
        uid = pod.obj["metadata"]["uid"]
        probed = "readinessProbe" in vmi["spec"]
        healthy = (answers or not probed) and self._faults.guest("unready", vmi) is None
        flapping = self._faults.guest("flapping", vmi)
        ready = holds(pod.obj["status"].get("conditions"), "ContainersReady")
        if flapping is not None and healthy:
            period = float(flapping.settings.get("seconds", 1.0))
            self._timers.ensure(
                (uid, "flap"), "flap", period, lambda: self._on_pod(key, lambda obj: self._containers(obj, not ready))
            )
        else:
            self._timers.cancel((uid, "flap"))
        if healthy and not ready and flapping is None:
            if probed:
                delay = self._jitter.spread(self._durations.probe)
                self._timers.ensure(
                    (uid, "probe"), "probe", delay, lambda: self._on_pod(key, lambda obj: self._containers(obj, True))
                )
            else:
                self._on_pod(key, lambda obj: self._containers(obj, True))
            return
        if not healthy:
            self._timers.cancel((uid, "probe"))
            if ready:
                self._on_pod(key, lambda obj: self._containers(obj, False))
                return
        paused = holds(vmi["status"].get("conditions"), "Paused")
        self._on_pod(key, lambda obj: self._gated(obj, paused))

    def _containers(self, pod: Json, ready: bool) -> Json:  # noqa: FBT001  # read at its call as a verb's object
        now = self._api.clock.now()
        marker = make("ContainersReady", ready, now)
        if not ready:
            marker = make("ContainersReady", False, now, reason="ContainersNotReady", message=unready_message(pod))
        return self._gated(
            {**pod, "status": {**pod["status"], "conditions": put(pod["status"].get("conditions"), marker)}},
            _is_gated(pod),
        )

    def _gated(self, pod: Json, paused: bool) -> Json:  # noqa: FBT001
        now = self._api.clock.now()
        conditions = pod["status"].get("conditions") or []
        gate = make("kubevirt.io/virtual-machine-unpaused", not paused, now)
        conditions = put(conditions, gate)
        if not holds(conditions, "ContainersReady"):
            ready = make("Ready", False, now, reason="ContainersNotReady", message=unready_message(pod))
        elif paused:
            ready = make("Ready", False, now, reason="ReadinessGatesNotReady", message=_UNPAUSED_GATE)
        else:
            ready = make("Ready", True, now)
        conditions = put(conditions, ready)
        if conditions == pod["status"].get("conditions"):
            return pod
        return {**pod, "status": {**pod["status"], "conditions": conditions}}

    # The end

    def _end(self, key: Key, vmi: Json, pod: Stored) -> None:
        """Shut the guest down, then let the pod go."""
        uid = vmi["metadata"]["uid"]
        pod_uid = pod.obj["metadata"]["uid"]
        for stage in ("guest", "agent"):
            self._timers.cancel((uid, stage))
        for stage in ("launch", "probe", "flap", "retry"):
            self._timers.cancel((pod_uid, stage))
        started = pod.obj["status"]["phase"] != "Pending"
        if started and phase_of(vmi) not in FINAL:
            delay = self._jitter.spread(self._durations.graceful_stop)
            self._timers.ensure((uid, "end"), "stop", delay, lambda: self._shut(key, uid))
        elif "deletionTimestamp" in pod.obj["metadata"]:
            # The pod's grace period counts from its deletion: a guest that took it all leaves none to wait for.
            delay = 0.0 if not started or uid in self._shut_down else self._jitter.spread(self._durations.graceful_stop)
            self._timers.ensure((pod_uid, "cleanup"), "cleanup", delay, lambda: self._remove_pod(key, pod_uid))

    def _shut(self, key: Key, uid: str) -> None:
        self._shut_down.add(uid)
        self._on_vmi(key, lambda vmi: stopped(vmi, self._api.clock.now()))

    def _remove_pod(self, key: Key, uid: str) -> None:
        found = self._api.store.by_uid(uid)
        if found is not None:
            metadata = found[1].obj["metadata"]
            self._api.store.remove(PODS, metadata["namespace"], metadata["name"])
        self._queue.add(key)

    def _on_vmi(self, key: Key, change: Callable[[Json], Json]) -> None:
        stored = self._api.store.get(VIRTUAL_MACHINE_INSTANCES, *key)
        if stored is None or phase_of(stored.obj) in FINAL or self._is_frozen(stored.obj):
            return
        self._api.modify(VIRTUAL_MACHINE_INSTANCES, stored, change)

    def _on_pod(self, key: Key, change: Callable[[Json], Json]) -> None:
        stored = self._api.store.get(VIRTUAL_MACHINE_INSTANCES, *key)
        pod = pod_of(self._api, stored.obj) if stored else None
        if pod is not None and pod.obj["spec"].get("nodeName") not in self._dead:
            self._api.modify(PODS, pod, change)

    def _is_frozen(self, vmi: Json) -> bool:
        return vmi["status"].get("nodeName") in self._dead


def _is_gated(pod: Json) -> bool:
    gate = find(pod["status"].get("conditions"), "kubevirt.io/virtual-machine-unpaused")
    return gate is not None and gate["status"] == "False"
