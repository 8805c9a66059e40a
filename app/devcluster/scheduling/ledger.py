"""What pods ask for on each node."""

from collections.abc import Collection

from app.devcluster.apiserver.objects import phase_of
from app.devcluster.apiserver.pod_resources import pod_requests
from app.devcluster.apiserver.registry import PODS
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Store
from app.devcluster.scheduling.pod_terms import has_pod_terms


class Ledger:
    """Kept up to date from the store's changes."""

    def __init__(self, store: Store) -> None:
        self._asked: dict[str, tuple[str, dict[str, int]]] = {}
        self._pods: dict[str, dict[str, Json]] = {}
        self._with_terms: dict[str, dict[str, Json]] = {}
        self._used: dict[str, dict[str, int]] = {}
        for stored in store.each(PODS):
            self._enter(stored.obj)
        self._unsubscribe = store.subscribe(self._notice)

    def stop(self) -> None:
        self._unsubscribe()

    def used(self, node: str) -> dict[str, int]:
        return self._used.get(node, {})

    def pods_on(self, node: str) -> Collection[Json]:
        """Pods that are bound there and have not ended; those that are going away are among them."""
        return self._pods.get(node, {}).values()

    def pods_with_terms(self, node: str) -> Collection[Json]:
        """Those of them that have affinity or anti-affinity to other pods."""
        return self._with_terms.get(node, {}).values()

    def _notice(self, change: Change) -> None:
        if change.resource is not PODS:
            return
        if change.new is None:
            self._leave(change.last.uid)
        else:
            self._enter(change.new.obj)

    def _enter(self, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        node = pod["spec"].get("nodeName")
        if not node or phase_of(pod) in {"Succeeded", "Failed"}:
            self._leave(uid)
            return
        self._pods.setdefault(node, {})[uid] = pod
        if has_pod_terms(pod):
            self._with_terms.setdefault(node, {})[uid] = pod
        if uid in self._asked:
            return
        asked = pod_requests(pod)
        self._asked[uid] = (node, asked)
        used = self._used.setdefault(node, {})
        for name, amount in asked.items():
            used[name] = used.get(name, 0) + amount

    def _leave(self, uid: str) -> None:
        node, asked = self._asked.pop(uid, ("", {}))
        self._pods.get(node, {}).pop(uid, None)
        self._with_terms.get(node, {}).pop(uid, None)
        used = self._used.get(node, {})
        for name, amount in asked.items():
            used[name] -= amount
