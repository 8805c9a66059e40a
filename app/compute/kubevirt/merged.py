"""What lists and watches of several kinds say together: which of what comes is new, and what there is to tell because of it.

Pure. Nothing is told before each kind was listed once.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Generic, Protocol, TypeAlias, TypeVar

from app.compute.kubevirt.kinds import Kind, Manifest
from app.compute.kubevirt.versions import Versions, read_version, version_of
from app.compute.vms import Broken, Restored

Event = TypeVar("Event")
Told_co = TypeVar("Told_co", covariant=True)
Told: TypeAlias = Event | Broken | Restored


class Cache(Protocol[Told_co]):
    """What is kept of the objects. Each method returns what there is to tell because of it."""

    def key(self, kind: Kind, item: Manifest) -> str:
        """Tells objects of a kind apart."""
        ...

    def put(self, kind: Kind, item: Manifest) -> Iterable[Told_co]: ...

    def drop(self, kind: Kind, key: str) -> Iterable[Told_co]: ...

    def report(self, began_at: datetime) -> Told_co:
        """All that is kept, after a whole list of the first kind that was asked for at `began_at`."""
        ...

    def hide(self, kind: Kind, reason: str | None) -> bool:
        """The cluster refuses to show objects of a kind that may be missing; None: it shows them. Whether that is news."""
        ...


class Merged(Generic[Event]):
    """What the lists and watches of all kinds together say."""

    def __init__(self, cache: Cache[Event], kinds: Sequence[Kind]) -> None:
        self._cache = cache
        self._first = kinds[0]
        self._versions = {kind: Versions() for kind in kinds}
        self._unlisted = set(kinds)
        self._began_at = datetime.now(UTC)
        self._troubles: dict[tuple[Kind, str], str] = {}
        self._is_broken = False
        """Whether a Broken was told that no Restored followed."""

    def restart(self, kind: Kind, version: str) -> Iterator[Told[Event]]:
        """A watch begins anew at that version, and a list follows."""
        self._versions[kind].restart(read_version(version))
        if (reason := self._troubles.pop((kind, "watch"), None)) is not None:
            self._troubles[kind, "list"] = reason
        yield from ()

    def begin_list(self, kind: Kind) -> Iterator[Told[Event]]:
        self._versions[kind].begin_list()
        yield from ()

    def put(self, kind: Kind, items: list[Manifest]) -> Iterator[Told[Event]]:
        """A part of a list."""
        for item in items:
            yield from self._take(kind, item)

    def compare(self, kind: Kind, items: list[Manifest]) -> Iterator[Told[Event]]:
        """A part of a list of versions."""
        versions = self._versions[kind]
        for item in items:
            versions.compare(self._cache.key(kind, item), version_of(item))
        yield from ()

    def missed(self, kind: Kind, answer: "asyncio.Future[bool]") -> Iterator[Told[Event]]:
        """Answers whether there was a version of which nothing has been told."""
        if not answer.done():
            answer.set_result(bool(self._versions[kind].missed()))
        yield from ()

    def end_list(self, kind: Kind, version: str, began_at: datetime) -> Iterator[Told[Event]]:
        for key in self._versions[kind].end_list(read_version(version)):
            yield from self._tell(self._cache.drop(kind, key))
        if kind == self._first:
            self._began_at = began_at
        yield from self._end(kind, news=self._cache.hide(kind, None))

    def hide(self, kind: Kind, reason: str) -> Iterator[Told[Event]]:
        """The cluster refuses to show the kind."""
        self._versions[kind].clear()
        yield from self._end(kind, news=self._cache.hide(kind, reason))

    def happened(self, kind: Kind, events: list[Manifest]) -> Iterator[Told[Event]]:
        """A batch of watch events."""
        for event in events:
            item = event["object"]
            if event["type"] in {"ADDED", "MODIFIED"}:
                yield from self._take(kind, item)
            elif event["type"] == "DELETED":
                key = self._cache.key(kind, item)
                if self._versions[kind].drop(key, version_of(item)):
                    yield from self._tell(self._cache.drop(kind, key))

    def trouble(self, kind: Kind, part: str, reason: str | None) -> Iterator[Told[Event]]:
        """Why `part` of a kind, its watch or its list, does not work; None: it works."""
        if reason is not None:
            self._troubles[kind, part] = reason
            self._is_broken = True
            yield Broken(reason)
            return
        self._troubles.pop((kind, part), None)
        if self._is_broken and not (self._troubles or self._unlisted):
            self._is_broken = False
            yield Restored()

    def _end(self, kind: Kind, *, news: bool) -> Iterator[Told[Event]]:
        is_new = news or kind == self._first or self._unlisted == {kind}
        self._unlisted.discard(kind)
        yield from self.trouble(kind, "list", None)
        if is_new and not self._unlisted:
            yield self._cache.report(self._began_at)
            if self._troubles:
                yield Broken(next(iter(self._troubles.values())))

    def _take(self, kind: Kind, item: Manifest) -> Iterable[Event]:
        if self._versions[kind].take(self._cache.key(kind, item), version_of(item)):
            return self._tell(self._cache.put(kind, item))
        return ()

    def _tell(self, events: Iterable[Event]) -> Iterable[Event]:
        return () if self._unlisted else events
