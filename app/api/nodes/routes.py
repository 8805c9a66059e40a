"""The nodes of the cluster, and the room for VMs on them."""

from typing import Annotated

from fastapi import APIRouter, Path

from app.api.dependencies import Svc
from app.api.nodes.schemas import NodePage, NodesObservation, NodeView, NodeWithVms
from app.api.pages import After, Limit, cut, decode
from app.api.problems import responses
from app.errors import NodeNotFound, TooManyLists
from app.lifecycle.placement import nodes_status
from app.store import nodes as node_rows

router = APIRouter(prefix="/v1/nodes", tags=["nodes"])


@router.get(
    "",
    operation_id="listNodes",
    summary="List nodes, and what is free on each",
    response_description="A page of nodes, and how current it is",
    responses=responses(TooManyLists),
)
async def list_nodes(svc: Svc, limit: Limit = 100, after: After = None) -> NodePage:
    """Ordered by name. One worker watches the nodes for all replicas; `observation` says how current and complete the data is."""
    async with svc.lists.turn() as tx:
        status = await nodes_status(tx)
        found = await node_rows.page(tx, after=decode(after) or "", limit=limit + 1)
        nodes, following = cut(found, limit, lambda node: node.name)
        vms = await node_rows.count_vms(tx, [node.name for node in nodes])
    items = [NodeView.of(node, vms[node.name]) for node in nodes]
    return NodePage(items=items, next=following, observation=NodesObservation.of(status))


@router.get(
    "/{name}",
    operation_id="getNode",
    summary="Read a node, and the service's VMs on it",
    response_description="The node",
    responses=responses(NodeNotFound),
)
async def get_node(
    name: Annotated[
        str,
        Path(
            max_length=253,
            description="Name of the node in the cluster.",
            openapi_examples={"node1": {"value": "node1"}},
        ),
    ],
    svc: Svc,
) -> NodeWithVms:
    """As in the list, with the node's labels and each of the service's VMs on it."""
    async with svc.db.begin() as tx:
        node = await node_rows.get(tx, name)
        vms = await node_rows.count_vms(tx, [name])
        on_it = await node_rows.vms_on(tx, name)
        status = await nodes_status(tx)
    if node is None:
        known = "GET /v1/nodes lists them" if status.stale_reason is None else status.stale_reason
        raise NodeNotFound(f"no node is named {name!r}; {known}")
    return NodeWithVms.of(node, vms[name], labels=node.labels, vms_on_it=on_it)
