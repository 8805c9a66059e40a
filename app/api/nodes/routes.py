"""The cluster's nodes, as VMs need them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from app.api.dependencies import Services, services
from app.api.nodes.schemas import NodePage, NodeView, NodeWithVms, SightView
from app.api.pages import After, Limit, decode, encode
from app.api.problems import responses
from app.errors import DatabaseUnavailable, InvalidRequest, NodeNotFound
from app.lifecycle.placement import see
from app.store import nodes as node_rows

router = APIRouter(prefix="/v1/nodes", tags=["nodes"])
Svc = Annotated[Services, Depends(services)]


@router.get(
    "",
    operation_id="listNodes",
    summary="The cluster's nodes, and what is left on each",
    response_description="A page of nodes, and how fresh it is",
    responses=responses(InvalidRequest, DatabaseUnavailable),
)
async def list_nodes(svc: Svc, limit: Limit = 100, after: After = None) -> NodePage:
    """By name. One worker watches them for every replica; `sight` says how fresh that is, and what cannot be seen."""
    async with svc.db.begin() as tx:
        sight = await see(tx)
        found = await node_rows.page(tx, after=decode(after) or "", limit=limit + 1)
        vms = await node_rows.count_vms(tx, [node.name for node in found[:limit]])
    return NodePage(
        items=[NodeView.of(node, vms[node.name]) for node in found[:limit]],
        next=encode(found[limit - 1].name) if len(found) > limit else None,
        sight=SightView.of(sight),
    )


@router.get(
    "/{name}",
    operation_id="getNode",
    summary="One node, and our VMs on it",
    response_description="The node",
    responses=responses(InvalidRequest, NodeNotFound, DatabaseUnavailable),
)
async def get_node(
    name: Annotated[
        str,
        Path(
            max_length=253,
            description="The node's name in the cluster.",
            openapi_examples={"node1": {"value": "node1"}},
        ),
    ],
    svc: Svc,
) -> NodeWithVms:
    """With its labels and each of our VMs on it."""
    async with svc.db.begin() as tx:
        node = await node_rows.get(tx, name)
        vms = await node_rows.count_vms(tx, [name])
        on_it = await node_rows.vms_on(tx, name)
        sight = await see(tx)
    if node is None:
        known = "GET /v1/nodes lists those that there are" if sight.stale_reason is None else sight.stale_reason
        raise NodeNotFound(f"no node is named {name!r}; {known}")
    return NodeWithVms.with_vms(node, vms[name], on_it)
