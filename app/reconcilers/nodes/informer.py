"""Keeps the rows of nodes true to the cluster. Pools that wait for room are planned as soon as a node has more of it."""

from collections.abc import AsyncGenerator

import structlog
from typing_extensions import override

from app.compute.gateway import Gateway
from app.compute.nodes import NodeChanged, NodeEvent, NodeGone, NodesListed
from app.config import Settings
from app.domain.capacity import has_more_room
from app.domain.nodes import Node
from app.reconcilers.runtime.informer import Batch, Informer, Pending
from app.store import nodes as node_rows
from app.store import watch_state
from app.store.database import Database
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
    async def write(self, batch: Batch[NodesListed, NodeChanged | NodeGone]) -> None:
        listed = batch.listed
        nodes = {node.name: node for node in (listed.nodes if listed is not None else ())}
        nodes |= {event.node.name: event.node for event in batch.events if isinstance(event, NodeChanged)}
        gone = [event.name for event in batch.events if isinstance(event, NodeGone)]
        woken = 0
        async with self._db.begin() as tx:
            await self._leader.require(tx)
            if listed is not None:
                await node_rows.keep_only(tx, [node.name for node in listed.nodes])
                holder, hidden = self._leader.holder, listed.pods_hidden
                if hidden is None:
                    await watch_state.write_heard(tx, node_rows.PODS_WATCH, holder=holder, listed=True)
                else:
                    await watch_state.write_broken(tx, node_rows.PODS_WATCH, holder=holder, reason=hidden)
            await node_rows.write(tx, list(nodes.values()))
            await node_rows.drop(tx, gone)
            if any(has_more_room(self._known.get(name), node) for name, node in nodes.items()):
                woken = await node_rows.wake_waiting(tx)
                if woken:
                    await notify(tx, Topic.PLAN)
        known = nodes if listed is not None else {**self._known, **nodes}
        self._known = {name: node for name, node in known.items() if name not in gone}
        if woken:
            log.info("nodes.more_room", pools=woken)


def _name_of(event: NodeChanged | NodeGone) -> str:
    return event.name if isinstance(event, NodeGone) else event.node.name
