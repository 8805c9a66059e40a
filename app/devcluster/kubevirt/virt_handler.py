"""virt-handler: starts the pod and the guest of a VMI, watches them, and shuts them down."""

from collections.abc import Callable

from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import find, holds, make, put
from app.devcluster.apiserver.objects import Key, phase_of, with_status
from app.devcluster.apiserver.registry import PODS, VIRTUAL_MACHINE_INSTANCES
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.durations import Durations, Jitter
from app.devcluster.faults.book import FaultBook
from app.devcluster.faults.controller import FaultyController
from app.devcluster.kubevirt.guests import connected, disconnected, failed, started, stopped
from app.devcluster.kubevirt.vmi_controller import FINAL, pod_of
from app.devcluster.nodes.pod_start import PodStarter
from app.devcluster.nodes.pod_status import unready_message
from app.devcluster.nodes.power import NodePower
from app.devcluster.storage.volumes import boot_seconds

_UNPAUSED_GATE = 'corresponding condition of pod readiness gate "kubevirt.io/virtual-machine-unpaused" is not "True".'


class VirtHandler(FaultyController):
    """Moves each VMI's pod and guest through their stages by timers. On a node that is off nothing moves."""

    resource = VIRTUAL_MACHINE_INSTANCES

    def __init__(
        self,
        api: Api,
        durations: Durations,
        jitter: Jitter,
        faults: FaultBook,
        power: NodePower,
        starter: PodStarter,
    ) -> None:
        super().__init__(api, durations, jitter, faults)
        self._power = power
        self._starter = starter
        self._shut_down: set[str] = set()
        power.listen(self.resume)

    @override
    def _react(self, change: Change) -> None:
        if change.resource is PODS:
            if change.new is None:
                self._forget(change.last.uid)
            self._queue_owners(change)

    @override
    def _forget(self, uid: str) -> None:
        """A VMI or a pod is gone."""
        super()._forget(uid)
        for stage in ("guest", "agent", "probe", "end", "cleanup", "flap"):
            self._timers.cancel((uid, stage))
        self._starter.cancel(uid)
        self._shut_down.discard(uid)

    @override
    def _reconcile(self, stored: Stored) -> None:
        vmi, key = stored.obj, stored.key
        pod = pod_of(self._api, vmi)
        node = pod.obj["spec"].get("nodeName", "") if pod else ""
        if pod is None or self._power.is_off(node):
            return
        if stored.deleting or pod.deleting:
            self._end(key, vmi, pod)
        elif not node or phase_of(vmi) in FINAL:
            self._finish_pod(key, vmi, pod)
        elif phase_of(pod.obj) == "Pending":
            fault = self._faults.guest("image-error", vmi, node)
            unready = "readinessProbe" in vmi["spec"]
            self._starter.advance(
                pod, fault, lambda: self._queue.add(key), lambda obj: self._containers(obj, not unready)
            )
        elif phase_of(vmi) == "Scheduled":
            self._start_guest(key, vmi)
        elif phase_of(vmi) == "Running":
            self._watch_guest(key, vmi, pod)

    def _finish_pod(self, key: Key, vmi: Json, pod: Stored) -> None:
        """A pod whose guest has ended ends soon after it."""
        phase = phase_of(vmi)
        if phase in FINAL and phase_of(pod.obj) not in FINAL:
            delay = self._jitter.spread(self._durations.graceful_stop)
            end = (vmi["metadata"]["uid"], "end")
            self._timers.ensure(
                end, "finish", delay, lambda: self._on_pod(key, lambda obj: with_status(obj, phase=phase))
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
            delay = self._jitter.spread(boot_seconds(self._store, vmi, self._durations))
            self._timers.ensure((uid, "agent"), "agent", delay, lambda: self._on_vmi(key, self._connect))
        self._probe(key, vmi, pod, answers=answers and mute is None)

    def _probe(self, key: Key, vmi: Json, pod: Stored, *, answers: bool) -> None:
        """Keep the pod's Ready condition in line with the guest: by its probe if it has one, else ready from the start."""
        uid = pod.uid
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
        conditions = put(pod["status"].get("conditions"), marker)
        return self._gated(with_status(pod, conditions=conditions), _is_gated(pod))

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
        return pod if conditions == pod["status"].get("conditions") else with_status(pod, conditions=conditions)

    # The end

    def _end(self, key: Key, vmi: Json, pod: Stored) -> None:
        """Shut the guest down, then let the pod go."""
        uid = vmi["metadata"]["uid"]
        for timer in ((uid, "guest"), (uid, "agent"), (pod.uid, "probe"), (pod.uid, "flap")):
            self._timers.cancel(timer)
        self._starter.cancel(pod.uid)
        runs = phase_of(pod.obj) != "Pending"
        delay = self._jitter.spread(self._durations.graceful_stop)
        if runs and phase_of(vmi) not in FINAL:
            self._timers.ensure((uid, "end"), "stop", delay, lambda: self._shut(key, uid))
        elif pod.deleting:
            # The grace period of the pod counts from its deletion; after a guest's shutdown nothing of it is left.
            over = not runs or uid in self._shut_down
            self._timers.ensure(
                (pod.uid, "cleanup"), "cleanup", 0.0 if over else delay, lambda: self._remove_pod(key, pod.uid)
            )

    def _shut(self, key: Key, uid: str) -> None:
        self._shut_down.add(uid)
        self._on_vmi(key, lambda vmi: stopped(vmi, self._api.clock.now()))

    def _remove_pod(self, key: Key, uid: str) -> None:
        found = self._store.by_uid(uid)
        if found is not None:
            self._store.remove(PODS, *found[1].key)
        self._queue.add(key)

    def _on_vmi(self, key: Key, change: Callable[[Json], Json]) -> None:
        stored = self._store.get(VIRTUAL_MACHINE_INSTANCES, *key)
        if (
            stored is None
            or phase_of(stored.obj) in FINAL
            or self._power.is_off(stored.obj["status"].get("nodeName", ""))
        ):
            return
        self._api.modify(VIRTUAL_MACHINE_INSTANCES, stored, change)

    def _on_pod(self, key: Key, change: Callable[[Json], Json]) -> None:
        stored = self._store.get(VIRTUAL_MACHINE_INSTANCES, *key)
        pod = pod_of(self._api, stored.obj) if stored else None
        if pod is not None and not self._power.is_off(pod.obj["spec"].get("nodeName", "")):
            self._api.modify(PODS, pod, change)


def _is_gated(pod: Json) -> bool:
    gate = find(pod["status"].get("conditions"), "kubevirt.io/virtual-machine-unpaused")
    return gate is not None and gate["status"] == "False"
