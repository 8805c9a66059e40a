"""Snapshots: taken of a VM or for a pool, refreshed, listed, deleted."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query, Response
from fastapi.openapi.models import Example

from app.api.dependencies import Services, services
from app.api.pages import After, Limit, Page, decode, encode
from app.api.problems import responses
from app.api.snapshots.schemas import SnapshotView
from app.domain.pools import POOL_NAME_PATTERN
from app.domain.snapshots import SnapshotSpec
from app.errors import (
    BodyTooLarge,
    ClusterError,
    ClusterForbidden,
    ClusterUnavailable,
    Conflict,
    DatabaseUnavailable,
    InvalidRequest,
    MalformedBody,
    PoolBeingDeleted,
    PoolNotFound,
    SnapshotBeingDeleted,
    SnapshotInUse,
    SnapshotNotFound,
    SnapshotRefused,
    UnsupportedMediaType,
    VmNotFound,
)
from app.services.snapshots import service as usecases
from app.services.snapshots.service import no_such_snapshot
from app.services.writes import WriteOutcome
from app.store.snapshots import rows as snapshot_rows
from app.store.snapshots.rows import SnapshotRow
from app.store.vms.observed import database_now

router = APIRouter(prefix="/v1/snapshots", tags=["snapshots"])
Name = Annotated[
    str,
    Path(
        pattern=POOL_NAME_PATTERN,
        max_length=63,
        description="The snapshot's name.",
        openapi_examples={"ubuntu-ready": {"value": "ubuntu-ready"}},
    ),
]
Svc = Annotated[Services, Depends(services)]
_FOUND = (InvalidRequest, SnapshotNotFound, DatabaseUnavailable)
_BODIES: dict[str, Example] = {
    "pool": {
        "summary": "For a pool, kept fresh",
        "value": {"name": "ubuntu-ready", "source": {"pool": "fast-start-pool"}, "refresh": True, "keep": 2},
    },
    "vm": {
        "summary": "Of a VM that stands there",
        "value": {"name": "ubuntu-ready", "source": {"vm": "ubuntu-template"}},
    },
}


@router.post(
    "",
    operation_id="createSnapshot",
    summary="Take a snapshot of a VM, or for a pool",
    status_code=202,
    response_description="It is being taken; `Location` says where to look",
    responses={
        200: {"model": SnapshotView, "description": "It was asked for before, with the same body"},
        **responses(
            *(InvalidRequest, SnapshotRefused, MalformedBody, BodyTooLarge, UnsupportedMediaType),
            *(VmNotFound, PoolNotFound, Conflict, SnapshotBeingDeleted, PoolBeingDeleted),
            *(ClusterUnavailable, ClusterForbidden, ClusterError, DatabaseUnavailable),
        ),
    },
)
async def create_snapshot(
    spec: Annotated[SnapshotSpec, Body(openapi_examples=_BODIES)], svc: Svc, response: Response
) -> SnapshotView:
    """Of a pool a VM of its own is booted, waited for until it is warm, stopped (or frozen), taken, and removed; the pool's warm
    VMs are left alone. It is of disks alone: what starts from it boots, as KubeVirt restores no memory. Only disks whose
    storage class has a VolumeSnapshotClass are in it, a container disk never; the others are told with the reason.
    """
    created = await usecases.create_snapshot(svc.db, svc.gateway, spec)
    if created.outcome is WriteOutcome.UNCHANGED:
        response.status_code = 200
    response.headers["Location"] = f"/v1/snapshots/{spec.name}"
    response.headers["Emberpool-Outcome"] = created.outcome
    return (await _views(svc, [created.snapshot]))[0]


@router.get(
    "",
    operation_id="listSnapshots",
    summary="All snapshots, by name",
    response_description="A page of snapshots",
    responses=responses(InvalidRequest, DatabaseUnavailable),
)
async def list_snapshots(
    svc: Svc,
    limit: Limit = 100,
    after: After = None,
    shape: Annotated[
        str | None,
        Query(
            max_length=64, pattern="^[0-9a-f]*$", description="Only those from which VMs of this shape can start now."
        ),
    ] = None,
    source: Annotated[
        str | None, Query(max_length=253, pattern="^[-a-z0-9.]*$", description="Only those of this VM or pool.")
    ] = None,
) -> Page[SnapshotView]:
    """A page at a time: hand `next` back as `after` until it is null."""
    async with svc.db.begin() as tx:
        found = await snapshot_rows.page(tx, after=decode(after) or "", limit=limit + 1, shape=shape, source=source)
    views = await _views(svc, found[:limit])
    return Page(items=views, next=encode(found[limit - 1].name) if len(found) > limit else None)


@router.get(
    "/{name}",
    operation_id="getSnapshot",
    summary="One snapshot: its state, what is in it, and what starts from it took",
    response_description="The snapshot",
    responses=responses(*_FOUND),
)
async def get_snapshot(name: Name, svc: Svc) -> SnapshotView:
    """`ready` says whether VMs can start from it, also while a newer take is under way or has failed."""
    async with svc.db.begin() as tx:
        row = await snapshot_rows.get(tx, name)
    if row is None:
        raise no_such_snapshot(name)
    return (await _views(svc, [row]))[0]


@router.post(
    "/{name}/refresh",
    operation_id="refreshSnapshot",
    summary="Take it anew, now",
    status_code=202,
    response_description="A new take is under way; VMs start from the one before until it is ready",
    responses=responses(*_FOUND, SnapshotBeingDeleted),
)
async def refresh_snapshot(name: Name, svc: Svc) -> SnapshotView:
    """Where one is being taken already that is the new one. The last `keep` takes that were ready are kept."""
    return (await _views(svc, [await usecases.refresh_snapshot(svc.db, name)]))[0]


@router.delete(
    "/{name}",
    operation_id="deleteSnapshot",
    summary="Delete a snapshot, and what the cluster holds of it",
    status_code=202,
    response_description="It is being deleted; GET answers 404 once it is gone",
    responses=responses(*_FOUND, SnapshotInUse),
)
async def delete_snapshot(
    name: Name,
    svc: Svc,
    *,
    force: Annotated[bool, Query(description="Also where pools start from it: they start cold from then on.")] = False,
) -> SnapshotView:
    """VMs that started from it keep their disks; those that are just being made from it are waited for."""
    return (await _views(svc, [await usecases.delete_snapshot(svc.db, svc.gateway, name, force=force)]))[0]


async def _views(svc: Services, rows: list[SnapshotRow]) -> list[SnapshotView]:
    names = [row.name for row in rows]
    async with svc.db.begin() as tx:
        takes = await snapshot_rows.takes_of(tx, [row.id for row in rows])
        use = await snapshot_rows.use_of(tx, names)
        pools = await snapshot_rows.users_of(tx, names)
        now = await database_now(tx)
    return [SnapshotView.of(row, takes[row.id], use[row.name], pools[row.name], now) for row in rows]
