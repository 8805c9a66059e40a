"""List for truth, watch for speed: one endless stream of what happens to our VMs.

A round is a whole list, then a watch of the VMs and one of their VMIs from the resourceVersions of that list. It ends at the
relist interval, or as soon as either watch ends: by 410, a break, silence, or the server's own will. The next round begins
with a list again, so that nothing is ever taken up from a point that might be lost. Within a round each change comes at once;
between two rounds nothing is lost, for the list shows it, and a VM that is missing from the list is told as Gone.

Rounds follow each other at once. Only where a list fails, or rounds break soon after they began, is there a pause, jittered and
growing, and a Broken before it.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

import structlog

from app.compute.kubevirt.kinds import VMIS, VMS, Kind, Manifest
from app.compute.kubevirt.vms.inventory import Change, Inventory
from app.compute.vms import Broken, ClusterEvent, Listed
from app.errors import ClusterError, ClusterUnavailable, EmberpoolError

_BACKOFF_BASE = 0.5
_BACKOFF_CAP = 15.0
_SHORT_ROUND = 5.0  # seconds: a watch that breaks sooner is not to be listed for again and again without a pause
_QUEUE_SIZE = 1000  # then the socket is left unread until the caller has caught up

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One list of both kinds, the VMs first: so a VMI in it has its VM in it too, unless that VM is newer than the list."""

    vms: list[Manifest]
    vmis: list[Manifest]
    vm_version: str
    vmi_version: str
    began_at: datetime


class Source(Protocol):
    """Where lists and watch events come from."""

    async def snapshot(self) -> Snapshot: ...

    def watch(self, kind: Kind, resource_version: str) -> AsyncGenerator[Manifest, None]: ...


async def observe(
    source: Source,
    *,
    relist_seconds: float,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[ClusterEvent, None]:
    """See `Gateway.observe`. `sleep` is awaited between attempts."""
    inventory = Inventory()
    failures = 0
    while True:
        try:
            snapshot = await source.snapshot()
        except (ClusterError, ClusterUnavailable) as error:
            failures += 1
            _log.warning("cluster.list_failed", reason=error.detail, failures=failures)
            yield Broken(error.detail)
            await sleep(backoff(failures))
            continue
        for gone in inventory.replace(snapshot.vms, snapshot.vmis):
            yield gone
        yield Listed(inventory.observations(), snapshot.began_at)
        versions = {VMS: snapshot.vm_version, VMIS: snapshot.vmi_version}
        async with Watches(source.watch, versions, relist_seconds) as watches:
            while (event := await watches.next()) is not None:
                for change in _apply(inventory, *event):
                    yield change
        if watches.broken is None:
            failures = 0
            continue
        _log.warning("cluster.watch_broken", reason=watches.broken, seconds=round(watches.lasted, 3))
        failures = failures + 1 if watches.was_short else 0
        if failures:
            yield Broken(watches.broken)
            await sleep(backoff(failures))


def _apply(inventory: Inventory, kind: Kind, event: Manifest) -> list[Change]:
    what, item = event.get("type"), event.get("object")
    if what not in {"ADDED", "MODIFIED", "DELETED"} or not isinstance(item, dict):
        return []  # a bookmark: it only says that the watch is alive
    return inventory.apply_vm(what, item) if kind == VMS else inventory.apply_vmi(what, item)


def backoff(failures: int) -> float:
    """Half to the whole of a pause that doubles, so that replicas do not come back in step."""
    return min(_BACKOFF_CAP, _BACKOFF_BASE * 2.0 ** min(failures - 1, 10)) * random.uniform(0.5, 1)  # noqa: S311 - no secret


@dataclass(frozen=True, slots=True)
class _Ended:
    kind: Kind
    error: Exception | None


Watch = Callable[[Kind, str], AsyncGenerator[Manifest, None]]
"""The events of a kind from a resourceVersion on."""


class Watches:
    """The watches of a round, merged: one a kind, from its version on, for `seconds` at most. `broken` says why the round
    ended before its time (None: it did not).
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
        """Whether it ended so soon that the next round is to come after a pause."""
        return self.lasted < _SHORT_ROUND

    async def next(self) -> tuple[Kind, Manifest] | None:
        """The next event of any watch with its kind; None once the round is over."""
        deadline = self._began + self._seconds
        if asyncio.get_running_loop().time() >= deadline:  # also where events never cease
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
        except Exception as error:  # noqa: BLE001 - handed over to the reader of the queue, who raises what is a bug
            failed = error
        await self._queue.put(_Ended(kind, failed))
