"""The store: the latest version of every object, one counter for all resource versions, and a ring of past changes.

Objects are plain JSON dicts and are never changed in place: a write stores a new dict that may share its unchanged
parts with the old one. So the past, which watches and lists at an exact version need, costs little.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import orjson

from app.devcluster.apiserver.objects import Key, is_deleting, with_metadata
from app.devcluster.apiserver.registry import RESOURCES, Resource
from app.devcluster.apiserver.status import Json

FIRST_RESOURCE_VERSION = 100
HISTORY_PER_KIND = 2000


class Stored:
    """One version of one object; its JSON text is made once, when it is first needed."""

    __slots__ = ("_raw", "obj", "rv")

    def __init__(self, obj: Json, rv: int) -> None:
        self.obj = obj
        self.rv = rv
        self._raw: bytes | None = None

    @property
    def key(self) -> Key:
        metadata = self.obj["metadata"]
        return metadata.get("namespace", ""), metadata["name"]

    @property
    def uid(self) -> str:
        return str(self.obj["metadata"]["uid"])

    @property
    def deleting(self) -> bool:
        return is_deleting(self.obj)

    @property
    def raw(self) -> bytes:
        if self._raw is None:
            self._raw = orjson.dumps(self.obj)
        return self._raw


@dataclass(frozen=True, slots=True)
class Change:
    """`new` is None for a deletion; `last` then is the object's last state under the deletion's resource version."""

    resource: Resource
    key: Key
    rv: int
    kind: Literal["ADDED", "MODIFIED", "DELETED"]
    old: Stored | None
    new: Stored | None
    last: Stored


class Table:
    def __init__(self, floor: int, history: int) -> None:
        self.rows: dict[Key, Stored] = {}
        self.past: deque[Change] = deque(maxlen=history)
        self.floor = floor
        """Changes after this resource version are still known; a watch from an older version gets 410."""


class Gone(Exception):  # the API's own word for it
    """The requested version is older than the history. `oldest` is the first version that is still known."""

    def __init__(self, oldest: int) -> None:
        super().__init__(f"versions up to {oldest} are gone")
        self.oldest = oldest


class Store:
    def __init__(self, history: int = HISTORY_PER_KIND) -> None:
        self.rv = FIRST_RESOURCE_VERSION
        self._tables = {resource.id: Table(self.rv, history) for resource in RESOURCES}
        self._listeners: list[Callable[[Change], None]] = []
        self._by_uid: dict[str, tuple[Resource, Key]] = {}
        self._dependents: dict[str, set[tuple[str, Key]]] = defaultdict(set)

    def subscribe(self, listener: Callable[[Change], None]) -> Callable[[], None]:
        """Call `listener` on every change, inside the write; returns what ends the subscription."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def get(self, resource: Resource, namespace: str, name: str) -> Stored | None:
        return self._tables[resource.id].rows.get((namespace, name))

    def by_uid(self, uid: str) -> tuple[Resource, Stored] | None:
        found = self._by_uid.get(uid)
        if found is None:
            return None
        resource, key = found
        return resource, self._tables[resource.id].rows[key]

    def dependents(self, uid: str) -> list[tuple[str, Key]]:
        """Resource id and key of every object that names `uid` in its ownerReferences."""
        return sorted(self._dependents.get(uid, ()))

    def rows(self, resource: Resource, namespace: str = "") -> list[Stored]:
        """All objects of a kind (of one namespace where given) in the order of namespace and name."""
        rows = self._tables[resource.id].rows
        keys = sorted(key for key in rows if not namespace or key[0] == namespace)
        return [rows[key] for key in keys]

    def each(self, resource: Resource) -> Iterator[Stored]:
        """All objects of a kind, in no order; cheaper than `rows`."""
        return iter(list(self._tables[resource.id].rows.values()))

    def count(self, resource: Resource, namespace: str) -> int:
        return sum(1 for key in self._tables[resource.id].rows if key[0] == namespace)

    def rows_at(self, resource: Resource, namespace: str, rv: int) -> list[Stored]:
        """The objects as they were at `rv`; raises Gone where that is no longer known."""
        table = self._tables[resource.id]
        if rv < table.floor:
            raise Gone(table.floor)
        rows = dict(table.rows)
        for change in reversed(table.past):
            if change.rv <= rv:
                break
            if change.old is None:
                rows.pop(change.key, None)
            else:
                rows[change.key] = change.old
        return [rows[key] for key in sorted(rows) if not namespace or key[0] == namespace]

    def since(self, resource: Resource, rv: int) -> list[Change]:
        """Changes after `rv`, oldest first; raises Gone where they are no longer all known."""
        table = self._tables[resource.id]
        if rv < table.floor:
            raise Gone(table.floor)
        found: list[Change] = []
        for change in reversed(table.past):
            if change.rv <= rv:
                break
            found.append(change)
        found.reverse()
        return found

    def put(self, resource: Resource, obj: Json) -> Stored:
        """Store `obj` as the new version of what its metadata names; returns it with its resource version."""
        self.rv += 1
        stored = Stored(with_metadata(obj, resourceVersion=str(self.rv)), self.rv)
        key = stored.key
        table = self._tables[resource.id]
        old = table.rows.get(key)
        table.rows[key] = stored
        self._index(resource, key, old, stored)
        kind: Literal["ADDED", "MODIFIED"] = "MODIFIED" if old else "ADDED"
        self._tell(table, Change(resource, key, self.rv, kind, old, stored, stored))
        return stored

    def remove(self, resource: Resource, namespace: str, name: str) -> Stored:
        """Remove the object; returns its last state, under the resource version of the deletion."""
        self.rv += 1
        table = self._tables[resource.id]
        key = (namespace, name)
        old = table.rows.pop(key)
        last = Stored(with_metadata(old.obj, resourceVersion=str(self.rv)), self.rv)
        self._index(resource, key, old, None)
        self._tell(table, Change(resource, key, self.rv, "DELETED", old, None, last))
        return last

    def load(self, resource: Resource, obj: Json) -> None:
        """Add an object of a saved state as it is, without a change event."""
        stored = Stored(obj, int(obj["metadata"]["resourceVersion"]))
        self._tables[resource.id].rows[stored.key] = stored
        self._index(resource, stored.key, None, stored)
        self.rv = max(self.rv, stored.rv)

    def forget_history(self, rv: int | None = None) -> None:
        """Drop changes up to `rv` (all by default), as compaction and a restart do."""
        floor = self.rv if rv is None else rv
        for table in self._tables.values():
            while table.past and table.past[0].rv <= floor:
                table.past.popleft()
            table.floor = max(table.floor, floor)

    def clear(self) -> None:
        """Remove every object, with a change event for each."""
        for resource in RESOURCES:
            for stored in self.rows(resource):
                self.remove(resource, *stored.key)

    def _tell(self, table: Table, change: Change) -> None:
        if len(table.past) == table.past.maxlen:
            table.floor = table.past[0].rv
        table.past.append(change)
        for listener in tuple(self._listeners):
            listener(change)

    def _index(self, resource: Resource, key: Key, old: Stored | None, new: Stored | None) -> None:
        before = old.obj["metadata"] if old else {}
        after = new.obj["metadata"] if new else {}
        if before.get("uid") != after.get("uid"):
            if before:
                self._by_uid.pop(before["uid"], None)
            if after:
                self._by_uid[after["uid"]] = (resource, key)
        owned, owns = before.get("ownerReferences"), after.get("ownerReferences")
        if owned == owns:
            return
        entry = (resource.id, key)
        for reference in owned or ():
            entries = self._dependents[reference.get("uid", "")]
            entries.discard(entry)
            if not entries:
                del self._dependents[reference.get("uid", "")]
        for reference in owns or ():
            self._dependents[reference.get("uid", "")].add(entry)
