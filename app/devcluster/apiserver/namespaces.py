"""A namespace that is deleted takes its objects with it."""

from typing_extensions import override

from app.devcluster.apiserver.controller import Controller
from app.devcluster.apiserver.registry import NAMESPACES, RESOURCES
from app.devcluster.apiserver.store import Change


class NamespaceController(Controller[str]):
    """Departs from Kubernetes in the order: here the namespace goes first, and its objects as their finalizers allow."""

    @override
    def resume(self) -> None:
        """Nothing to do: what a namespace leaves behind is found only when it goes."""

    @override
    def _notice(self, change: Change) -> None:
        if change.resource is NAMESPACES and change.new is None:
            self._queue.add(change.key[1])

    @override
    def _handle(self, key: str) -> None:
        for resource in RESOURCES:
            if resource.namespaced:
                for stored in self._store.rows(resource, key):
                    self._delete(resource, stored)
