"""What happens to nodes: lists and watches of nodes and of the pods of all namespaces, put together.

If we have no right to list pods, nodes are reported without what is used of them, and the report says so. If we have no right to
list nodes, the stream is Broken with the cluster's own message.
"""

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime

import structlog

from app.compute.kubevirt.kinds import ALL_PODS, NODES, Kind, Manifest
from app.compute.kubevirt.nodes.inventory import NodeInventory
from app.compute.kubevirt.reflector import Sleep, Source, follow
from app.compute.nodes import NodeChanged, NodeEvent, NodeGone, NodesListed

_log = structlog.get_logger(__name__)
_Told = NodesListed | NodeChanged | NodeGone


def observe_nodes(
    source: Source,
    *,
    namespace: str = "",
    relist_seconds: float,
    turn: asyncio.Lock | None = None,
    sleep: Sleep = asyncio.sleep,
) -> AsyncGenerator[NodeEvent, None]:
    """See `Gateway.observe_nodes`. `namespace`: where our VMs are."""
    cache = NodeCache(NodeInventory(namespace=namespace))
    kinds, relist = (NODES, ALL_PODS), relist_seconds
    return follow(source, cache, kinds, may_hide=[ALL_PODS], relist_seconds=relist, turn=turn, sleep=sleep)


class NodeCache:
    """Implements `reflector.Cache`."""

    def __init__(self, inventory: NodeInventory) -> None:
        self._inventory = inventory

    def key(self, kind: Kind, item: Manifest) -> str:
        return str(item["metadata"]["name" if kind == NODES else "uid"])

    def put(self, kind: Kind, item: Manifest) -> list[_Told]:
        inventory = self._inventory
        return self._changed(inventory.put_node(item) if kind == NODES else inventory.put_pod(item))

    def drop(self, kind: Kind, key: str) -> list[_Told]:
        if kind == ALL_PODS:
            return self._changed(self._inventory.drop_pod(key))
        self._inventory.drop_node(key)
        return [NodeGone(key)]

    def report(self, _began_at: datetime) -> NodesListed:
        return NodesListed(self._inventory.nodes(), self._inventory.pods_hidden)

    def hide(self, kind: Kind, reason: str | None) -> bool:
        if kind != ALL_PODS:
            return False
        is_news = self._inventory.hide_pods(reason)
        if is_news and reason is not None:
            _log.warning("cluster.pods_hidden", reason=reason)
        return is_news

    def _changed(self, names: tuple[str, ...]) -> list[_Told]:
        return [NodeChanged(node) for name in names if (node := self._inventory.node(name)) is not None]
