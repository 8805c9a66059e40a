"""The kubelet of pods that hold no guest: it has their images pulled, starts them, and lets them go."""

from collections.abc import Callable

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import make, put
from app.devcluster.apiserver.objects import Change, Key, Stored
from app.devcluster.apiserver.registry import PODS
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.work import Timers, WorkQueue
from app.devcluster.durations import Durations, Jitter
from app.devcluster.faults.faults import FaultBook
from app.devcluster.kubevirt.launcher import LAUNCHER_IMAGE
from app.devcluster.nodes.image_cache import ImageCache, images
from app.devcluster.nodes.image_pulls import PULL_ERRORS, refuse_pull
from app.devcluster.nodes.node_agent import NodeAgent
from app.devcluster.nodes.pod_addresses import PodAddresses
from app.devcluster.nodes.pod_status import (
    Refusal,
    accepted,
    initialized,
    is_initialized,
    pull_failed,
    running,
    waiting_reason,
)


class PodKubelet:
    """Launcher pods are the node agent's; on its dead nodes nothing moves here either."""

    def __init__(
        self,
        api: Api,
        durations: Durations,
        jitter: Jitter,
        faults: FaultBook,
        images: ImageCache,
        agent: NodeAgent,
        addresses: PodAddresses,
    ) -> None:
        self._api = api
        self._durations = durations
        self._jitter = jitter
        self._faults = faults
        self._images = images
        self._agent = agent
        self._addresses = addresses
        self._timers: Timers[tuple[str, str]] = Timers(api.clock)
        self._queue: WorkQueue[Key] = WorkQueue("kubelet", self._visit, api.clock, durations.reaction)
        self._unsubscribe = api.store.subscribe(self._notice)
        faults.listen(self.resume)
        agent.on_thaw(self.resume)

    def resume(self) -> None:
        """Look at every pod: after a start from a saved state, when faults come or go, and when a node is back."""
        for stored in self._api.store.each(PODS):
            self._queue.add(_key(stored))

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()
        self._timers.cancel_all()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def _notice(self, change: Change) -> None:
        if change.resource is not PODS or _holds_guest(change.last.obj):
            return
        if change.new is None:
            uid = change.last.obj["metadata"]["uid"]
            for stage in ("end", "launch", "retry"):
                self._timers.cancel((uid, stage))
            self._faults.forget(uid)
        else:
            self._queue.add(change.key)

    def _visit(self, key: Key) -> None:
        pod = self._api.store.get(PODS, *key)
        if pod is None or _holds_guest(pod.obj):
            return
        node = pod.obj["spec"].get("nodeName", "")
        going = "deletionTimestamp" in pod.obj["metadata"]
        if self._agent.is_dead(node):
            return
        if going:
            self._end(pod, started=pod.obj["status"].get("phase") == "Running")
        elif node and pod.obj["status"].get("phase", "Pending") == "Pending":
            self._start(key, pod, node)

    def _start(self, key: Key, pod: Stored, node: str) -> None:
        uid = pod.obj["metadata"]["uid"]
        now = self._api.clock.now()
        wanted = images(pod.obj)
        fault = self._faults.on_object("image-error", "pods", pod.obj, node=node)
        if fault is not None:
            image = (wanted or [LAUNCHER_IMAGE])[-1]
            if "startTime" not in pod.obj["status"]:
                self._api.modify(PODS, pod, lambda obj: accepted(obj, now))
            known = waiting_reason(pod.obj, image) in PULL_ERRORS
            delay = self._jitter.spread(self._durations.image_retry if known else self._durations.launch)
            self._timers.ensure(
                (uid, "retry"), "retry", delay, lambda: self._refuse(uid, lambda obj: refuse_pull(obj, image, fault))
            )
            return
        refusal = self._agent.puller.never_pulled(node, pod.obj)
        if refusal is not None:
            again = self._jitter.spread(self._durations.image_retry)
            self._timers.ensure((uid, "retry"), "look", again, lambda: self._queue.add(key))
            self._api.modify(PODS, pod, lambda obj: pull_failed(obj, refusal, now))
            return
        self._timers.cancel((uid, "retry"))
        if not self._agent.puller.bring(node, pod.obj, lambda: self._queue.add(key)):
            if "startTime" not in pod.obj["status"]:
                self._api.modify(PODS, pod, lambda obj: accepted(obj, now))
            return
        if not is_initialized(pod.obj):
            self._api.modify(PODS, pod, lambda obj: initialized(obj, now))
        delay = self._jitter.spread(self._durations.launch)
        self._timers.ensure((uid, "launch"), "launch", delay, lambda: self._change(uid, self._launched))

    def _launched(self, pod: Json) -> Json:
        now = self._api.clock.now()
        self._images.use(pod["spec"]["nodeName"], pod)
        started = running(pod, self._addresses.take(), now)
        conditions = put(started["status"]["conditions"], make("Ready", True, now))
        conditions = put(conditions, make("ContainersReady", True, now))
        return {**started, "status": {**started["status"], "conditions": conditions}}

    def _refuse(self, uid: str, decide: Callable[[Json], Refusal]) -> None:
        now = self._api.clock.now()
        self._change(uid, lambda pod: pull_failed(pod, decide(pod), now))

    def _end(self, pod: Stored, *, started: bool) -> None:
        uid = pod.obj["metadata"]["uid"]
        for stage in ("launch", "retry"):
            self._timers.cancel((uid, stage))
        delay = self._durations.graceful_stop if started else 0.0
        self._timers.ensure((uid, "end"), "end", delay, lambda: self._remove(uid))

    def _change(self, uid: str, change: Callable[[Json], Json]) -> None:
        found = self._api.store.by_uid(uid)
        if found is None:
            return
        pod = found[1]
        if "deletionTimestamp" not in pod.obj["metadata"] and not self._agent.is_dead(pod.obj["spec"]["nodeName"]):
            self._api.modify(PODS, pod, change)

    def _remove(self, uid: str) -> None:
        found = self._api.store.by_uid(uid)
        if found is not None and not self._agent.is_dead(found[1].obj["spec"].get("nodeName", "")):
            metadata = found[1].obj["metadata"]
            self._api.store.remove(PODS, metadata["namespace"], metadata["name"])


def _holds_guest(pod: Json) -> bool:
    return (pod["metadata"].get("labels") or {}).get("kubevirt.io") == "virt-launcher"


def _key(stored: Stored) -> Key:
    metadata = stored.obj["metadata"]
    return (metadata["namespace"], metadata["name"])
