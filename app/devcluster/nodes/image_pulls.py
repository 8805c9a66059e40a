"""Image pulls: one at a time for each node and image, whichever pods wait for it."""

from collections.abc import Callable
from functools import partial

from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.work import Timers
from app.devcluster.clock import Clock
from app.devcluster.durations import Durations, Jitter
from app.devcluster.faults.book import Fault
from app.devcluster.nodes.image_cache import ImageCache
from app.devcluster.nodes.pod_status import Refusal, waiting_reason
from app.devcluster.nodes.power import NodePower

_Pull = tuple[str, str]


class ImagePuller:
    def __init__(
        self, clock: Clock, durations: Durations, jitter: Jitter, images: ImageCache, power: NodePower
    ) -> None:
        self._durations = durations
        self._jitter = jitter
        self._images = images
        self._power = power
        self._timers: Timers[_Pull] = Timers(clock)
        self._waiting: dict[_Pull, dict[str, Callable[[], None]]] = {}

    def stop(self) -> None:
        self._timers.cancel_all()

    def bring(self, node: str, pod: Json, then: Callable[[], None]) -> bool:
        """Whether the node has all images of the pod. Missing ones are pulled, and `then` is called after each."""
        missing = self._images.missing(node, pod)
        for image in missing:
            pull = (node, image)
            self._waiting.setdefault(pull, {})[pod["metadata"]["uid"]] = then
            delay = self._jitter.spread(self._durations.image_pull)
            self._timers.ensure(pull, "pull", delay, partial(self._end, pull))
        return not missing

    def _end(self, pull: _Pull) -> None:
        node, image = pull
        waiting = self._waiting.pop(pull, {})
        if self._power.is_off(node):
            return  # the pull ended with the node
        self._images.add(node, image)
        for then in waiting.values():
            then()


def never_pulled(images: ImageCache, node: str, pod: Json) -> Refusal | None:
    """The refusal of the first missing image with the pull policy Never; None where there is none."""
    spec = pod["spec"]
    for item in (*(spec.get("initContainers") or ()), *spec["containers"]):
        if item.get("imagePullPolicy") == "Never" and not images.holds(node, item["image"]):
            message = f'Container image "{item["image"]}" is not present with pull policy of Never'
            return Refusal(item["image"], "ErrImageNeverPull", message)
    return None


def refuse_pull(pod: Json, image: str, fault: Fault) -> Refusal:
    """ErrImagePull and ImagePullBackOff in turn at each call."""
    problem = fault.settings.get(
        "message",
        f'rpc error: code = NotFound desc = failed to pull and unpack image "{image}": failed to resolve reference '
        f'"{image}": not found',
    )
    if waiting_reason(pod, image) == "ErrImagePull":
        return Refusal(image, "ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {problem}')
    return Refusal(image, "ErrImagePull", problem)
