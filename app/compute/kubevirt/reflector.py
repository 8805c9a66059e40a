"""Lists and watches of some kinds of objects, merged: one endless stream of what changes.

The watch of a kind stays open. When the server ends it, it is opened again from the version that it had reached; only if the server
has forgotten that version (410) does all begin anew, with a list. Lists run beside the watch: one when it has been opened, and
one at each relist interval. `Versions` says of each object that comes which is newer, what is known or what has come; what a list
lacks was deleted. A list that repeats an earlier one has versions only, because the watch has told the rest; if it has not, all
is listed. Lists of different kinds take turns, so that they load neither the server nor us at the same moment.

What is read is put into a `Cache`, and what the cache tells is the stream. Nothing is told before each kind was listed once.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Generic, NoReturn, Protocol

import structlog

from app.compute.kubevirt.kinds import Kind, Manifest
from app.compute.kubevirt.merged import Cache, Event, Merged, Told
from app.compute.kubevirt.streams import Page
from app.concurrency import first_of
from app.errors import ClusterError, ClusterForbidden, ClusterUnavailable, EmberpoolError, WatchExpired

_BACKOFF_BASE = 0.5
_BACKOFF_CAP = 15.0
_SHORT = 5.0  # seconds; a watch that ends sooner is opened again after a pause
_CATCH_UP = (0.1, 0.5, 2.0, 5.0)  # seconds; a busy API server is late with its watches
_QUEUE_SIZE = 2  # batches of objects as the cluster sent them; then no socket is read until the caller has caught up
_FORBIDDEN_SECONDS = 60.0  # rights are granted by people: asking more often helps nobody

_log = structlog.get_logger(__name__)
Sleep = Callable[[float], Awaitable[None]]


class Source(Protocol):
    """Where lists and watches come from; see `ClusterReader`."""

    async def newest_version(self, kind: Kind) -> str: ...

    def stream(self, kind: Kind) -> AsyncGenerator[Page, None]: ...

    def metadata(self, kind: Kind) -> AsyncGenerator[Page, None]: ...

    def watch(self, kind: Kind, version: str) -> AbstractAsyncContextManager[AsyncGenerator[list[Manifest], None]]: ...


async def follow(
    source: Source,
    cache: Cache[Event],
    kinds: Sequence[Kind],
    *,
    may_hide: Sequence[Kind] = (),
    relist_seconds: float,
    turn: asyncio.Lock | None = None,
    sleep: Sleep = asyncio.sleep,
) -> AsyncGenerator[Told[Event], None]:
    """What happens to objects of the `kinds`, until it is closed. The first event is a report or Broken.

    Lists of the first kind end with a report. `may_hide`: kinds without which the rest is still told. `turn` is held by each list
    that repeats one. `sleep` is awaited between attempts. A Broken is followed by Restored once everything is heard again.
    """
    steps: asyncio.Queue[_Step[Event]] = asyncio.Queue()
    room = asyncio.Semaphore(_QUEUE_SIZE)  # in turn, which a Queue that is full is not: a watch may never cease
    merged = Merged(cache, kinds)
    timing = _Timing(relist_seconds, turn or asyncio.Lock(), sleep)

    async def put(step: _Step[Event]) -> None:
        await room.acquire()
        steps.put_nowait(step)

    feeds = [_Feed(kind, source, merged, put, timing, may_hide=kind in may_hide) for kind in kinds]
    tasks = [asyncio.create_task(feed.run(), name=f"watch-{kind}") for kind, feed in zip(kinds, feeds, strict=True)]
    try:
        while True:
            step = await steps.get()
            for event in step():
                yield event
            room.release()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_Step = Callable[[], Iterable[Told[Event]]]
"""Changes what is kept, and returns what there is to tell. Only the reader of the queue takes steps, one after the other."""


@dataclass(frozen=True, slots=True)
class _Timing:
    relist_seconds: float
    turn: asyncio.Lock
    sleep: Sleep


class _Feed(Generic[Event]):
    """Keeps one kind listed and watched."""

    def __init__(
        self,
        kind: Kind,
        source: Source,
        merged: Merged[Event],
        put: Callable[[_Step[Event]], Awaitable[None]],
        timing: _Timing,
        *,
        may_hide: bool,
    ) -> None:
        self._kind = kind
        self._source = source
        self._merged = merged
        self._put = put
        self._timing = timing
        self._may_hide = may_hide

    async def run(self) -> None:
        """Until it is cancelled. A bug is raised by the reader of the steps."""
        failures = 0
        try:
            while True:
                began = _now()
                try:
                    await self._watch_and_list()
                except (ClusterError, ClusterUnavailable) as error:
                    lasted = _now() - began >= _SHORT
                    failures = 1 if lasted else failures + 1
                    if not (lasted and isinstance(error, WatchExpired)):
                        await self._pause(error, failures)
        except Exception as error:  # noqa: BLE001 - it is raised where the stream is read
            await self._put(partial(_fail, error))

    async def _watch_and_list(self) -> None:
        """Until the server has forgotten the version of the watch, or refuses to list."""
        version = await self._source.newest_version(self._kind)
        await self._put(partial(self._merged.restart, self._kind, version))
        tasks = [asyncio.create_task(self._watch(version)), asyncio.create_task(self._list_ever())]
        try:
            (ended, *_) = await first_of(*tasks)
            ended.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, version: str) -> None:
        """Opens the watch again whenever it ends, from the version that it had reached. Raises WatchExpired."""
        failures = 0
        while True:
            opened: float | None = None
            reason = f"The cluster ended the watch of {self._kind}."
            try:
                async with self._source.watch(self._kind, version) as batches:
                    opened = _now()
                    await self._trouble("watch", None)
                    async for batch in batches:
                        version = _reached(batch) or version
                        await self._put(partial(self._merged.happened, self._kind, batch))
            except WatchExpired:
                raise
            except (ClusterError, ClusterUnavailable) as error:
                reason = error.detail
            lasted = _now() - opened if opened is not None else 0.0
            _log.info("cluster.watch_ended", kind=str(self._kind), reason=reason, seconds=round(lasted, 3))
            failures = failures + 1 if lasted < _SHORT else 0
            if failures > 1 or opened is None:
                await self._trouble("watch", reason)
            if failures:
                await self._timing.sleep(_backoff(failures))

    async def _list_ever(self) -> None:
        """Lists once, and again at each interval, whatever the watch says. Raises ClusterForbidden."""
        failures, repeats = 0, False
        while True:
            try:
                if repeats:
                    async with self._timing.turn:
                        await self._compare()
                else:
                    await self._list()
            except ClusterForbidden:
                raise
            except (ClusterError, ClusterUnavailable) as error:
                failures += 1
                await self._pause(error, failures)
            else:
                failures, repeats = 0, True
                await asyncio.sleep(self._timing.relist_seconds * random.uniform(0.8, 1))  # noqa: S311 - no secret

    async def _compare(self) -> None:
        began_at, version = datetime.now(UTC), ""
        await self._put(partial(self._merged.begin_list, self._kind))
        async with aclosing(self._source.metadata(self._kind)) as pages:
            async for page in pages:
                version = page.version or version
                await self._put(partial(self._merged.compare, self._kind, page.items))
        if await self._has_missed():
            _log.warning("cluster.watch_missed", kind=str(self._kind))
            await self._list()
        else:
            await self._put(partial(self._merged.end_list, self._kind, version, began_at))

    async def _has_missed(self) -> bool:
        """Whether the watch has not told what a list of versions shows. It may be about to."""
        for seconds in _CATCH_UP:
            answer = asyncio.get_running_loop().create_future()
            await self._put(partial(self._merged.missed, self._kind, answer))
            if not await answer:
                return False
            await self._timing.sleep(seconds)
        return True

    async def _list(self) -> None:
        began_at, version = datetime.now(UTC), ""
        await self._put(partial(self._merged.begin_list, self._kind))
        async with aclosing(self._source.stream(self._kind)) as pages:
            async for page in pages:
                version = page.version or version
                await self._put(partial(self._merged.put, self._kind, page.items))
        await self._put(partial(self._merged.end_list, self._kind, version, began_at))

    async def _pause(self, error: EmberpoolError, failures: int) -> None:
        """After a failure. What is forbidden is asked for rarely."""
        forbidden = isinstance(error, ClusterForbidden)
        _log.warning("cluster.list_failed", kind=str(self._kind), reason=error.detail, failures=failures)
        if forbidden and self._may_hide:
            await self._put(partial(self._merged.hide, self._kind, error.detail))
        else:
            await self._trouble("list", error.detail)
        await self._timing.sleep(_FORBIDDEN_SECONDS if forbidden else _backoff(failures))

    async def _trouble(self, part: str, reason: str | None) -> None:
        await self._put(partial(self._merged.trouble, self._kind, part, reason))


def _backoff(failures: int) -> float:
    """Between half and the whole of a pause that doubles, so that replicas do not ask in step."""
    return min(_BACKOFF_CAP, _BACKOFF_BASE * 2.0 ** min(failures - 1, 10)) * random.uniform(0.5, 1)  # noqa: S311 - no secret


def _reached(batch: list[Manifest]) -> str:
    """The version of the last of these events."""
    return str((batch[-1]["object"].get("metadata") or {}).get("resourceVersion") or "")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _fail(error: Exception) -> NoReturn:
    raise error
