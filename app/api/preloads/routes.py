"""Preloads: images that are imported or pulled before a VM needs them."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.api.bodies import BodyRoute
from app.api.dependencies import Services, Svc
from app.api.lists import answer
from app.api.pages import After, Limit, cut, decode
from app.api.parameters import name_in_path
from app.api.preloads.schemas import PreloadPage, PreloadView
from app.api.problems import CLUSTER_ERRORS, responses
from app.api.versions import HEADERS, IfMatchHeader, etag, read_if_match
from app.domain.preloads import PreloadSpec
from app.errors import (
    PreconditionFailed,
    PreloadBeingDeleted,
    PreloadInUse,
    PreloadNotFound,
    PreloadRefused,
    TooManyLists,
)
from app.services.preloads import service
from app.services.writes import WriteOutcome
from app.store.preloads import rows as preload_rows
from app.store.preloads.rows import PreloadRow
from app.store.vms import observed

router = APIRouter(prefix="/v1/preloads", tags=["preloads"], route_class=BodyRoute)
Name = Annotated[str, name_in_path("preload", "ubuntu")]


@router.put(
    "/{name}",
    operation_id="putPreload",
    summary="Create or edit a preload",
    response_description="The preload existed; `Emberpool-Outcome` is `changed` or `unchanged`",
    responses={
        200: {"headers": HEADERS},
        201: {
            "model": PreloadView,
            "description": "Created; the image is being imported or pulled",
            "headers": HEADERS,
        },
        **responses(PreloadRefused, PreloadBeingDeleted, PreconditionFailed, *CLUSTER_ERRORS),
    },
)
async def put_preload(
    name: Name, spec: PreloadSpec, svc: Svc, response: Response, if_match: IfMatchHeader = None
) -> PreloadView:
    """Makes the preload match the body. Sending the same body again changes nothing.

    A disk image is imported into a volume that the disks of VMs are cloned from. A container disk is pulled onto the nodes, where
    a small pod keeps it. The service checks the preload with a dry run in the cluster before it stores anything. A change starts
    a new import; VMs start from the previous import until the new one is ready, unless the image itself changed. `policy` says
    whether an existing volume is used. Pools and claims start from the preload with `start_from: {preload: name}`.
    """
    put = await service.put_preload(svc.db, svc.gateway, name, spec, if_match=read_if_match(if_match))
    if put.outcome is WriteOutcome.CREATED:
        response.status_code = 201
    response.headers["Emberpool-Outcome"] = put.outcome
    return await _answer(svc, response, put.preload)


@router.get(
    "",
    operation_id="listPreloads",
    summary="List preloads",
    response_description="A page of preloads",
    response_model=PreloadPage,
    responses=responses(TooManyLists),
)
async def list_preloads(svc: Svc, limit: Limit = 100, after: After = None) -> Response:
    """Ordered by name, including preloads that claims with `remember` created. To read the next page, pass `next` as `after`, until
    it is null.
    """
    async with svc.lists.turn() as tx:
        found = await preload_rows.page(tx, after=decode(after) or "", limit=limit + 1)
        preloads, following = cut(found, limit, lambda preload: preload.name)
        view = partial(PreloadView.of, now=await observed.database_now(tx))
        return await answer(preloads, view, following)


@router.get(
    "/{name}",
    operation_id="getPreload",
    summary="Read a preload, its progress and its results",
    response_description="The preload",
    responses={200: {"headers": HEADERS}, **responses(PreloadNotFound)},
)
async def get_preload(name: Name, svc: Svc, response: Response) -> PreloadView:
    """The state, the progress and its speed, the volume or the nodes, errors, and how many VMs started from the preload."""
    async with svc.db.begin() as tx:
        preload = await service.existing(tx, name)
    return await _answer(svc, response, preload)


@router.delete(
    "/{name}",
    operation_id="deletePreload",
    summary="Delete a preload and its imported volume",
    status_code=202,
    response_description="The preload is being deleted; GET answers 404 when it is deleted",
    responses=responses(PreloadNotFound, PreloadInUse),
)
async def delete_preload(
    name: Name,
    svc: Svc,
    response: Response,
    *,
    force: Annotated[
        bool, Query(description="Delete it even if a pool starts from it; new VMs of that pool then start cold.")
    ] = False,
) -> PreloadView:
    """Refused while a pool starts from the preload or a VM is being created from it. A volume that existed before the preload is
    kept. Running VMs have their own disks and are not affected.
    """
    return await _answer(svc, response, await service.delete_preload(svc.db, name, force=force))


@router.post(
    "/{name}/refresh",
    operation_id="refreshPreload",
    summary="Import or pull the image again",
    status_code=202,
    response_description="The image is being imported or pulled; VMs start from the previous one until it is ready",
    responses=responses(PreloadNotFound, PreloadBeingDeleted),
)
async def refresh_preload(name: Name, svc: Svc, response: Response) -> PreloadView:
    """The previous volume is removed when the new one is ready and no clone of the previous one is running. After you have fixed
    the cause of a failure, this retries immediately instead of waiting for the next scheduled attempt.
    """
    return await _answer(svc, response, await service.refresh_preload(svc.db, name))


async def _answer(svc: Services, response: Response, preload: PreloadRow) -> PreloadView:
    response.headers["ETag"] = etag(service.version_of(preload))
    async with svc.db.begin() as tx:
        now = await observed.database_now(tx)
    return PreloadView.of(preload, now)
