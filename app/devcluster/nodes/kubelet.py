"""The kubelet for pods without a guest: it starts them, and removes deleted ones."""

from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import make, put
from app.devcluster.apiserver.controller import KindController
from app.devcluster.apiserver.objects import labels_of, phase_of, with_status
from app.devcluster.apiserver.registry import PODS
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.durations import Durations
from app.devcluster.faults.book import FaultBook
from app.devcluster.nodes.pod_start import PodStarter
from app.devcluster.nodes.power import NodePower


class Kubelet(KindController):
    """The virt-handler does the same for launcher pods."""

    resource = PODS

    def __init__(
        self, api: Api, durations: Durations, faults: FaultBook, power: NodePower, starter: PodStarter
    ) -> None:
        super().__init__(api, durations.reaction)
        self._durations = durations
        self._faults = faults
        self._power = power
        self._starter = starter
        faults.listen(self.resume)
        power.listen(self.resume)

    @override
    def _notice(self, change: Change) -> None:
        if not _holds_guest(change.last.obj):
            super()._notice(change)

    @override
    def _forget(self, uid: str) -> None:
        super()._forget(uid)
        self._starter.cancel(uid)
        self._faults.forget(uid)

    @override
    def _reconcile(self, stored: Stored) -> None:
        node, key = stored.obj["spec"].get("nodeName", ""), stored.key
        if _holds_guest(stored.obj) or self._power.is_off(node):
            return
        if stored.deleting:
            self._starter.cancel(stored.uid)
            delay = self._durations.graceful_stop if phase_of(stored.obj) == "Running" else 0.0
            self._timers.ensure(stored.uid, "end", delay, lambda: self._remove(stored.uid))
        elif node and phase_of(stored.obj) in {"", "Pending"}:
            fault = self._faults.on_object("image-error", PODS.plural, stored.obj, node=node)
            self._starter.advance(stored, fault, lambda: self._queue.add(key), self._ready)

    def _ready(self, pod: Json) -> Json:
        conditions = pod["status"]["conditions"]
        for kind in ("Ready", "ContainersReady"):
            conditions = put(conditions, make(kind, True, self._api.clock.now()))
        return with_status(pod, conditions=conditions)

    def _remove(self, uid: str) -> None:
        found = self._store.by_uid(uid)
        if found is not None and not self._power.is_off(found[1].obj["spec"].get("nodeName", "")):
            self._store.remove(PODS, *found[1].key)


def _holds_guest(pod: Json) -> bool:
    return labels_of(pod).get("kubevirt.io") == "virt-launcher"
