"""Keeps the rows of nodes true to the cluster: one replica at a time watches them, for every replica to read.

Changes are gathered for a moment and written once a node: pods come and go in bursts. Where a node has more room than before,
the pools that wait for room are planned at once.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from app.compute.gateway import Gateway
from app.compute.nodes import NodeChanged, NodeEvent, NodeGone, NodesListed
from app.compute.vms import Broken
from app.concurrency import first_of
from app.config import Settings
from app.domain.capacity import has_more_room
from app.domain.nodes import Node
from app.reconcilers.runtime.leader import Leader
from app.store import nodes as node_rows
from app.store import watch_state as watches
from app.store.database import Database, Tx
from app.store.notices import Topic, notify

_GATHER_SECONDS = 0.2
_HEARD_SECONDS = 3.0
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Backlog:
    """What is not written down yet: of each node only the last."""

    listed: NodesListed | None = None
    changed: dict[str, Node | None] = field(default_factory=dict)
    broken: Broken | None = None
    filled: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, event: NodeEvent) -> None:
        """A list stands for all changes before it."""
        match event:
            case NodesListed():
                self.listed, self.broken = event, None
                self.changed = {}
            case NodeChanged():
                self.changed[event.node.name] = event.node
            case NodeGone():
                self.changed[event.name] = None
            case Broken():
                self.broken = event
        self.filled.set()


class WatchNodes:
    """`run` is this replica's part: to watch while it holds the lease, and to stand by while it does not."""

    def __init__(self, db: Database, gateway: Gateway, settings: Settings, *, holder: str) -> None:
        self._db = db
        self._gateway = gateway
        self._holder = holder
        self._duty = Leader(db, "nodes", node_rows.WATCH, holder=holder, lease_seconds=settings.watch_lease_seconds)
        self._known: dict[str, Node] = {}
        self._sees = False

    async def run(self, stop: asyncio.Event) -> None:
        await self._duty.run(self._watch, stop)

    async def _watch(self, stop: asyncio.Event) -> None:
        """Watches until the stop, or until another holds the lease."""
        backlog = _Backlog()
        self._known, self._sees = {}, False
        async with aclosing(self._gateway.observe_nodes()) as source:

            async def write(*ends: "asyncio.Task[None]") -> None:
                await _wait_for(backlog, *ends)
                await self._apply(backlog)

            await self._duty.beside(write, _read(source, backlog), stop)

    async def _apply(self, backlog: _Backlog) -> None:
        """Writes what there is, and that the watch is alive where there is nothing and it is not broken."""
        listed, changed, broken = backlog.listed, backlog.changed, backlog.broken
        backlog.listed, backlog.changed, backlog.broken = None, {}, None
        backlog.filled.clear()
        nodes = [
            *(listed.nodes if listed is not None else ()),
            *(node for node in changed.values() if node is not None),
        ]
        gone = [name for name, node in changed.items() if node is None]
        if listed is not None or broken is not None:
            self._sees = broken is None
        async with self._db.begin() as tx:
            await self._duty.require(tx)
            if listed is not None:
                await node_rows.keep_only(tx, [node.name for node in listed.nodes])
                await self._write_sight_of_pods(tx, listed.pods_hidden)
            await node_rows.write(tx, list({node.name: node for node in nodes}.values()))
            await node_rows.drop(tx, gone)
            if broken is not None:
                await watches.write_broken(tx, node_rows.WATCH, holder=self._holder, reason=broken.reason)
            elif self._sees:
                await watches.write_heard(tx, node_rows.WATCH, holder=self._holder, listed=listed is not None)
            woken = 0
            if any(has_more_room(self._known.get(node.name), node) for node in nodes):
                woken = await node_rows.wake_waiting(tx)
                if woken:
                    await notify(tx, Topic.PLAN)
        if listed is not None:
            self._known = {}
        self._known.update({node.name: node for node in nodes})
        for name in gone:
            self._known.pop(name, None)
        if woken:
            log.info("nodes.more_room", pools=woken)

    async def _write_sight_of_pods(self, tx: Tx, hidden: str | None) -> None:
        if hidden is None:
            await watches.write_heard(tx, node_rows.PODS_WATCH, holder=self._holder, listed=True)
        else:
            await watches.write_broken(tx, node_rows.PODS_WATCH, holder=self._holder, reason=hidden)


async def _read(source: AsyncGenerator[NodeEvent, None], backlog: _Backlog) -> None:
    async for event in source:
        backlog.put(event)


async def _wait_for(backlog: _Backlog, *ends: "asyncio.Task[None]") -> None:
    """Returns a moment after there is something, when one of `ends` ended, or when it is time for a sign of life."""
    await first_of(backlog.filled.wait(), *ends, timeout=_HEARD_SECONDS)
    if backlog.filled.is_set():
        await asyncio.sleep(_GATHER_SECONDS)
