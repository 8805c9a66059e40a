"""The image cache of each node, of limited size; the status of the node lists it, as a kubelet does."""

from collections import OrderedDict

from app.devcluster.apiserver.pod_images import LAUNCHER_IMAGE, pinned_name, pod_images
from app.devcluster.apiserver.registry import NODES, PODS
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Store

IMAGE_CACHE_SLOTS = 20
IMAGE_BYTES = 512 * 2**20
"""The size of every simulated image."""

_ENDED = frozenset({"Succeeded", "Failed"})
_TOLD = 50


class ImageCache:
    """Beyond `slots` images the least recently used one is evicted, except for images that a pod on the node uses: those may
    exceed the slots. The launcher's own image is on every node and needs no slot.
    """

    def __init__(self, store: Store, slots: int = IMAGE_CACHE_SLOTS) -> None:
        self._store = store
        self._slots = slots
        self._own_slots: dict[str, int] = {}
        self._held: dict[str, OrderedDict[str, None]] = {}

    def load(self) -> None:
        """Load the images from the status of the nodes of a saved cluster."""
        for stored in self._store.each(NODES):
            told = [item["names"][-1] for item in stored.obj["status"].get("images", ())]
            held = self._held.setdefault(stored.obj["metadata"]["name"], OrderedDict())
            held.update(dict.fromkeys(image for image in reversed(told) if image != LAUNCHER_IMAGE))

    def missing(self, node: str, pod: Json) -> list[str]:
        held = self._held.setdefault(node, OrderedDict())
        return [image for image in pod_images(pod) if image not in held]

    def holds(self, node: str, image: str) -> bool:
        return image in self._held.get(node, ())

    def add(self, node: str, image: str) -> None:
        self._keep(node, [image])

    def use(self, node: str, pod: Json) -> None:
        self._keep(node, pod_images(pod))

    def introduce(self, node: str, slots: int | None) -> None:
        """Add a node, or change its slots; None for the default number."""
        if slots is None:
            self._own_slots.pop(node, None)
        else:
            self._own_slots[node] = slots
        self._keep(node, [])
        self._tell(node)

    def forget(self, node: str) -> None:
        self._held.pop(node, None)
        self._own_slots.pop(node, None)

    def held(self) -> dict[str, list[str]]:
        return {node: list(held) for node, held in self._held.items()}

    def describe(self, node: str) -> list[Json]:
        """`status.images` of the node, the most recently used first."""
        held = [*reversed(self._held.get(node, ())), LAUNCHER_IMAGE]
        return [_describe(image) for image in held[:_TOLD]]

    def _keep(self, node: str, wanted: list[str]) -> None:
        held = self._held.setdefault(node, OrderedDict())
        before = set(held)
        for image in wanted:
            held[image] = None
            held.move_to_end(image)
        if len(held) > self._slots_of(node):
            self._evict(node, held, wanted)
        if set(held) != before:
            self._tell(node)

    def _slots_of(self, node: str) -> int:
        return self._own_slots.get(node, self._slots)

    def _evict(self, node: str, held: "OrderedDict[str, None]", wanted: list[str]) -> None:
        used = {*wanted}
        for pod in self._store.each(PODS):
            if pod.obj["spec"].get("nodeName") == node and pod.obj["status"].get("phase") not in _ENDED:
                used.update(pod_images(pod.obj))
        for image in [image for image in held if image not in used]:
            if len(held) <= self._slots_of(node):
                return
            del held[image]

    def _tell(self, node: str) -> None:
        stored = self._store.get(NODES, "", node)
        told = self.describe(node)
        if stored is not None and stored.obj["status"].get("images") != told:
            status = {**stored.obj["status"], "images": told}
            self._store.put(NODES, {**stored.obj, "status": status})


def _describe(image: str) -> Json:
    return {"names": list(dict.fromkeys([pinned_name(image), image])), "sizeBytes": IMAGE_BYTES}
