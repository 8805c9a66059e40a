"""List, then watch: one endless stream of what happens to some kinds of objects, in rounds.

A round is a whole list, then a watch of each kind from the resourceVersion of that list. It ends at the relist interval, or as
soon as one watch ends: by 410, an error, silence, or because the server closed it. The next round begins with a list again, so
that no watch ever continues from a point that might be lost. Within a round each change is reported at once. Between two
rounds nothing is lost, because the list shows it.

Rounds follow each other at once. Only if a list fails, or rounds break soon after they began, does a Broken come first, and
then a growing, jittered pause.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

import structlog

from app.compute.kubevirt.kinds import Kind, Manifest
from app.compute.vms import Broken
from app.errors import ClusterError, ClusterForbidden, ClusterUnavailable, EmberpoolError

_BACKOFF_BASE = 0.5
_BACKOFF_CAP = 15.0
_SHORT_ROUND = 5.0  # seconds; after a watch that breaks sooner, the next list waits
_QUEUE_SIZE = 1000  # then the socket is not read until the caller has caught up

_log = structlog.get_logger(__name__)
Event = TypeVar("Event")
Watch = Callable[[Kind, str], AsyncGenerator[Manifest, None]]
"""The watch events of a kind from a resourceVersion on."""
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Round(Generic[Event]):
    """One list: the `events` that report it, and the versions to watch from. `apply` turns a kind, the type of a watch event
    (ADDED, MODIFIED, DELETED) and its object into events.
    """

    events: Sequence[Event]
    versions: dict[Kind, str]
    apply: Callable[[Kind, str, Manifest], Sequence[Event]]


async def follow(
    list_all: Callable[[], Awaitable[Round[Event]]],
    watch: Watch,
    *,
    relist_seconds: float,
    sleep: Sleep,
    forbidden_seconds: float = 0.0,
) -> AsyncGenerator[Event | Broken, None]:
    """Round after round, until it is closed. `sleep` is awaited between attempts, after a list that is forbidden for at least
    `forbidden_seconds`.
    """
    failures = 0
    while True:
        try:
            current = await list_all()
        except (ClusterError, ClusterUnavailable) as error:
            failures += 1
            _log.warning("cluster.list_failed", reason=error.detail, failures=failures)
            yield Broken(error.detail)
            least = forbidden_seconds if isinstance(error, ClusterForbidden) else 0.0
            await sleep(max(least, _backoff(failures)))
            continue
        for event in current.events:
            yield event
        async with _Watches(watch, current.versions, relist_seconds) as watches:
            while (seen := await watches.next()) is not None:
                kind, change = seen
                what, item = change.get("type"), change.get("object")
                if what in {"ADDED", "MODIFIED", "DELETED"} and isinstance(item, dict):  # others are bookmarks
                    for event in current.apply(kind, what, item):
                        yield event
        if watches.broken is None:
            failures = 0
            continue
        _log.warning("cluster.watch_broken", reason=watches.broken, seconds=round(watches.lasted, 3))
        failures = failures + 1 if watches.was_short else 0
        if failures:
            yield Broken(watches.broken)
            await sleep(_backoff(failures))


def _backoff(failures: int) -> float:
    """Between half and the whole of a pause that doubles, so that replicas do not list in step."""
    return min(_BACKOFF_CAP, _BACKOFF_BASE * 2.0 ** min(failures - 1, 10)) * random.uniform(0.5, 1)  # noqa: S311 - no secret


@dataclass(frozen=True, slots=True)
class _Ended:
    kind: Kind
    error: Exception | None


class _Watches:
    """The watches of a round, merged: one for each kind, from its version on, for at most `seconds`. `broken` says why the round
    ended early; None: it did not.
    """

    def __init__(self, watch: Watch, versions: dict[Kind, str], seconds: float) -> None:
        self.broken: str | None = None
        self.lasted = 0.0
        self._watch = watch
        self._versions = versions
        self._queue: asyncio.Queue[tuple[Kind, Manifest] | _Ended] = asyncio.Queue(_QUEUE_SIZE)
        self._tasks: list[asyncio.Task[None]] = []
        self._seconds = seconds
        self._began = 0.0

    async def __aenter__(self) -> Self:
        self._began = asyncio.get_running_loop().time()
        self._tasks = [asyncio.create_task(self._read(kind), name=f"watch-{kind}") for kind in self._versions]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lasted = asyncio.get_running_loop().time() - self._began
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def was_short(self) -> bool:
        """Whether it ended so soon that the next round must wait."""
        return self.lasted < _SHORT_ROUND

    async def next(self) -> tuple[Kind, Manifest] | None:
        """The next event of any watch, with its kind. None once the round is over."""
        deadline = self._began + self._seconds
        if asyncio.get_running_loop().time() >= deadline:  # also if events never cease
            return None
        try:
            async with asyncio.timeout_at(deadline):
                item = await self._queue.get()
        except TimeoutError:
            return None
        if not isinstance(item, _Ended):
            return item
        if item.error is not None and not isinstance(item.error, EmberpoolError):
            raise item.error
        self.broken = item.error.detail if item.error is not None else f"The cluster ended the watch of {item.kind}."
        return None

    async def _read(self, kind: Kind) -> None:
        failed: Exception | None = None
        try:
            async with aclosing(self._watch(kind, self._versions[kind])) as events:
                async for event in events:
                    await self._queue.put((kind, event))
        except Exception as error:  # noqa: BLE001 - the reader of the queue raises it if it is a bug
            failed = error
        await self._queue.put(_Ended(kind, failed))
