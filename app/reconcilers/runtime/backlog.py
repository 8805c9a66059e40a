"""What was seen of the cluster and is not written down yet: of each VM only the last, and nothing that a later list tells too.

So it never grows beyond the VMs that there are. A watcher that cannot keep up is late by one pass over all of them, and never
works through moments that are long gone while the present waits.
"""

import asyncio
from dataclasses import dataclass, field

from app.compute.vms import Broken, Changed, ClusterEvent, Gone, Listed

_BATCH = 200


@dataclass(frozen=True, slots=True)
class Batch:
    """To be written in this order; `broken` says that the picture may be old from here on."""

    listed: Listed | None = None
    changes: tuple[Changed, ...] = ()
    gone: tuple[Gone, ...] = ()
    broken: Broken | None = None


@dataclass(slots=True)
class Backlog:
    """One writer and one reader, in one event loop."""

    _listed: Listed | None = None
    _broken: Broken | None = None
    _by_name: dict[str, Changed | Gone] = field(default_factory=dict)
    _filled: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, event: ClusterEvent) -> None:
        """A list stands for all changes before it. What has gone is kept: a list tells it only of VMs that it is sure of."""
        match event:
            case Listed():
                self._listed, self._broken = event, None
                self._by_name = {name: old for name, old in self._by_name.items() if isinstance(old, Gone)}
            case Broken():
                self._broken = event
            case Changed():
                self._replace(event.observation.name, event)
            case Gone():
                self._replace(event.name, event)
        self._filled.set()

    async def wait(self) -> None:
        """Until there is something."""
        await self._filled.wait()

    def take(self) -> Batch:
        """The list if there is one, and the changes that have waited longest; empty where there is nothing."""
        names = list(self._by_name)[:_BATCH]
        taken = [self._by_name.pop(name) for name in names]
        batch = Batch(
            listed=self._listed,
            changes=tuple(event for event in taken if isinstance(event, Changed)),
            gone=tuple(event for event in taken if isinstance(event, Gone)),
            broken=self._broken,
        )
        self._listed = self._broken = None
        if not self._by_name:
            self._filled.clear()
        return batch

    def _replace(self, name: str, event: Changed | Gone) -> None:
        self._by_name.pop(name, None)
        self._by_name[name] = event
