"""Pools: create, edit, read, refill, rotate, pause, delete, and import of VirtualMachinePools."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Body, Query, Response
from pydantic import ValidationError

from app.api.bodies import BodyRoute
from app.api.dependencies import Services, Svc
from app.api.lists import answer
from app.api.pages import After, Limit, cut, decode
from app.api.parameters import name_in_path
from app.api.pools.schemas import ImportBody, ImportView, PoolPage, PoolPatch, PoolView
from app.api.problems import CLUSTER_ERRORS, explain, responses
from app.api.versions import HEADERS, IfMatchHeader, etag, read_if_match
from app.domain.pools import POOL_NAME_PATTERN, PoolSpec, patched
from app.errors import (
    ClusterNotFound,
    Conflict,
    InvalidRequest,
    PoolBeingDeleted,
    PoolNotFound,
    PreconditionFailed,
    TemplateRefused,
    TooManyLists,
    Unschedulable,
)
from app.services.pools import service
from app.services.pools.service import no_such_pool
from app.services.pools.vm_pool_import import import_vm_pool
from app.services.writes import WriteOutcome
from app.store.database import Tx
from app.store.pools import planning, statistics
from app.store.pools import rows as pool_rows
from app.store.rows import PoolRow

router = APIRouter(prefix="/v1/pools", tags=["pools"], route_class=BodyRoute)
Name = Annotated[str, name_in_path("pool", "fast-start-pool")]
_MERGE_PATCH = "application/merge-patch+json"


@router.put(
    "/{name}",
    operation_id="putPool",
    summary="Create or edit a pool",
    response_description="The pool existed; `Emberpool-Outcome` is `changed` or `unchanged`",
    responses={
        200: {"headers": HEADERS},
        201: {"model": PoolView, "description": "Created; its VMs are being created", "headers": HEADERS},
        **responses(TemplateRefused, Unschedulable, PoolBeingDeleted, PreconditionFailed, *CLUSTER_ERRORS),
    },
)
async def put_pool(
    name: Name, spec: PoolSpec, svc: Svc, response: Response, if_match: IfMatchHeader = None
) -> PoolView:
    """Makes the pool match the body. Sending the same body again changes nothing. The `ETag` is the pool's `generation`.

    The service checks the template itself and with a server-side dry run before it stores anything. After a change of the
    template the pool replaces its unclaimed VMs, without going below `min_available`; claimed VMs stay as they are.
    """
    put = await service.put_pool(svc.db, svc.gateway, name, spec, if_match=read_if_match(if_match))
    if put.outcome is WriteOutcome.CREATED:
        response.status_code = 201
    response.headers["Emberpool-Outcome"] = put.outcome
    return await _answer(svc, response, put.pool)


@router.patch(
    "/{name}",
    operation_id="patchPool",
    summary="Edit some fields of a pool",
    response_description="The pool; `Emberpool-Outcome` is `changed` or `unchanged`",
    responses={
        200: {"headers": HEADERS},
        **responses(
            PoolNotFound, TemplateRefused, Unschedulable, PoolBeingDeleted, PreconditionFailed, *CLUSTER_ERRORS
        ),
    },
    openapi_extra={"requestBody": {"content": {_MERGE_PATCH: {"schema": {"$ref": "#/components/schemas/PoolPatch"}}}}},
)
async def patch_pool(
    name: Name,
    patch: Annotated[PoolPatch, Body()],
    svc: Svc,
    response: Response,
    if_match: IfMatchHeader = None,
) -> PoolView:
    """Changes the fields of the pool's `spec` that the body has, and leaves the others as they are: a JSON merge patch (RFC 7396).
    null sets a field to its default, and removes one from the template. A list is replaced as a whole.

    The result is checked like the body of PUT. Requests that change different fields at the same time do not lose each other's
    changes; with `If-Match` a request is refused if the pool has changed since it was read.
    """

    def change(spec: PoolSpec) -> PoolSpec:
        try:
            return patched(spec, patch)
        except ValidationError as error:
            raise explain(error, PoolSpec) from error

    done = await service.edit_pool(svc.db, svc.gateway, name, change, if_match=read_if_match(if_match))
    response.headers["Emberpool-Outcome"] = done.outcome
    return await _answer(svc, response, done.pool)


@router.post(
    "/import",
    operation_id="importPool",
    summary="Import an existing VirtualMachinePool",
    response_description="What the import would change (`dry_run`)",
    responses={
        201: {"model": ImportView, "description": "Imported as a pool"},
        **responses(TemplateRefused, Conflict, PoolBeingDeleted, ClusterNotFound, *CLUSTER_ERRORS),
    },
)
async def import_pool(body: ImportBody, svc: Svc, response: Response) -> ImportView:
    """Creates a pool with the template of the VirtualMachinePool and with its replicas as the size. Its VMs become warm VMs of
    the pool, identified by UID; none of them is restarted or removed.
    """
    namespace = svc.settings.namespace
    if body.namespace not in {None, namespace}:
        raise InvalidRequest.of_field("namespace", f"this service works in namespace {namespace!r} only")
    name = body.name or body.vm_pool
    if not re.fullmatch(POOL_NAME_PATTERN, name):
        message = "a pool's name has lower-case letters, digits and '-', but no dots; set `name`"
        raise InvalidRequest.of_field("name", f"{name!r} cannot be the name of a pool: {message}")
    done = await import_vm_pool(
        svc.db,
        svc.gateway,
        vm_pool=body.vm_pool,
        name=name,
        warm_when=body.warm_when,
        allow_unschedulable=body.allow_unschedulable,
        dry_run=body.dry_run,
    )
    if done.pool is not None:
        response.status_code = 201
    return ImportView.of(done)


@router.get(
    "",
    operation_id="listPools",
    summary="List pools",
    response_description="A page of pools, each with its status",
    response_model=PoolPage,
    responses=responses(TooManyLists),
)
async def list_pools(svc: Svc, limit: Limit = 100, after: After = None) -> Response:
    """Ordered by name. To read the next page, pass `next` as `after`, until it is null."""
    async with svc.lists.turn() as tx:
        found = await pool_rows.page(tx, after=decode(after) or "", limit=limit + 1)
        pools, following = cut(found, limit, lambda pool: pool.name)
        return await answer(pools, await _viewer(tx, pools), following)


@router.get(
    "/{name}",
    operation_id="getPool",
    summary="Read a pool and its status",
    response_description="The pool",
    responses={200: {"headers": HEADERS}, **responses(PoolNotFound)},
)
async def get_pool(name: Name, svc: Svc, response: Response) -> PoolView:
    """The status has the number of VMs in each state, why the pool is degraded or stalled, its refill rate, and the boot times
    measured on this cluster.
    """
    async with svc.db.begin() as tx:
        pool = await pool_rows.get(tx, name)
    if pool is None:
        raise no_such_pool(name)
    return await _answer(svc, response, pool)


@router.delete(
    "/{name}",
    operation_id="deletePool",
    summary="Delete a pool; claimed VMs are kept until released",
    status_code=202,
    response_description="The pool is being deleted; GET answers 404 when it is deleted",
    responses=responses(PoolNotFound),
)
async def delete_pool(
    name: Name,
    svc: Svc,
    response: Response,
    *,
    force: Annotated[bool, Query(description="Release the pool's claims now.")] = False,
) -> PoolView:
    """Its unclaimed VMs are removed, waiting claims fail, and no new VM is created. The pool is deleted, and its name is free,
    when the last of its VMs has left the cluster.
    """
    return await _answer(svc, response, await service.delete_pool(svc.db, name, force=force))


@router.post(
    "/{name}/replenish",
    operation_id="replenishPool",
    summary="Fill a pool up to its size once",
    status_code=202,
    response_description="VMs are being created",
    responses=responses(PoolNotFound, PoolBeingDeleted),
)
async def replenish_pool(name: Name, svc: Svc, response: Response) -> PoolView:
    """For pools without `auto_replenish`. A pool with it refills by itself, and this changes nothing."""
    return await _answer(svc, response, await service.replenish_pool(svc.db, name))


@router.post(
    "/{name}/rotate",
    operation_id="rotatePool",
    summary="Replace all unclaimed VMs of a pool",
    status_code=202,
    response_description=(
        "VMs are being replaced; `status.rotation` says how many remain. `Emberpool-Outcome` is `unchanged` if a rotation that was "
        "requested before still runs"
    ),
    responses=responses(PoolNotFound, PoolBeingDeleted),
)
async def rotate_pool(
    name: Name,
    svc: Svc,
    response: Response,
    *,
    restart: Annotated[
        bool, Query(description="Also replace the VMs that were created since an earlier rotation that still runs.")
    ] = False,
) -> PoolView:
    """Replaces the VMs that exist now with new ones of the same template, a few at a time, without going below `min_available`.
    Claimed VMs stay as they are. The rotation has ended when `status.rotation` is null.

    While it runs, another request changes nothing, so that a client may repeat its request; `restart` begins anew. A template that
    changes meanwhile replaces each VM once, not twice. A paused pool rotates when it is resumed.
    """
    rotated = await service.rotate_pool(svc.db, name, restart=restart)
    response.headers["Emberpool-Outcome"] = rotated.outcome
    return await _answer(svc, response, rotated.pool)


@router.post(
    "/{name}/pause",
    operation_id="pausePool",
    summary="Pause a pool: create and remove no VM",
    response_description="The paused pool",
    responses=responses(PoolNotFound, PoolBeingDeleted),
)
async def pause_pool(name: Name, svc: Svc, response: Response) -> PoolView:
    """Lasts until the pool is resumed. Its ready VMs can still be claimed."""
    return await _answer(svc, response, await service.pause_pool(svc.db, name))


@router.post(
    "/{name}/resume",
    operation_id="resumePool",
    summary="Resume a pool that is paused, or stalled after failures",
    response_description="The resumed pool",
    responses=responses(PoolNotFound, PoolBeingDeleted),
)
async def resume_pool(name: Name, svc: Svc, response: Response) -> PoolView:
    """Resets the count of failures and creates VMs at once. Editing a stalled pool does the same."""
    return await _answer(svc, response, await service.resume_pool(svc.db, name))


async def _answer(svc: Services, response: Response, pool: PoolRow) -> PoolView:
    response.headers["ETag"] = etag(str(pool.generation))
    async with svc.db.begin() as tx:
        return (await _viewer(tx, [pool]))(pool)


async def _viewer(tx: Tx, pools: Sequence[PoolRow]) -> Callable[[PoolRow], PoolView]:
    """What makes the view of each of these pools."""
    ids = [pool.id for pool in pools]
    figures, plans = await statistics.of_pools(tx, ids), await planning.last_plans(tx, ids)
    return lambda pool: PoolView.of(pool, figures[pool.id], plans[pool.id])
