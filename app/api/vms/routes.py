"""VMs, for operators who want to know what happened to one, or to be rid of it."""

from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Response

from app.api.dependencies import Svc
from app.api.events.schemas import EventView
from app.api.lists import answer
from app.api.pages import After, Limit, cut, decode_id
from app.api.problems import responses
from app.api.vms.schemas import VmPage, VmView, VmWithHistory
from app.domain.states import VmState
from app.errors import Conflict, TooManyLists, VmClaimed, VmNotFound
from app.services.vms import service
from app.services.vms.service import no_such_vm
from app.store import events
from app.store.vms import pages as vm_pages
from app.store.vms import rows as vm_rows

router = APIRouter(prefix="/v1/vms", tags=["vms"])
VmId = Annotated[UUID, Path(description="Id of the VM.")]


@router.get(
    "",
    operation_id="listVms",
    summary="List VMs",
    response_description="A page of VMs",
    response_model=VmPage,
    responses=responses(TooManyLists),
)
async def list_vms(
    svc: Svc,
    *,
    limit: Limit = 100,
    after: After = None,
    pool: Annotated[str | None, Query(max_length=63, description="Only VMs of this pool.")] = None,
    state: Annotated[VmState | None, Query(description="Only VMs in this state.")] = None,
    ended: Annotated[bool, Query(description="Include VMs that are deleted or lost.")] = False,
) -> Response:
    """Newest first. Filters can be combined. VMs that ended are kept for `EMBERPOOL_HISTORY_DAYS`."""
    only_ended = state in {VmState.DELETED, VmState.LOST}
    async with svc.lists.turn() as tx:
        found = await vm_pages.page(
            tx, after=decode_id(after), limit=limit + 1, pool=pool, state=state, ended=ended or only_ended
        )
        vms, following = cut(found, limit, lambda vm: vm.id)
        return await answer(vms, partial(VmView.of, namespace=svc.settings.namespace), following)


@router.get(
    "/{vm_id}",
    operation_id="getVm",
    summary="Read a VM and its history",
    response_description="The VM, with its state changes, oldest first",
    responses=responses(VmNotFound),
)
async def get_vm(vm_id: VmId, svc: Svc) -> VmWithHistory:
    """Where the VM runs, what is wrong with it, who claimed it, and how long each stage of its start took."""
    async with svc.db.begin() as tx:
        vm = await vm_rows.get(tx, vm_id)
        history = await events.of_vm(tx, vm_id)
    if vm is None:
        raise no_such_vm(vm_id)
    views = [EventView.from_row(event) for event in history]
    return VmWithHistory.of(vm, namespace=svc.settings.namespace, history=views)


@router.delete(
    "/{vm_id}",
    operation_id="discardVm",
    summary="Discard a VM that is not claimed",
    status_code=202,
    response_description="The VM is being destroyed, or already was",
    responses=responses(VmNotFound, VmClaimed, Conflict),
)
async def discard_vm(vm_id: VmId, svc: Svc) -> VmView:
    """Destroys a VM that is ready or booting, whatever its pool's `min_available`, and never hands it out again. The pool then
    creates another one; a paused pool does so when it is resumed. To destroy a claimed VM, release its claim.
    """
    vm = await service.discard_vm(svc.db, vm_id)
    return VmView.of(vm, namespace=svc.settings.namespace)
