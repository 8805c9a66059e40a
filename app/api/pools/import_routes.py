"""Taking over VirtualMachinePools that are there already."""

import re
from typing import Annotated, Self

from fastapi import APIRouter, Body, Depends, Response
from fastapi.openapi.models import Example
from pydantic import BaseModel, ConfigDict, Field, Strict

from app.api.dependencies import Services, services
from app.api.problems import responses
from app.domain.observation import WarmWhen
from app.domain.pools import POOL_NAME_PATTERN, PoolName, PoolSpec
from app.errors import (
    BodyTooLarge,
    ClusterError,
    ClusterForbidden,
    ClusterNotFound,
    ClusterUnavailable,
    Conflict,
    DatabaseUnavailable,
    FieldProblem,
    InvalidRequest,
    MalformedBody,
    PoolBeingDeleted,
    TemplateRefused,
    UnsupportedMediaType,
)
from app.services.pools.vm_pool_import import Import, import_vm_pool

router = APIRouter(prefix="/v1/pools", tags=["pools"])
Svc = Annotated[Services, Depends(services)]
_BODIES: dict[str, Example] = {
    "look": {"summary": "Only look what it would change", "value": {"vm_pool": "web-servers", "dry_run": True}},
    "take": {
        "summary": "Take it over, for guests without an agent",
        "value": {"vm_pool": "web-servers", "name": "web", "warm_when": "ready"},
    },
}


class ImportBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    vm_pool: str = Field(
        min_length=1, max_length=253, description="The VirtualMachinePool's name.", examples=["web-servers"]
    )
    namespace: str | None = Field(default=None, description="The service works in one; any other is refused.")
    name: PoolName | None = Field(
        default=None, description="What the pool is to be called. None: as the VirtualMachinePool."
    )
    warm_when: WarmWhen = Field(default=WarmWhen.AGENT, description="As for any pool.")
    dry_run: Annotated[bool, Strict()] = Field(default=False, description="Say what would change, and change nothing.")


class ImportView(BaseModel):
    vm_pool: str = Field(description="The VirtualMachinePool's name.")
    pool: str = Field(description="What the pool is called.")
    imported: bool = Field(description="false: it was only looked at.")
    spec: PoolSpec
    changes: list[str] = Field(description="What becomes of it in the cluster, one sentence each.")
    vms: list[str] = Field(description="Its VMs, which become the pool's as they run.")

    @classmethod
    def of(cls, done: Import) -> Self:
        return cls(
            vm_pool=done.vm_pool,
            pool=done.name,
            imported=done.pool is not None,
            spec=done.spec,
            changes=list(done.changes),
            vms=list(done.vms),
        )


@router.post(
    "/import",
    operation_id="importPool",
    summary="Take over a VirtualMachinePool that is there already",
    response_description="What taking it over would change",
    responses={
        201: {"model": ImportView, "description": "It is a pool now"},
        **responses(
            *(InvalidRequest, TemplateRefused, MalformedBody, BodyTooLarge, UnsupportedMediaType),
            *(Conflict, PoolBeingDeleted, ClusterNotFound),
            *(ClusterUnavailable, ClusterForbidden, ClusterError, DatabaseUnavailable),
        ),
    },
)
async def import_pool(
    body: Annotated[ImportBody, Body(openapi_examples=_BODIES)], svc: Svc, response: Response
) -> ImportView:
    """Its template becomes the pool's, its replicas the size, and its VMs warm VMs of the pool, told apart by UID. No VM is
    restarted or removed by that.
    """
    namespace = svc.settings.namespace
    if body.namespace not in {None, namespace}:
        message = f"this service works in namespace {namespace!r} alone"
        raise InvalidRequest(f"namespace: {message}", problems=[FieldProblem("namespace", message)])
    name = body.name or body.vm_pool
    if not re.fullmatch(POOL_NAME_PATTERN, name):
        message = (
            f"{name!r} cannot be the name of a pool, which has small letters, digits and '-', and no dots; give one"
        )
        raise InvalidRequest(f"name: {message}", problems=[FieldProblem("name", message)])
    done = await import_vm_pool(
        svc.db,
        svc.gateway,
        vm_pool=body.vm_pool,
        name=name,
        warm_when=body.warm_when,
        dry_run=body.dry_run,
    )
    if done.pool is not None:
        response.status_code = 201
    return ImportView.of(done)
