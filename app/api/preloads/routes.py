"""Preloads: images brought near before a VM needs them."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query, Response
from fastapi.openapi.models import Example

from app.api.dependencies import Services, services
from app.api.pages import After, Limit, Page, decode, encode
from app.api.preloads.schemas import PreloadView
from app.api.problems import responses
from app.domain.pools import POOL_NAME_PATTERN
from app.domain.preloads import PreloadSpec
from app.errors import (
    BodyTooLarge,
    ClusterError,
    ClusterForbidden,
    ClusterUnavailable,
    DatabaseUnavailable,
    InvalidRequest,
    MalformedBody,
    PreloadBeingDeleted,
    PreloadInUse,
    PreloadNotFound,
    PreloadRefused,
    UnsupportedMediaType,
)
from app.services.preloads import service as usecases
from app.services.writes import WriteOutcome
from app.store.preloads import rows as preload_rows
from app.store.preloads.rows import PreloadRow
from app.store.vms import observed

router = APIRouter(prefix="/v1/preloads", tags=["preloads"])
Name = Annotated[
    str,
    Path(
        pattern=POOL_NAME_PATTERN,
        max_length=63,
        description="The preload's name.",
        openapi_examples={"ubuntu": {"value": "ubuntu"}},
    ),
]
Svc = Annotated[Services, Depends(services)]
_FOUND = (InvalidRequest, PreloadNotFound, DatabaseUnavailable)
_BODIES: dict[str, Example] = {
    "disk": {
        "summary": "A disk image, imported into a volume",
        "value": {
            "image": {"http": {"url": "https://example.com/vm-images/ubuntu.qcow2"}},
            "size": "10Gi",
            "storage_class": "fast-ssd",
            "access_modes": ["ReadWriteOnce"],
            "policy": "Always",
        },
    },
    "schedule": {
        "summary": "A disk image in a registry, looked at every night",
        "value": {
            "image": {"registry": {"url": "docker://quay.io/containerdisks/fedora:42"}},
            "size": "10Gi",
            "schedule": "30 2 * * *",
            "keep": 2,
        },
    },
    "container": {
        "summary": "A container disk, pulled onto the nodes",
        "value": {"image": {"container": "quay.io/containerdisks/ubuntu:22.04"}},
    },
}


@router.put(
    "/{name}",
    operation_id="putPreload",
    summary="Create a preload, or bring it to what the body says",
    response_description="It exists; `Emberpool-Outcome` says whether it was `changed` or `unchanged`",
    responses={
        201: {"model": PreloadView, "description": "Created: the image is on its way"},
        **responses(
            *(InvalidRequest, PreloadRefused, MalformedBody, BodyTooLarge, UnsupportedMediaType, PreloadBeingDeleted),
            *(ClusterUnavailable, ClusterForbidden, ClusterError, DatabaseUnavailable),
        ),
    },
)
async def put_preload(
    name: Name, spec: Annotated[PreloadSpec, Body(openapi_examples=_BODIES)], svc: Svc, response: Response
) -> PreloadView:
    """A disk image goes into a volume that VMs are cloned from; a container disk onto the nodes, where a small pod holds it.

    The cluster checks it by a dry run before anything is stored. A change imports anew, and what was imported before serves
    until then, but for another image. `policy` says what an image that is there already counts. The same body again changes
    nothing. Pools and claims start from it by `start_from: {preload: name}`.
    """
    put = await usecases.put_preload(svc.db, svc.gateway, name, spec)
    if put.outcome is WriteOutcome.CREATED:
        response.status_code = 201
    response.headers["Emberpool-Outcome"] = put.outcome
    return (await _views(svc, [put.preload]))[0]


@router.get(
    "",
    operation_id="listPreloads",
    summary="All preloads, by name",
    response_description="A page of preloads",
    responses=responses(InvalidRequest, DatabaseUnavailable),
)
async def list_preloads(svc: Svc, limit: Limit = 100, after: After = None) -> Page[PreloadView]:
    """A page at a time: hand `next` back as `after` until it is null. Those that claims with `remember` made are among them."""
    async with svc.db.begin() as tx:
        found = await preload_rows.page(tx, after=decode(after) or "", limit=limit + 1)
    views = await _views(svc, found[:limit])
    return Page(items=views, next=encode(found[limit - 1].name) if len(found) > limit else None)


@router.get(
    "/{name}",
    operation_id="getPreload",
    summary="One preload: how far it is, and what came of it",
    response_description="The preload",
    responses=responses(*_FOUND),
)
async def get_preload(name: Name, svc: Svc) -> PreloadView:
    """State, progress and its pace, the volume or the nodes, errors in words, and how often VMs started from it."""
    async with svc.db.begin() as tx:
        preload = await usecases.existing(tx, name)
    return (await _views(svc, [preload]))[0]


@router.delete(
    "/{name}",
    operation_id="deletePreload",
    summary="Delete a preload and what it imported",
    status_code=202,
    response_description="It is being deleted; GET answers 404 once it is gone",
    responses=responses(*_FOUND, PreloadInUse),
)
async def delete_preload(
    name: Name,
    svc: Svc,
    *,
    force: Annotated[bool, Query(description="Also where a pool starts from it: its new VMs start cold then.")] = False,
) -> PreloadView:
    """Refused while a pool starts from it or a VM is being made from it. A volume that was there before it stays. VMs that
    run have disks of their own, and stay as they are.
    """
    return (await _views(svc, [await usecases.delete_preload(svc.db, name, force=force)]))[0]


@router.post(
    "/{name}/refresh",
    operation_id="refreshPreload",
    summary="Import or pull the image anew",
    status_code=202,
    response_description="It is on its way; what was there serves until then",
    responses=responses(*_FOUND, PreloadBeingDeleted),
)
async def refresh_preload(name: Name, svc: Svc) -> PreloadView:
    """The volume before is removed once the new one is ready and nobody clones it any more. Also what to do after a failure
    that has been mended: it is not waited for the next try.
    """
    return (await _views(svc, [await usecases.refresh_preload(svc.db, name)]))[0]


async def _views(svc: Services, preloads: list[PreloadRow]) -> list[PreloadView]:
    async with svc.db.begin() as tx:
        now = await observed.database_now(tx)
    return [PreloadView.of(preload, now) for preload in preloads]
