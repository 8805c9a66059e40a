"""Keeps the rows of nodes true to the cluster. Pools that wait for room are planned as soon as a node has more of it."""

from collections.abc import AsyncGenerator, Container, Mapping, Sequence

import structlog
from typing_extensions import override

from app.compute.gateway import Gateway
from app.compute.nodes import NodeChanged, NodeEvent, NodeGone, NodesListed
from app.config import Settings
from app.domain.capacity import has_more_room
from app.domain.nodes import Node
from app.reconcilers.runtime.informer import Informer, Pending
from app.store import nodes as node_rows
from app.store import watch_state
from app.store.database import Database, Tx
from app.store.notices import Topic, notify

log = structlog.get_logger(__name__)


class NodeInformer(Informer[NodesListed, NodeChanged | NodeGone]):
    loop = "nodes"
    watch = node_rows.WATCH
    gather_seconds = 0.2  # pods come and go in bursts

    def __init__(self, db: Database, gateway: Gateway, settings: Settings, *, holder: str) -> None:
        super().__init__(db, gateway, settings, holder=holder)
        self._known: dict[str, Node] = {}

    @override
    def observe(self) -> AsyncGenerator[NodeEvent, None]:
        return self._gateway.observe_nodes()

    @override
    def new_pending(self) -> Pending[NodesListed, NodeChanged | NodeGone]:
        self._known = {}
        return Pending(NodesListed, _name_of)

    @override
    async def write(self, events: Sequence[NodeChanged | NodeGone]) -> None:
        nodes = {event.node.name: event.node for event in events if isinstance(event, NodeChanged)}
        gone = [event.name for event in events if isinstance(event, NodeGone)]
        async with self._db.begin() as tx:
            await self._leader.require(tx)
            await node_rows.drop(tx, gone)
            woken = await self._write(tx, nodes)
        self._known = {name: node for name, node in (self._known | nodes).items() if name not in gone}
        _log_woken(woken)

    @override
    async def write_list(self, listed: NodesListed, newer: Container[str]) -> AsyncGenerator[None, None]:
        """In one step: of all that a cluster has, nodes are few."""
        nodes = {node.name: node for node in listed.nodes}
        async with self._db.begin() as tx:
            await self._leader.require(tx)
            await node_rows.keep_only(tx, list(nodes))
            await self._write_pods_watch(tx, listed.pods_hidden)
            woken = await self._write(tx, nodes)
        self._known = nodes
        _log_woken(woken)
        return
        yield

    async def _write(self, tx: Tx, nodes: Mapping[str, Node]) -> int:
        """Returns how many pools are planned now because there is more room."""
        await node_rows.write(tx, list(nodes.values()))
        if not any(has_more_room(self._known.get(name), node) for name, node in nodes.items()):
            return 0
        woken = await node_rows.wake_waiting(tx)
        if woken:
            await notify(tx, Topic.PLAN)
        return woken

    async def _write_pods_watch(self, tx: Tx, hidden: str | None) -> None:
        holder = self._leader.holder
        if hidden is None:
            await watch_state.write_heard(tx, node_rows.PODS_WATCH, holder=holder, listed=True)
        else:
            await watch_state.write_broken(tx, node_rows.PODS_WATCH, holder=holder, reason=hidden)


def _log_woken(pools: int) -> None:
    if pools:
        log.info("nodes.more_room", pools=pools)


def _name_of(event: NodeChanged | NodeGone) -> str:
    return event.name if isinstance(event, NodeGone) else event.node.name
