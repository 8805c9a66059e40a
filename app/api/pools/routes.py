"""Pools: written by name, watched, refilled, paused."""

from typing import Annotated

import orjson
from fastapi import APIRouter, Body, Depends, Path, Query, Response
from fastapi.openapi.models import Example

from app.api.dependencies import Services, services
from app.api.pages import After, Limit, Page, decode, encode
from app.api.pools.schemas import PoolView
from app.api.problems import responses
from app.domain.pools import POOL_NAME_PATTERN, PoolSpec
from app.errors import (
    BodyTooLarge,
    ClusterError,
    ClusterForbidden,
    ClusterUnavailable,
    DatabaseUnavailable,
    FieldProblem,
    InvalidRequest,
    MalformedBody,
    PoolBeingDeleted,
    PoolNotFound,
    TemplateRefused,
    Unschedulable,
    UnsupportedMediaType,
)
from app.services.pools import service as usecases
from app.services.pools.service import no_such_pool
from app.services.writes import WriteOutcome
from app.store.pools import planning, statistics
from app.store.pools import rows as pool_rows
from app.store.rows import PoolRow

router = APIRouter(prefix="/v1/pools", tags=["pools"])
Name = Annotated[
    str,
    Path(
        pattern=POOL_NAME_PATTERN,
        max_length=63,
        description="The pool's name.",
        openapi_examples={"fast-start-pool": {"value": "fast-start-pool"}},
    ),
]
Svc = Annotated[Services, Depends(services)]
_FOUND = (InvalidRequest, PoolNotFound, DatabaseUnavailable)
_BODIES: dict[str, Example] = {
    "short": {
        "summary": "A short form of the template",
        "value": {
            "size": 10,
            "min_available": 5,
            "template": {"image": "quay.io/containerdisks/ubuntu:22.04", "cpu": 2, "memory": "2Gi"},
        },
    },
    "kubevirt": {
        "summary": "A KubeVirt template, for a guest without an agent",
        "value": {
            "size": 3,
            "warm_when": "ready",
            "max_ready_age_seconds": 86400,
            "template": {
                "spec": {
                    "domain": {
                        "cpu": {"cores": 2},
                        "memory": {"guest": "2Gi"},
                        "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]},
                    },
                    "readinessProbe": {"tcpSocket": {"port": 22}},
                    "volumes": [
                        {"name": "root", "containerDisk": {"image": "quay.io/containerdisks/ubuntu:22.04"}},
                    ],
                }
            },
        },
    },
    "pinned": {
        "summary": "CPUs and hugepages of its own, spread over zones",
        "value": {
            "size": 4,
            "template": {"image": "quay.io/containerdisks/ubuntu:22.04", "cpu": 4, "memory": "4Gi"},
            "placement": {"dedicated_cpus": True, "hugepages": "2Mi", "spread": "zones"},
        },
    },
    "vm-pool": {
        "summary": "A VirtualMachinePool, to be seen and managed with kubectl too",
        "value": {
            "size": 5,
            "min_available": 2,
            "backing": "VirtualMachinePool",
            "template": {"image": "quay.io/containerdisks/fedora:42", "cpu": 2, "memory": "2Gi"},
        },
    },
    "drained": {
        "summary": "Filled on request alone, with short leases",
        "value": {
            "size": 5,
            "auto_replenish": False,
            "default_lease_seconds": 600,
            "max_lease_seconds": 3600,
            "template": {"image": "quay.io/containerdisks/fedora:40", "memory": "1Gi"},
        },
    },
}


@router.put(
    "/{name}",
    operation_id="putPool",
    summary="Create a pool, or bring it to what the body says",
    response_description="It exists; `Emberpool-Outcome` says whether it was `changed` or `unchanged`",
    responses={
        201: {"model": PoolView, "description": "Created: its VMs are on their way"},
        **responses(
            *(
                InvalidRequest,
                TemplateRefused,
                Unschedulable,
                MalformedBody,
                BodyTooLarge,
                UnsupportedMediaType,
                PoolBeingDeleted,
            ),
            *(ClusterUnavailable, ClusterForbidden, ClusterError, DatabaseUnavailable),
        ),
    },
)
async def put_pool(
    name: Name, spec: Annotated[PoolSpec, Body(openapi_examples=_BODIES)], svc: Svc, response: Response
) -> PoolView:
    """The template is checked by our own rules and by a server-side dry run before anything is stored. A changed template
    rotates the unclaimed VMs behind the floor; claimed ones stay as they are. The same body again changes nothing.
    """
    _refuse_unspeakable(spec)
    put = await usecases.put_pool(svc.db, svc.gateway, name, spec)
    if put.outcome is WriteOutcome.CREATED:
        response.status_code = 201
    response.headers["Emberpool-Outcome"] = put.outcome
    return (await _views(svc, [put.pool]))[0]


