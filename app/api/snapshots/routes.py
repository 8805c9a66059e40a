"""Snapshots: take one of a VM or for a pool, refresh, read, delete."""

from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.api.bodies import BodyRoute
from app.api.dependencies import Services, Svc
from app.api.lists import answer
from app.api.pages import After, Limit, cut, decode
from app.api.parameters import name_in_path
from app.api.problems import CLUSTER_ERRORS, responses
from app.api.snapshots.schemas import SnapshotPage, SnapshotView
from app.domain.snapshot_specs import SnapshotSpec
from app.errors import (
    Conflict,
    PoolBeingDeleted,
    PoolNotFound,
    SnapshotBeingDeleted,
    SnapshotInUse,
    SnapshotNotFound,
    SnapshotRefused,
    TooManyLists,
    VmNotFound,
)
from app.services.snapshots import service
from app.services.snapshots.service import no_such_snapshot
from app.services.writes import WriteOutcome
from app.store.database import Tx
from app.store.snapshots import rows as snapshot_rows
from app.store.snapshots.rows import SnapshotRow
from app.store.vms.observed import database_now

router = APIRouter(prefix="/v1/snapshots", tags=["snapshots"], route_class=BodyRoute)
Name = Annotated[str, name_in_path("snapshot", "ubuntu-ready")]


@router.post(
    "",
    operation_id="createSnapshot",
    summary="Take a snapshot of a VM, or for a pool",
    status_code=202,
    response_description="The snapshot is being taken; `Location` is its address",
    responses={
        200: {"model": SnapshotView, "description": "The snapshot already exists with the same body"},
        **responses(
            *(SnapshotRefused, VmNotFound, PoolNotFound, Conflict, SnapshotBeingDeleted, PoolBeingDeleted),
            *CLUSTER_ERRORS,
        ),
    },
)
async def create_snapshot(spec: SnapshotSpec, svc: Svc, response: Response) -> SnapshotView:
    """For a pool, the service boots an extra VM of the pool's template, waits until it is warm, stops it (or freezes its file
    systems), takes the snapshot, and removes the VM. The pool's warm VMs are not touched.

    A VM that starts from a snapshot boots from its disks, unless the snapshot was taken with `memory: true`, which is possible where
    the cluster keeps memory; KubeVirt does not. The VM runs then and is not stopped, and every disk that it writes to must be in
    the snapshot. Never keep memory that holds a secret: it is in every VM that starts from it.

    A snapshot contains the disks whose storage class has a VolumeSnapshotClass, and never a container disk; `excluded` lists the others and why.
    """
    created = await service.create_snapshot(svc.db, svc.gateway, spec)
    if created.outcome is WriteOutcome.UNCHANGED:
        response.status_code = 200
    response.headers["Location"] = f"/v1/snapshots/{spec.name}"
    response.headers["Emberpool-Outcome"] = created.outcome
    return await _view(svc, created.snapshot)


@router.get(
    "",
    operation_id="listSnapshots",
    summary="List snapshots",
    response_description="A page of snapshots",
    response_model=SnapshotPage,
    responses=responses(TooManyLists),
)
async def list_snapshots(
    svc: Svc,
    limit: Limit = 100,
    after: After = None,
    shape: Annotated[
        str | None,
        Query(
            max_length=64,
            pattern="^[0-9a-f]*$",
            description="Only snapshots from which VMs of this shape can start now.",
        ),
    ] = None,
    source: Annotated[
        str | None, Query(max_length=253, pattern="^[-a-z0-9.]*$", description="Only snapshots of this VM or pool.")
    ] = None,
) -> Response:
    """Ordered by name. To read the next page, pass `next` as `after`, until it is null."""
    async with svc.lists.turn() as tx:
        found = await snapshot_rows.page(tx, after=decode(after) or "", limit=limit + 1, shape=shape, source=source)
        snapshots, following = cut(found, limit, lambda snapshot: snapshot.name)
        return await answer(snapshots, await _viewer(tx, snapshots), following)


@router.get(
    "/{name}",
    operation_id="getSnapshot",
    summary="Read a snapshot: its state, its disks, and boot times from it",
    response_description="The snapshot",
    responses=responses(SnapshotNotFound),
)
async def get_snapshot(name: Name, svc: Svc) -> SnapshotView:
    """`ready` says whether VMs can start from the snapshot; it can be true while a refresh is in progress or has failed."""
    async with svc.db.begin() as tx:
        row = await snapshot_rows.get(tx, name)
    if row is None:
        raise no_such_snapshot(name)
    return await _view(svc, row)


@router.post(
    "/{name}/refresh",
    operation_id="refreshSnapshot",
    summary="Take a snapshot again",
    status_code=202,
    response_description="A new take is in progress; VMs start from the previous one until it is ready",
    responses=responses(SnapshotNotFound, SnapshotBeingDeleted),
)
async def refresh_snapshot(name: Name, svc: Svc) -> SnapshotView:
    """If a take is already in progress, it counts as the refresh. The last `keep` takes that became ready are kept."""
    return await _view(svc, await service.refresh_snapshot(svc.db, name))


@router.delete(
    "/{name}",
    operation_id="deleteSnapshot",
    summary="Delete a snapshot and its objects in the cluster",
    status_code=202,
    response_description="The snapshot is being deleted; GET answers 404 when it is deleted",
    responses=responses(SnapshotNotFound, SnapshotInUse),
)
async def delete_snapshot(
    name: Name,
    svc: Svc,
    *,
    force: Annotated[
        bool, Query(description="Delete it even if pools start from it; their new VMs then start cold.")
    ] = False,
) -> SnapshotView:
    """VMs that started from the snapshot keep their disks. The deletion waits for VMs that are being created from it."""
    return await _view(svc, await service.delete_snapshot(svc.db, svc.gateway, name, force=force))


async def _view(svc: Services, row: SnapshotRow) -> SnapshotView:
    async with svc.db.begin() as tx:
        return (await _viewer(tx, [row]))(row)


async def _viewer(tx: Tx, rows: Sequence[SnapshotRow]) -> Callable[[SnapshotRow], SnapshotView]:
    """What makes the view of each of these snapshots."""
    names = [row.name for row in rows]
    takes = await snapshot_rows.takes_of(tx, [row.id for row in rows])
    use, pools = await snapshot_rows.use_of(tx, names), await snapshot_rows.users_of(tx, names)
    now = await database_now(tx)
    return lambda row: SnapshotView.of(row, takes[row.id], use[row.name], pools[row.name], now)
