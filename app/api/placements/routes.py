"""Checks whether VMs fit on the nodes, before anybody waits for them."""

from fastapi import APIRouter

from app.api.bodies import BodyRoute
from app.api.dependencies import Services, Svc
from app.api.placements.schemas import CheckBody, PlacementAnswer
from app.api.problems import responses
from app.domain.observation import WarmWhen
from app.domain.templates import VmSpec
from app.errors import PoolNotFound, TemplateRefused
from app.lifecycle.placement import check_fit
from app.services.pools.service import no_such_pool
from app.store.pools import rows as pool_rows

router = APIRouter(prefix="/v1/placements", tags=["nodes"], route_class=BodyRoute)


@router.post(
    "/check",
    operation_id="checkPlacement",
    summary="Check whether VMs fit on the nodes",
    response_description="How many VMs fit on which nodes, and what is missing; nothing is created or reserved",
    responses=responses(TemplateRefused, PoolNotFound),
)
async def check_placement(body: CheckBody, svc: Svc) -> PlacementAnswer:
    """Compares what the pod of each VM would request, including the overhead of KubeVirt, with what is free on the nodes according
    to their last observation. Nothing is reserved, so what fits now can be taken a moment later.
    """
    spec = await _spec(svc, body)
    demand = svc.gateway.demand(spec)
    async with svc.db.begin() as tx:
        answer = await check_fit(tx, demand, body.count)
    return PlacementAnswer.of(answer, body.count, svc.gateway.fragment(spec))


async def _spec(svc: Services, body: CheckBody) -> VmSpec:
    if body.pool is None:
        written = body.template if body.template is not None else body.vm or {}
        return svc.gateway.expand(written, WarmWhen.AGENT, body.placement, diskless=True).spec
    async with svc.db.begin() as tx:
        pool = await pool_rows.get(tx, body.pool)
    if pool is None:
        raise no_such_pool(body.pool)
    return pool.vm_spec
