"""Nodes, and what runs on them: one endless stream, with the discipline of `watch`.

A round lists nodes and the pods of all namespaces, then watches both from there. Where pods may not be seen (the right is
missing) nodes are told without what is used of them, and that is said; where nodes may not, the stream is Broken with the
cluster's own words, and tries again at long intervals.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import structlog

from app.compute.kubevirt.kinds import ALL_PODS, NODES, Kind, Manifest
from app.compute.kubevirt.nodes.inventory import NodeInventory
from app.compute.kubevirt.vms.watch import Watch, Watches, backoff
from app.compute.nodes import NodeChanged, NodeEvent, NodeGone, NodesListed
from app.compute.vms import Broken
from app.errors import ClusterError, ClusterForbidden, ClusterUnavailable

_FORBIDDEN_SECONDS = 60.0
"""Rights are given by people: until then asking more often helps nobody."""

ListAll = Callable[[Kind], Awaitable[tuple[list[Manifest], str]]]
_log = structlog.get_logger(__name__)


async def observe_nodes(
    list_all: ListAll,
    watch: Watch,
    *,
    namespace: str = "",
    relist_seconds: float,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[NodeEvent, None]:
    """The first event is a NodesListed or a Broken. Ends only by being closed. `namespace`: where our VMs are."""
    failures = 0
    while True:
        try:
            nodes, version = await list_all(NODES)
            versions = {NODES: version}
            pods, hidden = await _list_pods(list_all, versions)
        except (ClusterError, ClusterUnavailable) as error:
            failures += 1
            _log.warning("cluster.nodes_not_listed", reason=error.detail, failures=failures)
            yield Broken(error.detail)
            await sleep(_FORBIDDEN_SECONDS if isinstance(error, ClusterForbidden) else backoff(failures))
            continue
        inventory = NodeInventory(nodes, pods, namespace=namespace, pods_seen=hidden is None)
        yield NodesListed(inventory.nodes(), hidden)
        async with Watches(watch, versions, relist_seconds) as watches:
            while (event := await watches.next()) is not None:
                for change in _apply(inventory, *event):
                    yield change
        if watches.broken is None:
            failures = 0
            continue
        _log.warning("cluster.node_watch_broken", reason=watches.broken, seconds=round(watches.lasted, 3))
        failures = failures + 1 if watches.was_short else 0
        if failures:
            yield Broken(watches.broken)
            await sleep(backoff(failures))


async def _list_pods(list_all: ListAll, versions: dict[Kind, str]) -> tuple[list[Manifest], str | None]:
    """The pods, and why they cannot be seen. Those that can are watched too."""
    try:
        pods, versions[ALL_PODS] = await list_all(ALL_PODS)
    except ClusterForbidden as error:
        _log.warning("cluster.pods_hidden", reason=error.detail)
        return [], error.detail
    return pods, None


def _apply(inventory: NodeInventory, kind: Kind, event: Manifest) -> list[NodeChanged | NodeGone]:
    what, item = event.get("type"), event.get("object")
    if what not in {"ADDED", "MODIFIED", "DELETED"} or not isinstance(item, dict):
        return []  # a bookmark: it only says that the watch is alive
    deleted = what == "DELETED"
    if kind == NODES and deleted:
        name = str(item["metadata"]["name"])
        inventory.drop_node(name)
        return [NodeGone(name)]
    changed = inventory.put_node(item) if kind == NODES else inventory.put_pod(item, deleted=deleted)
    return [NodeChanged(node) for name in changed if (node := inventory.node(name)) is not None]
