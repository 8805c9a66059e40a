"""The base of what keeps rows true to the cluster: the leader reads one endless stream of events and writes them in batches.

A list is the truth, and events are for speed. A reader puts events into `Pending`, which keeps only the last of each object, so
that a writer that cannot keep up is late by at most one pass over all objects. A list of thousands is written in steps, and
events are written between them: nobody waits for a whole list. The gateway lists again, backs off and reports a broken stream;
what is written also says how current the rows are.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Container, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar, cast

from app.compute.gateway import Gateway
from app.compute.vms import Broken, Restored
from app.concurrency import first_of
from app.config import Settings
from app.reconcilers.runtime.leader import Leader
from app.store import watch_state
from app.store.database import Database

_BATCH = 200
_HEARTBEAT_SECONDS = 3.0

Listed = TypeVar("Listed")
Event = TypeVar("Event")


@dataclass(frozen=True, slots=True)
class Batch(Generic[Listed, Event]):
    """What is to be written. The events are newer than the list. `broken`: why the rows may become stale from here on; `restored`:
    they are current again.
    """

    listed: Listed | None = None
    events: tuple[Event, ...] = ()
    broken: Broken | None = None
    restored: bool = False


class Pending(Generic[Listed, Event]):
    """Events that are not written yet. For one reader and one writer in one event loop.

    `name_of` tells objects apart. A list replaces the events before it but those that `outlive` it.
    """

    def __init__(
        self,
        list_type: type[Listed],
        name_of: Callable[[Event], str],
        outlives: Callable[[Event], bool] = lambda _: False,
    ) -> None:
        self.name_of = name_of
        self._list_type = list_type
        self._outlives = outlives
        self._listed: Listed | None = None
        self._broken: Broken | None = None
        self._restored = False
        self._by_name: dict[str, Event] = {}
        self._filled = asyncio.Event()

    def put(self, event: Listed | Event | Broken | Restored) -> None:
        if isinstance(event, Broken):
            self._broken, self._restored = event, False
        elif isinstance(event, Restored):
            self._broken, self._restored = None, True
        elif isinstance(event, self._list_type):
            self._listed, self._broken = event, None
            self._by_name = {name: old for name, old in self._by_name.items() if self._outlives(old)}
        else:
            changed = cast("Event", event)  # a type checker cannot rule out that it is a list
            name = self.name_of(changed)
            self._by_name.pop(name, None)
            self._by_name[name] = changed
        self._filled.set()

    def __bool__(self) -> bool:
        return self._filled.is_set()

    async def wait(self) -> None:
        """Until there is something to take."""
        await self._filled.wait()

    def take(self) -> Batch[Listed, Event]:
        """The list if there is one, and the events that have waited longest. Empty if there is nothing."""
        names = list(self._by_name)[:_BATCH]
        events = tuple(self._by_name.pop(name) for name in names)
        batch = Batch(self._listed, events, self._broken, self._restored)
        self._listed = self._broken = None
        self._restored = False
        if not self._by_name:
            self._filled.clear()
        return batch


class Informer(ABC, Generic[Listed, Event]):
    """`loop` names it in logs and metrics. `watch` is the name of its lease, and of the row that says how current it is."""

    loop: ClassVar[str]
    watch: ClassVar[str]
    gather_seconds: ClassVar[float]
    """At least so long after a batch the next one is written. So the first events after a quiet time are written at once, and those
    that follow them gather.
    """

    def __init__(self, db: Database, gateway: Gateway, settings: Settings, *, holder: str) -> None:
        self._db = db
        self._gateway = gateway
        self._leader = Leader(db, self.loop, self.watch, holder=holder, lease_seconds=settings.watch_lease_seconds)
        self._broken = True
        self._heard_at = 0.0
        self._wrote_at = 0.0
        self._list: AsyncGenerator[None, None] | None = None
        self._newer: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Watches while this replica is the leader, and stands by while it is not."""
        await self._leader.run(self._watch, stop)

    @abstractmethod
    def observe(self) -> AsyncGenerator[Listed | Event | Broken | Restored, None]:
        """The events of the cluster. The first one is a list or Broken."""

    @abstractmethod
    def new_pending(self) -> Pending[Listed, Event]:
        """Called for each stream."""

    @abstractmethod
    async def write(self, events: Sequence[Event]) -> None:
        """Writes a batch to the rows, in transactions that `Leader.require` opens."""

    @abstractmethod
    def write_list(self, listed: Listed, newer: Container[str]) -> AsyncGenerator[None, None]:
        """Writes a list likewise, in steps. An object whose name is in `newer` when its turn comes is left out: an event that came
        after the list was written already.
        """

    async def _watch(self, stop: asyncio.Event) -> None:
        pending = self.new_pending()
        self._broken, self._list = True, None
        async with aclosing(self.observe()) as source:
            reader = asyncio.create_task(_read(source, pending), name=f"{self.loop}-reader")
            renewal = asyncio.create_task(self._leader.renew(stop), name=f"{self.loop}-lease")
            try:
                while not (stop.is_set() or reader.done() or renewal.done()):
                    if self._list is None:
                        await first_of(pending.wait(), reader, renewal, timeout=_HEARTBEAT_SECONDS)
                    if pending:
                        await asyncio.sleep(self._wrote_at + self.gather_seconds - asyncio.get_running_loop().time())
                    await self._apply(pending.take(), pending.name_of)
            finally:
                reader.cancel()
                renewal.cancel()
                results = await asyncio.gather(reader, renewal, return_exceptions=True)
                await self._begin_list(None)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _apply(self, batch: Batch[Listed, Event], name_of: Callable[[Event], str]) -> None:
        if batch.listed is not None:
            await self._begin_list(self.write_list(batch.listed, self._newer))
        whole = await self._go_on()
        if batch.events:
            if self._list is not None:
                self._newer.update(name_of(event) for event in batch.events)
            await self.write(batch.events)
            self._wrote_at = asyncio.get_running_loop().time()
        if batch.broken is not None:
            self._broken = True
        elif batch.restored or batch.listed is not None:
            self._broken = False
        await self._tell(batch, whole=whole)

    async def _begin_list(self, steps: AsyncGenerator[None, None] | None) -> None:
        """In place of the list that is being written, if there is one."""
        if self._list is not None:
            await self._list.aclose()
        self._list = steps
        self._newer.clear()

    async def _go_on(self) -> bool:
        """Writes a step of the list. True: it was the last one."""
        if self._list is None:
            return False
        async for _ in self._list:
            return False
        self._list = None
        return True

    async def _tell(self, batch: Batch[Listed, Event], *, whole: bool) -> None:
        """Says how current the rows are. `whole`: a list was written to its end."""
        now = asyncio.get_running_loop().time()
        holder = self._leader.holder
        if batch.broken is not None:
            async with self._db.begin() as tx:
                await self._leader.require(tx)
                await watch_state.write_broken(tx, self.watch, holder=holder, reason=batch.broken.reason)
        elif not self._broken and (whole or batch.restored or now - self._heard_at >= _HEARTBEAT_SECONDS):
            self._heard_at = now
            async with self._db.begin() as tx:
                await self._leader.require(tx)
                await watch_state.write_heard(tx, self.watch, holder=holder, listed=whole)


async def _read(
    source: AsyncGenerator[Listed | Event | Broken | Restored, None], pending: Pending[Listed, Event]
) -> None:
    async for event in source:
        pending.put(event)