@router.get(
    "",
    operation_id="listPools",
    summary="All pools, by name",
    response_description="A page of pools, each with its status",
    responses=responses(InvalidRequest, DatabaseUnavailable),
)
async def list_pools(svc: Svc, limit: Limit = 100, after: After = None) -> Page[PoolView]:
    """A page at a time: hand `next` back as `after` until it is null."""
    async with svc.db.begin() as tx:
        found = await pool_rows.page(tx, after=decode(after) or "", limit=limit + 1)
    views = await _views(svc, found[:limit])
    return Page(items=views, next=encode(found[limit - 1].name) if len(found) > limit else None)


@router.get(
    "/{name}",
    operation_id="getPool",
    summary="One pool and its status",
    response_description="The pool",
    responses=responses(*_FOUND),
)
async def get_pool(name: Name, svc: Svc) -> PoolView:
    """Counts by state, fill, why it is degraded or stalled, the refill rate, and what boots took on this cluster."""
    async with svc.db.begin() as tx:
        pool = await pool_rows.get(tx, name)
    if pool is None:
        raise no_such_pool(name)
    return (await _views(svc, [pool]))[0]


@router.delete(
    "/{name}",
    operation_id="deletePool",
    summary="Delete a pool; claimed VMs are kept until released",
    status_code=202,
    response_description="It is being deleted; GET answers 404 once it is gone",
    responses=responses(*_FOUND),
)
async def delete_pool(
    name: Name, svc: Svc, *, force: Annotated[bool, Query(description="Release its claims too, now.")] = False
) -> PoolView:
    """Its unclaimed VMs are removed, waiting claims fail, nothing new is created. It is gone, and its name free, once the last
    of its VMs has left the cluster.
    """
    pool = await usecases.delete_pool(svc.db, name, force=force)
    return (await _views(svc, [pool]))[0]


@router.post(
    "/{name}/replenish",
    operation_id="replenishPool",
    summary="Fill a pool up to its size once",
    status_code=202,
    response_description="Its VMs are on their way",
    responses=responses(*_FOUND, PoolBeingDeleted),
)
async def replenish_pool(name: Name, svc: Svc) -> PoolView:
    """For pools without `auto_replenish`; one with it refills by itself, and this changes nothing."""
    return (await _views(svc, [await usecases.replenish_pool(svc.db, name)]))[0]


@router.post(
    "/{name}/pause",
    operation_id="pausePool",
    summary="Create and remove nothing until resumed",
    response_description="The pool, paused",
    responses=responses(*_FOUND, PoolBeingDeleted),
)
async def pause_pool(name: Name, svc: Svc) -> PoolView:
    """Its ready VMs can be claimed all the same."""
    return (await _views(svc, [await usecases.pause_pool(svc.db, name)]))[0]


@router.post(
    "/{name}/resume",
    operation_id="resumePool",
    summary="End a pause, or a stall after failures",
    response_description="The pool, at work again",
    responses=responses(*_FOUND, PoolBeingDeleted),
)
async def resume_pool(name: Name, svc: Svc) -> PoolView:
    """Failures so far are forgotten, and VMs are created at once. So does an edit of the pool for a stall."""
    return (await _views(svc, [await usecases.resume_pool(svc.db, name)]))[0]


def _refuse_unspeakable(spec: PoolSpec) -> None:
    """Half a surrogate, an integer beyond 64 bits, nesting without end: the framework reads them, the cluster does not."""
    try:
        orjson.dumps(spec.template)
    except orjson.JSONEncodeError as error:
        message = f"cannot be sent to the cluster: {error}"
        raise TemplateRefused(f"template: {message}", problems=[FieldProblem("template", message)]) from error


async def _views(svc: Services, pools: list[PoolRow]) -> list[PoolView]:
    async with svc.db.begin() as tx:
        figures = await statistics.of_pools(tx, [pool.id for pool in pools])
        plans = [await planning.last_plan(tx, pool.id) for pool in pools]
    return [PoolView.of(pool, figures[pool.id], plan) for pool, plan in zip(pools, plans, strict=True)]
