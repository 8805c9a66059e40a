"""Whether VMs fit, before anybody waits for them."""

from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.api.dependencies import Services, services
from app.api.nodes.schemas import PlacementAnswer
from app.api.problems import responses
from app.config import MAX_POOL_SIZE
from app.domain.observation import WarmWhen
from app.domain.placement import Placement
from app.domain.pools import Count, PoolName
from app.domain.templates import VmSpec
from app.errors import DatabaseUnavailable, InvalidRequest, PoolNotFound, TemplateRefused
from app.lifecycle.placement import check_fit
from app.services.pools.service import no_such_pool
from app.store.pools import rows as pool_rows

router = APIRouter(prefix="/v1/placements", tags=["nodes"])
Svc = Annotated[Services, Depends(services)]


class CheckBody(BaseModel):
    """Which VM, and how many of it: a `template` (also called `vm`, as in a claim), or that of a `pool`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "template": {"image": "quay.io/containerdisks/ubuntu:22.04", "cpu": 4, "memory": "6Gi"},
                    "placement": {"dedicated_cpus": True, "hugepages": "1Gi"},
                    "count": 3,
                },
                {"pool": "fast-start-pool", "count": 10},
            ],
            "oneOf": [{"required": ["template"]}, {"required": ["vm"]}, {"required": ["pool"]}],
        },
    )

    template: dict[str, Any] | None = Field(
        default=None, description="The VM, in any form that a pool's template may have."
    )
    vm: dict[str, Any] | None = Field(default=None, description="The same.")
    pool: PoolName | None = Field(default=None, description="A VM of this pool.")
    placement: Placement | None = Field(
        default=None, description="Where it may run, and on what terms. A pool has its own."
    )
    count: Count = Field(default=1, ge=1, le=MAX_POOL_SIZE, description="So many of them.")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if sum(each is not None for each in (self.template, self.vm, self.pool)) != 1:
            raise ValueError("say one of template, vm and pool")
        if self.pool is not None and self.placement is not None:
            raise ValueError("placement goes with a template; a pool has its own")
        return self


@router.post(
    "/check",
    operation_id="checkPlacement",
    summary="Whether VMs fit on the nodes, where, and what is missing",
    response_description="The answer; nothing was made or kept",
    responses=responses(InvalidRequest, TemplateRefused, PoolNotFound, DatabaseUnavailable),
)
async def check_placement(body: CheckBody, svc: Svc) -> PlacementAnswer:
    """Compares what the pod of each VM would ask for, KubeVirt's own costs included, with what is free on the nodes as they were
    seen last. What fits now may be taken a moment later: nothing is reserved.
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
