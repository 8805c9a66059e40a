"""The garbage collector: what owners' deletion means for what they own (Background, Foreground, Orphan)."""

from typing_extensions import override

from app.devcluster.apiserver.controller import Controller
from app.devcluster.apiserver.deletion import FOREGROUND, ORPHAN, DeleteOptions, delete
from app.devcluster.apiserver.objects import (
    Key,
    finalizers_of,
    is_deleting,
    owners_of,
    with_metadata,
    without_finalizer,
)
from app.devcluster.apiserver.registry import RESOURCES, Resource, by_id
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Stored

_Item = tuple[str, str, Key]


class GarbageCollector(Controller[_Item]):
    """Looks at an object when its owners change or go, and at an owner while it waits for its dependents.

    An owner with finalizers of KubeVirt's controllers loses `foregroundDeletion` after those: the real collector is slower
    than the controllers.
    """

    @override
    def resume(self) -> None:
        for resource in RESOURCES:
            for stored in self._store.each(resource):
                self._consider(resource, stored)

    @override
    def _notice(self, change: Change) -> None:
        if change.new is None:
            for resource_id, key in self._store.dependents(change.last.uid):
                self._queue.add(("dependent", resource_id, key))
            for reference in owners_of(change.last.obj):
                self._add_owner(reference["uid"])
            return
        self._consider(change.resource, change.new)
        if change.old is not None:
            owned = owners_of(change.old.obj)
            if owned != owners_of(change.new.obj):
                for reference in owned:
                    self._add_owner(reference["uid"])

    def _consider(self, resource: Resource, stored: Stored) -> None:
        if stored.deleting and {FOREGROUND, ORPHAN} & set(finalizers_of(stored.obj)):
            self._queue.add(("owner", resource.id, stored.key))
        for reference in owners_of(stored.obj):
            owner = self._store.by_uid(reference["uid"])
            if owner is None or _awaits(owner[1].obj):
                self._queue.add(("dependent", resource.id, stored.key))
                return

    def _add_owner(self, uid: str) -> None:
        owner = self._store.by_uid(uid)
        if owner is not None and _awaits(owner[1].obj):
            self._queue.add(("owner", owner[0].id, owner[1].key))

    @override
    def _handle(self, key: _Item) -> None:
        role, resource_id, place = key
        resource = by_id(resource_id)
        stored = self._store.get(resource, *place)
        if stored is None:
            return
        if role == "owner":
            self._visit_owner(resource, stored)
        else:
            self._visit_dependent(resource, stored)

    def _visit_owner(self, resource: Resource, stored: Stored) -> None:
        finalizers = finalizers_of(stored.obj)
        if not stored.deleting or any("kubevirt.io/" in item for item in finalizers):
            return
        if ORPHAN in finalizers:
            for dependent_resource, dependent in self._dependents(stored.uid):
                kept = [item for item in owners_of(dependent.obj) if item["uid"] != stored.uid]
                self._set_owners(dependent_resource, dependent, kept)
            self._api.modify(resource, stored, lambda obj: without_finalizer(obj, ORPHAN))
        elif FOREGROUND in finalizers:
            for dependent_resource, dependent in self._dependents(stored.uid):
                self._visit_dependent(dependent_resource, dependent)
            if not any(_blocks(dependent.obj, stored.uid) for _, dependent in self._dependents(stored.uid)):
                self._api.modify(resource, stored, lambda obj: without_finalizer(obj, FOREGROUND))

    def _dependents(self, uid: str) -> list[tuple[Resource, Stored]]:
        found = ((by_id(resource_id), key) for resource_id, key in self._store.dependents(uid))
        return [
            (resource, stored) for resource, key in found if (stored := self._store.get(resource, *key)) is not None
        ]

    def _visit_dependent(self, resource: Resource, stored: Stored) -> None:
        """Delete what has no living owner; cut the references to owners that are gone where another one lives."""
        references = owners_of(stored.obj)
        owners = [(reference, self._store.by_uid(reference["uid"])) for reference in references]
        solid = [reference for reference, owner in owners if owner is not None and not _awaits(owner[1].obj)]
        waiting = [reference for reference, owner in owners if owner is not None and _awaits(owner[1].obj)]
        if solid:
            if len(solid) < len(references):
                self._set_owners(resource, stored, solid)
            return
        if not references:
            return
        policy = "Foreground" if waiting and self._store.dependents(stored.uid) else ""
        if stored.deleting and (not policy or FOREGROUND in finalizers_of(stored.obj)):
            return
        delete(self._api, resource, *stored.key, DeleteOptions(policy=policy, uid=stored.uid))

    def _set_owners(self, resource: Resource, stored: Stored, references: list[Json]) -> None:
        def change(obj: Json) -> Json:
            changed = with_metadata(obj, ownerReferences=references)
            if not references:
                del changed["metadata"]["ownerReferences"]
            return changed

        self._api.modify(resource, stored, change)


def _awaits(owner: Json) -> bool:
    """Whether an owner is being deleted in the foreground."""
    return is_deleting(owner) and FOREGROUND in finalizers_of(owner)


def _blocks(dependent: Json, uid: str) -> bool:
    return any(item["uid"] == uid and item.get("blockOwnerDeletion") for item in owners_of(dependent))
