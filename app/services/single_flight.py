"""One read for all callers that need the same value at the same moment."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class SingleFlight(Generic[Key, Value]):
    """Runs `read` once for a key at a time. A caller that is cancelled leaves the read to the others; all get its error."""

    def __init__(self, read: Callable[[Key], Awaitable[Value]]) -> None:
        self._read = read
        self._running: dict[Key, asyncio.Future[Value]] = {}
        self._next: dict[Key, asyncio.Future[Value]] = {}

    async def get(self, key: Key) -> Value:
        """The value of the read under way, or of a new one: it may have begun before this call."""
        running = self._running.get(key)
        return await asyncio.shield(running if running is not None else self._start(key))

    def begin(self, key: Key) -> None:
        """Starts a read, unless one is under way, and does not wait for it."""
        if key not in self._running:
            self._start(key)

    async def get_fresh(self, key: Key) -> Value:
        """The value of a read that begins after this call; all who call while one is under way share the next."""
        running = self._running.get(key)
        if running is None:
            return await asyncio.shield(self._start(key))
        following = self._next.get(key)
        if following is None:
            following = self._next[key] = asyncio.ensure_future(self._follow(key, running))
            following.add_done_callback(_mark_seen)
        return await asyncio.shield(following)

    def _start(self, key: Key) -> "asyncio.Future[Value]":
        running = self._running[key] = asyncio.ensure_future(self._read(key))
        running.add_done_callback(lambda done: self._end(key, done))
        running.add_done_callback(_mark_seen)
        return running

    async def _follow(self, key: Key, running: "asyncio.Future[Value]") -> Value:
        await asyncio.wait([running])
        self._next.pop(key, None)
        again = self._running.get(key)
        return await (again if again is not None and again is not running else self._start(key))

    def _end(self, key: Key, done: "asyncio.Future[Value]") -> None:
        if self._running.get(key) is done:
            del self._running[key]


def _mark_seen(done: "asyncio.Future[Value]") -> None:
    """Marks the error as seen: every caller that waited has it."""
    if not done.cancelled():
        done.exception()
