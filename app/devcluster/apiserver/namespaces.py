"""A namespace that is deleted takes what is in it along."""

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.deletion import DeleteOptions, delete
from app.devcluster.apiserver.objects import Change
from app.devcluster.apiserver.registry import NAMESPACES, RESOURCES
from app.devcluster.apiserver.work import WorkQueue


class NamespaceController:
    """Departs from Kubernetes in its order: here the namespace goes first, its objects as their finalizers allow."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._queue: WorkQueue[str] = WorkQueue("namespace", self._empty, api.clock)
        self._unsubscribe = api.store.subscribe(self._notice)

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def _notice(self, change: Change) -> None:
        if change.resource is NAMESPACES and change.new is None:
            self._queue.add(change.key[1])

    def _empty(self, namespace: str) -> None:
        for resource in RESOURCES:
            if not resource.namespaced:
                continue
            for stored in self._api.store.rows(resource, namespace):
                metadata = stored.obj["metadata"]
                if "deletionTimestamp" not in metadata:
                    delete(self._api, resource, namespace, metadata["name"], DeleteOptions(uid=metadata["uid"]))
