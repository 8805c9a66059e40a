"""From a pod that is bound to a node to one that runs: its images are pulled, then its containers start."""

from collections.abc import Callable

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.pod_images import LAUNCHER_IMAGE, pod_images
from app.devcluster.apiserver.registry import PODS
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Stored
from app.devcluster.apiserver.work import Timers
from app.devcluster.durations import Durations, Jitter
from app.devcluster.faults.book import Fault
from app.devcluster.nodes.image_cache import ImageCache
from app.devcluster.nodes.image_pulls import ImagePuller, never_pulled, refuse_pull
from app.devcluster.nodes.pod_status import (
    accepted,
    initialized,
    is_initialized,
    pull_failed,
    running,
    waiting_reason,
)
from app.devcluster.nodes.power import NodePower

_PULL_ERRORS = frozenset({"ErrImagePull", "ImagePullBackOff"})
_ADDRESSES_PER_BLOCK = 250


class PodStarter:
    """What the kubelet does for every pod, also for those that hold guests."""

    def __init__(self, api: Api, durations: Durations, jitter: Jitter, images: ImageCache, power: NodePower) -> None:
        self._api = api
        self._durations = durations
        self._jitter = jitter
        self._images = images
        self._power = power
        self._puller = ImagePuller(api.clock, durations, jitter, images, power)
        self._timers: Timers[tuple[str, str]] = Timers(api.clock)
        self._addresses = 1

    def resume(self) -> None:
        """Register the images and addresses of the running pods of a saved cluster."""
        for stored in self._api.store.each(PODS):
            status = stored.obj["status"]
            if status["phase"] == "Running":
                self._images.use(stored.obj["spec"]["nodeName"], stored.obj)
            if status.get("podIP"):
                high, low = status["podIP"].split(".")[2:]
                self._addresses = max(self._addresses, int(high) * _ADDRESSES_PER_BLOCK + int(low) - 1)

    def stop(self) -> None:
        self._puller.stop()
        self._timers.cancel_all()

    def advance(
        self, pod: Stored, fault: Fault | None, again: Callable[[], None], launched: Callable[[Json], Json]
    ) -> None:
        """Bring a pending pod one step further.

        A `fault` makes the pull of its last image fail. `again` is called when another step may be due. `launched` adds the
        readiness to the running pod.
        """
        uid, node, now = pod.uid, pod.obj["spec"]["nodeName"], self._api.clock.now()
        if fault is not None:
            self._fail_pull(pod, fault)
            return
        refusal = never_pulled(self._images, node, pod.obj)
        if refusal is not None:
            self._timers.ensure((uid, "retry"), "look", self._jitter.spread(self._durations.image_retry), again)
            self._api.modify(PODS, pod, lambda obj: pull_failed(obj, refusal, now))
            return
        self._timers.cancel((uid, "retry"))
        if not self._puller.bring(node, pod.obj, again):
            self._accept(pod)
            return
        if not is_initialized(pod.obj):
            self._api.modify(PODS, pod, lambda obj: initialized(obj, now))
        delay = self._jitter.spread(self._durations.launch)
        self._timers.ensure((uid, "launch"), "launch", delay, lambda: self._launch(uid, launched))

    def cancel(self, uid: str) -> None:
        """Stop starting the pod."""
        self._timers.cancel((uid, "launch"))
        self._timers.cancel((uid, "retry"))

    def _fail_pull(self, pod: Stored, fault: Fault) -> None:
        """ErrImagePull and ImagePullBackOff in turn, as long as the fault stands."""
        image = (pod_images(pod.obj) or [LAUNCHER_IMAGE])[-1]
        self._accept(pod)
        known = waiting_reason(pod.obj, image) in _PULL_ERRORS
        delay = self._jitter.spread(self._durations.image_retry if known else self._durations.launch)

        def refuse(obj: Json) -> Json:
            return pull_failed(obj, refuse_pull(obj, image, fault), self._api.clock.now())

        self._timers.ensure((pod.uid, "retry"), "retry", delay, lambda: self._change(pod.uid, refuse))

    def _accept(self, pod: Stored) -> None:
        if "startTime" not in pod.obj["status"]:
            self._api.modify(PODS, pod, lambda obj: accepted(obj, self._api.clock.now()))

    def _launch(self, uid: str, launched: Callable[[Json], Json]) -> None:
        def launch(pod: Json) -> Json:
            self._images.use(pod["spec"]["nodeName"], pod)
            return launched(running(pod, self._take_address(), self._api.clock.now()))

        self._change(uid, launch)

    def _take_address(self) -> str:
        self._addresses += 1
        block, place = divmod(self._addresses, _ADDRESSES_PER_BLOCK)
        return f"10.244.{block % 256}.{place + 1}"

    def _change(self, uid: str, change: Callable[[Json], Json]) -> None:
        found = self._api.store.by_uid(uid)
        if found is not None and not found[1].deleting and not self._power.is_off(found[1].obj["spec"]["nodeName"]):
            self._api.modify(PODS, found[1], change)
