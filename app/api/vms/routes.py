"""VMs, for operators who want to know what became of one."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query

from app.api.dependencies import Services, services
from app.api.pages import After, Limit, Page, decode_id, encode
from app.api.pools.schemas import EventView, VmView, VmWithHistory
from app.api.problems import responses
from app.domain.states import VmState
from app.errors import DatabaseUnavailable, InvalidRequest, VmNotFound
from app.store import events
from app.store.vms import rows as vm_rows

router = APIRouter(prefix="/v1/vms", tags=["vms"])
Svc = Annotated[Services, Depends(services)]


@router.get(
    "",
    operation_id="listVms",
    summary="VMs, the newest first",
    response_description="A page of VMs",
    responses=responses(InvalidRequest, DatabaseUnavailable),
)
async def list_vms(
    svc: Svc,
    *,
    limit: Limit = 100,
    after: After = None,
    pool: Annotated[str | None, Query(description="Of this pool only.")] = None,
    state: Annotated[VmState | None, Query(description="In this state only.")] = None,
    ended: Annotated[bool, Query(description="Also those that are deleted or lost.")] = False,
) -> Page[VmView]:
    """Filters can be combined. VMs that ended are kept for `EMBERPOOL_HISTORY_DAYS`."""
    only_ended = state in {VmState.DELETED, VmState.LOST}
    async with svc.db.begin() as tx:
        found = await vm_rows.page(
            tx, after=decode_id(after), limit=limit + 1, pool=pool, state=state, ended=ended or only_ended
        )
    namespace = svc.settings.namespace
    return Page(
        items=[VmView.of(vm, namespace=namespace) for vm in found[:limit]],
        next=encode(str(found[limit - 1].id)) if len(found) > limit else None,
    )


@router.get(
    "/{vm_id}",
    operation_id="getVm",
    summary="One VM and its history",
    response_description="The VM, with its changes of state, oldest first",
    responses=responses(InvalidRequest, VmNotFound, DatabaseUnavailable),
)
async def get_vm(vm_id: Annotated[UUID, Path(description="The VM's id.")], svc: Svc) -> VmWithHistory:
    """Where it runs, what ails it, who claimed it, and how long each stage of its boot took."""
    async with svc.db.begin() as tx:
        vm = await vm_rows.get(tx, vm_id)
        history = await events.of_vm(tx, vm_id)
    if vm is None:
        raise VmNotFound(f"no VM has the id {vm_id}; VMs that ended are forgotten after a time")
    view = VmView.of(vm, namespace=svc.settings.namespace)
    return VmWithHistory(**view.model_dump(), history=[EventView.of(event) for event in history])
