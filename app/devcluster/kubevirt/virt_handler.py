"""virt-handler: starts the pod and the guest of a VMI, watches them, and shuts them down."""

from collections.abc import Callable, Mapping

from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import holds
from app.devcluster.apiserver.events import EventRecorder
from app.devcluster.apiserver.objects import Key, owners_of, phase_of, with_annotations, with_status
from app.devcluster.apiserver.registry import PODS, VIRTUAL_MACHINE_INSTANCES
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.durations import Durations, Jitter
from app.devcluster.faults.book import FaultBook
from app.devcluster.faults.controller import FaultyController
from app.devcluster.guests.memory import MISMATCH, restored_from
from app.devcluster.guests.runtime import AgentFacts, Domain, End, Guest, GuestRuntime
from app.devcluster.kubevirt.guest_status import connected, disconnected, ended, refused, stalled, started
from app.devcluster.kubevirt.memory import mark_stale, restore_problem
from app.devcluster.kubevirt.pod_readiness import with_containers, with_gate
from app.devcluster.kubevirt.vmi_controller import FINAL, pod_of
from app.devcluster.nodes.pod_start import PodStarter
from app.devcluster.nodes.power import NodePower


class VirtHandler(FaultyController):
    """Moves each VMI's pod and guest through their stages: says what a guest should do, and is told what becomes of it.

    On a node that is off nothing moves.
    """

    resource = VIRTUAL_MACHINE_INSTANCES

    def __init__(
        self,
        api: Api,
        durations: Durations,
        jitter: Jitter,
        faults: FaultBook,
        power: NodePower,
        starter: PodStarter,
        guests: GuestRuntime,
    ) -> None:
        super().__init__(api, durations, jitter, faults)
        self._power = power
        self._starter = starter
        self._guests = guests
        self._events = EventRecorder(api, "virt-handler")
        self._shut_down: set[str] = set()
        guests.listen(self)
        power.listen(self.resume)
        power.listen_for_loss(guests.switch_off)

    @override
    def stop(self) -> None:
        super().stop()
        self._guests.stop()

    @override
    def _react(self, change: Change) -> None:
        if change.resource is PODS:
            if change.new is None:
                self._forget(change.last.uid)
                for owner in owners_of(change.last.obj):
                    self._guests.forget(owner["uid"])
            self._queue_owners(change)

    @override
    def _forget(self, uid: str) -> None:
        """A VMI or a pod is gone."""
        super()._forget(uid)
        for stage in ("death", "finish", "cleanup", "flap"):
            self._timers.cancel((uid, stage))
        self._guests.forget(uid)
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
            ready = "readinessProbe" not in vmi["spec"]
            self._starter.advance(pod, fault, lambda: self._queue.add(key), lambda obj: self._contained(obj, ready))
        elif phase_of(vmi) == "Scheduled":
            self._start_guest(Guest(key, vmi, pod.obj))
        elif phase_of(vmi) == "Running":
            self._watch_guest(Guest(key, vmi, pod.obj), pod)

    def _start_guest(self, guest: Guest) -> None:
        vmi = guest.vmi
        held = self._faults.guest("never-boots", vmi) is not None
        if not held and (problem := self._memory_problem(vmi)) is not None:
            reason, message = problem
            self.ended(guest.key, End(failed=True, message=message, reason=reason))
            return
        fails = not held and self._faults.guest("boot-fails", vmi) is not None
        self._guests.start(guest, held=held, fails=fails)

    def _memory_problem(self, vmi: Json) -> tuple[str, str] | None:
        """Why the memory that the VMI asks for, if it does, is not even tried."""
        if restored_from(vmi) is None:
            return None
        problem = restore_problem(self._store, vmi, self._guests.memory_fingerprint(vmi))
        if problem is None and self._faults.guest("memory-mismatch", vmi) is not None:
            return MISMATCH, "the memory was kept with another QEMU than this one; ordered by a fault"
        return problem

    def _finish_pod(self, key: Key, vmi: Json, pod: Stored) -> None:
        """A pod whose guest has ended ends soon after it."""
        phase = phase_of(vmi)
        if phase in FINAL and phase_of(pod.obj) not in FINAL:
            delay = self._jitter.spread(self._durations.graceful_stop)
            finish = (vmi["metadata"]["uid"], "finish")
            self._timers.ensure(
                finish, "finish", delay, lambda: self._on_pod(key, lambda obj: with_status(obj, phase=phase))
            )

    # What becomes of guests

    def started(self, key: Key, domain: Domain) -> None:
        if (vmi := self._on_vmi(key, lambda vmi: started(vmi, domain, self._api.clock.now()))) is not None:
            self._events.record(vmi, "Started", "VirtualMachineInstance started.")

    def refused(self, key: Key, message: str) -> None:
        if (vmi := self._on_vmi(key, lambda vmi: refused(vmi, message, self._api.clock.now()))) is not None:
            self._events.record(vmi, "SyncFailed", message, warning=True)

    def connected(self, key: Key, facts: AgentFacts) -> None:
        self._on_vmi(key, lambda vmi: connected(vmi, facts, self._api.clock.now()))

    def disconnected(self, key: Key) -> None:
        self._on_vmi(key, disconnected)

    def noted(self, key: Key, annotations: Mapping[str, str]) -> None:
        self._on_vmi(key, lambda vmi: with_annotations(vmi, dict(annotations)))

    def stalled(self, key: Key, message: str) -> None:
        if (vmi := self._on_vmi(key, lambda vmi: stalled(vmi, self._api.clock.now()))) is not None:
            self._events.record(vmi, "IOerror", message, warning=True)

    def probed(self, key: Key, *, healthy: bool) -> None:
        self._on_pod(key, lambda obj: self._contained(obj, healthy))

    def ended(self, key: Key, end: End) -> None:
        stored = self._store.get(VIRTUAL_MACHINE_INSTANCES, *key)
        if stored is not None and not end.failed:
            self._shut_down.add(stored.uid)
        if (vmi := self._on_vmi(key, lambda vmi: ended(vmi, end, self._api.clock.now()))) is not None:
            self._events.record(vmi, "Stopped", end.message, warning=end.failed)
            if end.reason == MISMATCH:
                mark_stale(self._api, restored_from(vmi) or "", end.message)

    # Running guests

    def _watch_guest(self, guest: Guest, pod: Stored) -> None:
        vmi, uid = guest.vmi, guest.uid
        death = self._faults.guest("guest-dies", vmi)
        if death is not None:
            delay = float(death.settings.get("seconds", 0))
            self._timers.ensure((uid, "death"), "death", delay, lambda: self._guests.kill(guest))
        else:
            self._timers.cancel((uid, "death"))
        answers = holds(vmi["status"].get("conditions"), "AgentConnected")
        mute = self._faults.guest("no-agent", vmi) or self._faults.guest("agent-lost", vmi)
        self._guests.attend(guest, heard=mute is None)
        if mute is not None and answers:
            self._on_vmi(guest.key, disconnected)
            return
        self._watch_readiness(guest, pod, answers=answers and mute is None)

    def _watch_readiness(self, guest: Guest, pod: Stored, *, answers: bool) -> None:
        """Keep the pod's Ready condition in line with the guest: by its probe if it has one, else ready from the start."""
        key, vmi = guest.key, guest.vmi
        probed = "readinessProbe" in vmi["spec"]
        able = not probed or answers or not self._guests.probe_needs_agent(vmi)
        healthy = able and self._faults.guest("unready", vmi) is None
        flapping = self._faults.guest("flapping", vmi)
        ready = holds(pod.obj["status"].get("conditions"), "ContainersReady")
        if healthy and flapping is not None:
            self._flap(key, pod, float(flapping.settings.get("seconds", 1.0)), ready=ready)
        else:
            self._timers.cancel((pod.uid, "flap"))
        if healthy and probed and flapping is None:
            self._guests.probe(guest, ready=ready)
        else:
            self._guests.leave_unprobed(guest.uid)
        if healthy and not ready and flapping is None:
            if not probed:
                self._on_pod(key, lambda obj: self._contained(obj, True))
            return
        if not healthy and ready:
            self._on_pod(key, lambda obj: self._contained(obj, False))
            return
        paused = holds(vmi["status"].get("conditions"), "Paused")
        self._on_pod(key, lambda obj: with_gate(obj, self._api.clock.now(), paused=paused))

    def _flap(self, key: Key, pod: Stored, period: float, *, ready: bool) -> None:
        """Turn the readiness over after a while."""
        self._timers.ensure(
            (pod.uid, "flap"), "flap", period, lambda: self._on_pod(key, lambda obj: self._contained(obj, not ready))
        )

    def _contained(self, pod: Json, ready: bool) -> Json:  # noqa: FBT001  # read at its call as a verb's object
        return with_containers(pod, self._api.clock.now(), ready=ready)

    # The end

    def _end(self, key: Key, vmi: Json, pod: Stored) -> None:
        """Shut the guest down, then let the pod go."""
        uid = vmi["metadata"]["uid"]
        self._timers.cancel((uid, "death"))
        self._timers.cancel((pod.uid, "flap"))
        self._starter.cancel(pod.uid)
        runs = phase_of(pod.obj) != "Pending"
        if runs and phase_of(vmi) not in FINAL:
            self._guests.shut_down(Guest(key, vmi, pod.obj))
        elif pod.deleting:
            # The grace period of the pod counts from its deletion; after a guest's shutdown nothing of it is left.
            over = not runs or uid in self._shut_down
            delay = 0.0 if over else self._jitter.spread(self._durations.graceful_stop)
            self._timers.ensure((pod.uid, "cleanup"), "cleanup", delay, lambda: self._remove_pod(key, pod.uid))

    def _remove_pod(self, key: Key, uid: str) -> None:
        found = self._store.by_uid(uid)
        if found is not None:
            self._store.remove(PODS, *found[1].key)
        self._queue.add(key)

    def _on_vmi(self, key: Key, change: Callable[[Json], Json]) -> Json | None:
        """Gives the changed VMI; None where it is gone, has ended, or is on a node that is off."""
        stored = self._store.get(VIRTUAL_MACHINE_INSTANCES, *key)
        if (
            stored is None
            or phase_of(stored.obj) in FINAL
            or self._power.is_off(stored.obj["status"].get("nodeName", ""))
        ):
            return None
        return self._api.modify(VIRTUAL_MACHINE_INSTANCES, stored, change).obj

    def _on_pod(self, key: Key, change: Callable[[Json], Json]) -> None:
        stored = self._store.get(VIRTUAL_MACHINE_INSTANCES, *key)
        pod = pod_of(self._api, stored.obj) if stored else None
        if pod is not None and not self._power.is_off(pod.obj["spec"].get("nodeName", "")):
            self._api.modify(PODS, pod, change)
