"""The garbage collector: what owners' deletion means for what they own (Background, Foreground, Orphan)."""

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.deletion import FOREGROUND, ORPHAN, DeleteOptions, delete
from app.devcluster.apiserver.objects import Change, Key, Stored
from app.devcluster.apiserver.registry import Resource, by_id
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.work import WorkQueue
from app.devcluster.durations import Durations

_Item = tuple[str, str, Key]


class GarbageCollector:
    """Looks at an object when its owners change or go, and at an owner when it waits for its dependents.

    An owner that KubeVirt's controllers still hold loses `foregroundDeletion` after their finalizers: the real collector
    is slower than they are.
    """

    def __init__(self, api: Api, durations: Durations) -> None:
        self._api = api
        self._queue: WorkQueue[_Item] = WorkQueue("garbage", self._visit, api.clock, durations.collection)
        self._unsubscribe = api.store.subscribe(self._notice)

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def resume(self, resource: Resource) -> None:
        """Look at every object of a kind, after a start from a saved state."""
        for stored in self._api.store.each(resource):
            self._consider(resource, stored)

    def _notice(self, change: Change) -> None:
        store = self._api.store
        if change.new is None:
            uid = change.last.obj["metadata"]["uid"]
            for resource_id, key in store.dependents(uid):
                self._queue.add(("dependent", resource_id, key))
            for reference in change.last.obj["metadata"].get("ownerReferences", ()):
                self._add_owner(reference["uid"])
            return
        self._consider(change.resource, change.new)
        if change.old is not None:
            owned = change.old.obj["metadata"].get("ownerReferences")
            if owned and owned != change.new.obj["metadata"].get("ownerReferences"):
                for reference in owned:
                    self._add_owner(reference["uid"])

    def _consider(self, resource: Resource, stored: Stored) -> None:
        metadata = stored.obj["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        if "deletionTimestamp" in metadata and {FOREGROUND, ORPHAN} & set(metadata.get("finalizers", ())):
            self._queue.add(("owner", resource.id, key))
        for reference in metadata.get("ownerReferences", ()):
            owner = self._api.store.by_uid(reference["uid"])
            if owner is None or _awaits(owner[1]):
                self._queue.add(("dependent", resource.id, key))
                return

    def _add_owner(self, uid: str) -> None:
        owner = self._api.store.by_uid(uid)
        if owner is not None and _awaits(owner[1]):
            metadata = owner[1].obj["metadata"]
            self._queue.add(("owner", owner[0].id, (metadata.get("namespace", ""), metadata["name"])))

    def _visit(self, item: _Item) -> None:
        role, resource_id, key = item
        resource = by_id(resource_id)
        stored = self._api.store.get(resource, *key)
        if stored is None:
            return
        if role == "owner":
            self._visit_owner(resource, stored)
        else:
            self._visit_dependent(resource, stored)

    def _visit_owner(self, resource: Resource, stored: Stored) -> None:
        metadata = stored.obj["metadata"]
        finalizers = metadata.get("finalizers", ())
        if "deletionTimestamp" not in metadata or any("kubevirt.io/" in item for item in finalizers):
            return
        if ORPHAN in finalizers:
            for resource_id, key in self._api.store.dependents(metadata["uid"]):
                self._release(by_id(resource_id), key, metadata["uid"])
            self._drop_finalizer(resource, stored, ORPHAN)
        elif FOREGROUND in finalizers:
            for resource_id, key in self._api.store.dependents(metadata["uid"]):
                dependent = self._api.store.get(by_id(resource_id), *key)
                if dependent is not None:
                    self._visit_dependent(by_id(resource_id), dependent)
            if not self._is_blocked(metadata["uid"]):
                self._drop_finalizer(resource, stored, FOREGROUND)

    def _is_blocked(self, uid: str) -> bool:
        for resource_id, key in self._api.store.dependents(uid):
            dependent = self._api.store.get(by_id(resource_id), *key)
            if dependent is not None and _blocks(dependent, uid):
                return True
        return False

    def _visit_dependent(self, resource: Resource, stored: Stored) -> None:
        """Delete what has no living owner; cut the references to owners that are gone where another one lives."""
        metadata = stored.obj["metadata"]
        references = metadata.get("ownerReferences", [])
        owners = [(reference, self._api.store.by_uid(reference["uid"])) for reference in references]
        solid = [reference for reference, owner in owners if owner is not None and not _awaits(owner[1])]
        waiting = [reference for reference, owner in owners if owner is not None and _awaits(owner[1])]
        if solid:
            if len(solid) < len(references):
                self._set_references(resource, stored, solid)
            return
        if not references:
            return
        finalizers = metadata.get("finalizers", ())
        own = self._api.store.dependents(metadata["uid"])
        policy = "Foreground" if waiting and own else ""
        if "deletionTimestamp" in metadata and (not policy or FOREGROUND in finalizers):
            return
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        delete(self._api, resource, namespace, name, DeleteOptions(policy=policy, uid=metadata["uid"]))

    def _release(self, resource: Resource, key: Key, uid: str) -> None:
        stored = self._api.store.get(resource, *key)
        if stored is not None:
            references = stored.obj["metadata"]["ownerReferences"]
            self._set_references(resource, stored, [item for item in references if item["uid"] != uid])

    def _set_references(self, resource: Resource, stored: Stored, references: list[Json]) -> None:
        def change(obj: Json) -> Json:
            metadata = {**obj["metadata"], "ownerReferences": references}
            if not references:
                del metadata["ownerReferences"]
            return {**obj, "metadata": metadata}

        self._api.modify(resource, stored, change)

    def _drop_finalizer(self, resource: Resource, stored: Stored, finalizer: str) -> None:
        self._api.modify(resource, stored, lambda obj: without_finalizer(obj, finalizer))


def without_finalizer(obj: Json, finalizer: str) -> Json:
    kept = [item for item in obj["metadata"].get("finalizers", ()) if item != finalizer]
    return {**obj, "metadata": {**obj["metadata"], "finalizers": kept}}


def _awaits(stored: Stored) -> bool:
    """Whether an owner is being deleted in the foreground."""
    metadata = stored.obj["metadata"]
    return "deletionTimestamp" in metadata and FOREGROUND in metadata.get("finalizers", ())


def _blocks(dependent: Stored, uid: str) -> bool:
    references = dependent.obj["metadata"].get("ownerReferences", ())
    return any(item["uid"] == uid and item.get("blockOwnerDeletion") for item in references)
