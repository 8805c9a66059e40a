"""Nodes that stop reporting, come back, or are removed (delays as in Kubernetes 1.36)."""

from collections.abc import Callable

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import make, put
from app.devcluster.apiserver.deletion import DeleteOptions, delete
from app.devcluster.apiserver.objects import labels_of, with_metadata, with_status
from app.devcluster.apiserver.registry import NODES, PODS
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.apiserver.times import stamp
from app.devcluster.clock import Timer
from app.devcluster.durations import Durations
from app.devcluster.nodes.image_cache import ImageCache
from app.devcluster.nodes.node_objects import ready_conditions
from app.devcluster.nodes.power import NodePower
from app.devcluster.scheduling.node_terms import tolerates

_TAINT = "node.kubernetes.io/unreachable"
_SCHEDULABLE = "kubevirt.io/schedulable"


class NodeLifecycle:
    """A killed node becomes NotReady after `node_grace`. Its pods are deleted `node_eviction` later, but disappear only when
    the node is back or removed. A node that is back takes new VMs after `node_return`.
    """

    def __init__(self, api: Api, durations: Durations, power: NodePower, images: ImageCache) -> None:
        self._api = api
        self._durations = durations
        self._power = power
        self._images = images
        self._timers: dict[str, list[Timer]] = {}
        self._unsubscribe = api.store.subscribe(self._notice)

    def resume(self) -> None:
        """Switch off the nodes that were unreachable when the state was saved."""
        for stored in self._api.store.each(NODES):
            if any(item["key"] == _TAINT for item in stored.obj["spec"].get("taints", ())):
                self._power.switch_off(stored.obj["metadata"]["name"])

    def stop(self) -> None:
        self._unsubscribe()
        for name in list(self._timers):
            self._cancel(name)

    def kill(self, name: str) -> None:
        """Power off. Raises ApiError 404 for an unknown node."""
        self._api.get(NODES, "", name)
        self._cancel(name)
        self._power.switch_off(name)
        clock, grace = self._api.clock, self._durations.node_grace
        self._timers[name] = [
            clock.call_later(grace, lambda: self._miss(name)),
            clock.call_later(grace + self._durations.node_eviction, lambda: self._evict(name)),
        ]

    def revive(self, name: str) -> None:
        """Power on again; guests that were not evicted are still running."""
        self._api.get(NODES, "", name)
        self._cancel(name)
        self._change(name, self._alive)
        self._power.switch_on(name)
        timer = self._api.clock.call_later(self._durations.node_return, lambda: self._set_schedulable(name, "true"))
        self._timers[name] = [timer]

    def remove(self, name: str) -> None:
        """Remove the node, and its pods with it."""
        self._api.get(NODES, "", name)
        self._api.store.remove(NODES, "", name)

    def _notice(self, change: Change) -> None:
        if change.resource is not NODES:
            return
        if change.new is not None:
            self._expel(change.new.obj)
            return
        name = change.key[1]
        self._cancel(name)
        self._images.forget(name)
        for pod in self._pods(name):
            self._api.store.remove(PODS, *pod.key)
        self._power.switch_on(name)

    def _expel(self, node: Json) -> None:
        """Delete the pods that do not tolerate a NoExecute taint. The unreachable taint is left to `_evict`."""
        taints = [item for item in _own_taints(node) if item["effect"] == "NoExecute"]
        if not taints:
            return
        for pod in self._pods(node["metadata"]["name"]):
            tolerations = pod.obj["spec"].get("tolerations") or ()
            if not pod.deleting and not all(tolerates(tolerations, item) for item in taints):
                delete(self._api, PODS, *pod.key, DeleteOptions(uid=pod.uid))

    def _miss(self, name: str) -> None:
        now = self._api.clock.now()

        def unknown(node: Json) -> Json:
            taints = [
                *_own_taints(node),
                *({"key": _TAINT, "effect": effect, "timeAdded": stamp(now)} for effect in ("NoSchedule", "NoExecute")),
            ]
            status = {**node["status"], "conditions": ready_conditions(now, alive=False)}
            return {**node, "spec": {**node["spec"], "taints": taints}, "status": status}

        self._change(name, unknown)
        for pod in self._pods(name):
            self._api.modify(PODS, pod, self._unready)

    def _unready(self, pod: Json) -> Json:
        conditions = put(pod["status"].get("conditions"), make("Ready", False, self._api.clock.now()))
        return with_status(pod, conditions=conditions)

    def _evict(self, name: str) -> None:
        self._set_schedulable(name, "false")
        for pod in self._pods(name):
            if not pod.deleting and not _stays(pod.obj):
                delete(self._api, PODS, *pod.key, DeleteOptions(uid=pod.uid))

    def _alive(self, node: Json) -> Json:
        taints = _own_taints(node)
        spec = {key: value for key, value in node["spec"].items() if key != "taints"}
        if taints:
            spec["taints"] = taints
        status = {**node["status"], "conditions": ready_conditions(self._api.clock.now())}
        return {**node, "spec": spec, "status": status}

    def _pods(self, name: str) -> list[Stored]:
        return [pod for pod in self._api.store.each(PODS) if pod.obj["spec"].get("nodeName") == name]

    def _change(self, name: str, change: Callable[[Json], Json]) -> None:
        stored = self._api.store.get(NODES, "", name)
        if stored is not None:
            self._api.modify(NODES, stored, change)

    def _set_schedulable(self, name: str, value: str) -> None:
        """Set the label by which KubeVirt chooses nodes for VMs."""
        self._change(name, lambda node: with_metadata(node, labels={**labels_of(node), _SCHEDULABLE: value}))

    def _cancel(self, name: str) -> None:
        for timer in self._timers.pop(name, ()):
            timer.cancel()


def _own_taints(node: Json) -> list[Json]:
    """The taints of the node except the unreachable ones."""
    return [item for item in node["spec"].get("taints") or () if item["key"] != _TAINT]


def _stays(pod: Json) -> bool:
    """Whether the pod tolerates an unreachable node for ever, as pods of DaemonSets do."""
    taint = {"key": _TAINT, "effect": "NoExecute"}
    lasting = [item for item in pod["spec"].get("tolerations") or () if "tolerationSeconds" not in item]
    return tolerates(lasting, taint)
