"""Watches: which changes a client sees, as which events, encoded for the stream."""

import asyncio
import itertools
from collections import deque

import orjson

from app.devcluster.apiserver.listing import ListOptions
from app.devcluster.apiserver.registry import Resource
from app.devcluster.apiserver.status import ApiError
from app.devcluster.apiserver.store import Change, Gone, Store, Stored

BACKLOG_LIMIT = 20_000
_serials = itertools.count(1)


class Watch:
    """The queue of encoded events of one watch. `wait` sleeps until there are some; `close` ends the watch."""

    def __init__(self, store: Store, resource: Resource, namespace: str, options: ListOptions) -> None:
        """Raises ApiError 500 where the version is not a number."""
        self.serial = next(_serials)
        self._store = store
        self.resource = resource
        self.namespace = namespace
        self._selector = options.selector
        self._queue: deque[bytes] = deque()
        self._ready = asyncio.Event()
        self._unsubscribe = store.subscribe(self._take)
        self.closed = False
        self.silent = False
        self.seen = store.rv
        """The watch has had all events up to this resource version; bookmarks carry it."""
        try:
            self._start(options)
        except BaseException:
            self._unsubscribe()
            raise

    def _start(self, options: ListOptions) -> None:
        version = options.version
        if version and not version.isdecimal():
            raise ApiError(
                500,
                None,
                f'resourceVersion: Invalid value: "{version}": strconv.ParseUint: parsing "{version}": invalid syntax',
            )
        self._after = int(version or 0)
        if options.initial_events or (options.initial_events is None and version in {"", "0"}):
            for stored in self._store.rows(self.resource, self.namespace):
                if self._selector.matches(stored.obj):
                    self._push("ADDED", stored)
            self._after = self._store.rv
            if options.initial_events and options.bookmarks:
                self._push_bookmark({"k8s.io/initial-events-end": "true"})
            return
        if version in {"", "0"}:
            self._after = self._store.rv
            return
        try:
            for change in self._store.since(self.resource, self._after):
                self._take(change)
        except Gone as error:
            self.expire(self._after, error.oldest)

    def expire(self, version: int, oldest: int) -> None:
        """Send the error that the version is too old, and end the watch."""
        status = ApiError(410, "Expired", f"too old resource version: {version} ({oldest})").body
        self._queue.append(orjson.dumps({"type": "ERROR", "object": status}) + b"\n")
        self.close()

    def bookmark(self) -> None:
        if not (self.closed or self.silent):
            self._push_bookmark(None)

    def close(self) -> None:
        self.closed = True
        self._unsubscribe()
        self._unsubscribe = _nothing
        self._ready.set()

    async def wait(self) -> None:
        """Until there is something to send, or the end."""
        await self._ready.wait()

    @property
    def pending(self) -> bool:
        return bool(self._queue)

    def drain(self) -> bytes:
        """The bytes of all queued events; the queue is empty afterwards."""
        if not self.closed:
            self._ready.clear()
        if not self._queue:
            return b""
        data = b"".join(self._queue)
        self._queue.clear()
        return data

    def _take(self, change: Change) -> None:
        if change.resource is not self.resource or change.rv <= self._after:
            return
        if self.namespace and change.key[0] != self.namespace:
            return
        self.seen = change.rv
        if self.silent:
            return
        was = change.old is not None and self._selector.matches(change.old.obj)
        now = change.new is not None and self._selector.matches(change.new.obj)
        if now and change.new is not None:
            self._push("MODIFIED" if was else "ADDED", change.new)
        elif was and change.old is not None:
            self._push("DELETED", change.last if change.new is None else _at_version(change.old, change.rv))

    def _push(self, kind: str, stored: Stored) -> None:
        self._queue.append(b'{"type":"%s","object":%s}\n' % (kind.encode(), stored.raw))
        if len(self._queue) > BACKLOG_LIMIT:
            self._queue.clear()
            self.close()  # the API server drops a watch that is not read, too
        self._ready.set()

    def _push_bookmark(self, annotations: dict[str, str] | None) -> None:
        metadata: dict[str, object] = {"resourceVersion": str(max(self.seen, self._store.rv))}
        if annotations:
            metadata["annotations"] = annotations
        obj = {"apiVersion": self.resource.api_version, "kind": self.resource.kind, "metadata": metadata}
        self._queue.append(orjson.dumps({"type": "BOOKMARK", "object": obj}) + b"\n")
        self._ready.set()


def _at_version(stored: Stored, version: int) -> Stored:
    """An object that left the selection is sent in its last selected state, under the version of the change."""
    metadata = {**stored.obj["metadata"], "resourceVersion": str(version)}
    return Stored({**stored.obj, "metadata": metadata}, version)


def _nothing() -> None:
    return
