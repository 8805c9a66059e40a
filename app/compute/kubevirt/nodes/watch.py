"""What happens to nodes: lists and watches of nodes and of the pods of all namespaces, put together.

If we have no right to list pods, nodes are reported without what is used of them, and the list says so. If we have no right to
list nodes, the stream is Broken with the cluster's own message.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import structlog

from app.compute.kubevirt.kinds import ALL_PODS, NODES, Kind, Manifest
from app.compute.kubevirt.nodes.inventory import NodeInventory
from app.compute.kubevirt.rounds import Round, Sleep, Watch, follow
from app.compute.nodes import NodeChanged, NodeEvent, NodeGone, NodesListed
from app.errors import ClusterForbidden

_FORBIDDEN_SECONDS = 60.0  # rights are granted by people: asking more often helps nobody
ListAll = Callable[[Kind], Awaitable[tuple[list[Manifest], str]]]
_log = structlog.get_logger(__name__)


def observe_nodes(
    list_all: ListAll, watch: Watch, *, namespace: str = "", relist_seconds: float, sleep: Sleep = asyncio.sleep
) -> AsyncGenerator[NodeEvent, None]:
    """See `Gateway.observe_nodes`. `namespace`: where our VMs are."""

    async def list_round() -> Round[NodesListed | NodeChanged | NodeGone]:
        nodes, version = await list_all(NODES)
        versions = {NODES: version}
        pods, hidden = await _list_pods(list_all, versions)
        inventory = NodeInventory(nodes, pods, namespace=namespace, pods_seen=hidden is None)

        def apply(kind: Kind, what: str, item: Manifest) -> list[NodeChanged | NodeGone]:
            return _apply(inventory, kind, item, deleted=what == "DELETED")

        return Round([NodesListed(inventory.nodes(), hidden)], versions, apply)

    return follow(list_round, watch, relist_seconds=relist_seconds, sleep=sleep, forbidden_seconds=_FORBIDDEN_SECONDS)


async def _list_pods(list_all: ListAll, versions: dict[Kind, str]) -> tuple[list[Manifest], str | None]:
    """The pods, and why they cannot be seen. Only if they can be seen, `versions` says that they are watched too."""
    try:
        pods, versions[ALL_PODS] = await list_all(ALL_PODS)
    except ClusterForbidden as error:
        _log.warning("cluster.pods_hidden", reason=error.detail)
        return [], error.detail
    return pods, None


def _apply(inventory: NodeInventory, kind: Kind, item: Manifest, *, deleted: bool) -> list[NodeChanged | NodeGone]:
    if kind == NODES and deleted:
        name = str(item["metadata"]["name"])
        inventory.drop_node(name)
        return [NodeGone(name)]
    changed = inventory.put_node(item) if kind == NODES else inventory.put_pod(item, deleted=deleted)
    return [NodeChanged(node) for name in changed if (node := inventory.node(name)) is not None]
