"""Discards single VMs that nobody has claimed."""

from uuid import UUID

import structlog

from app.domain.states import VmState
from app.errors import Conflict, VmClaimed, VmNotFound
from app.store.database import Database
from app.store.notices import Topic, notify
from app.store.pools import rows as pool_rows
from app.store.rows import VmRow
from app.store.vms import rows as vm_rows

_NOT_YET = frozenset({VmState.PLANNED, VmState.CREATING})
log = structlog.get_logger(__name__)


async def discard_vm(db: Database, vm_id: UUID) -> VmRow:
    """Destroys a VM that is ready or booting; the planner replaces it. The floor does not hold here: whoever names one VM means it.

    A VM that is leaving or has ended is not changed, so the request may be repeated. Raises VmNotFound, VmClaimed, and Conflict
    if the VM is not in the cluster yet.
    """
    async with db.begin() as tx:
        # Its place in the queue goes first, as with a claim: of a claim and this one, the later finds the VM taken.
        moved = await vm_rows.release(
            tx, [vm_id], sources=[VmState.READY, VmState.BOOTING], reason="discarded by DELETE /v1/vms"
        )
        vm = await vm_rows.get(tx, vm_id)
        if vm is None:
            raise no_such_vm(vm_id)
        if vm.state is VmState.CLAIMED:
            raise VmClaimed(
                f"VM {vm.name} belongs to claim {vm.claim_id}; to destroy the VM, release the claim: "
                f"DELETE /v1/claims/{vm.claim_id}"
            )
        if vm.state in _NOT_YET:
            raise Conflict(
                f"VM {vm.name} is {vm.state}, and there is nothing to discard before it boots; try again when it does"
            )
        if moved:
            await notify(tx, Topic.REMOVE)
            await pool_rows.plan_soon(tx, vm.pool_id)
    if moved:
        log.info("vm.discarded", vm=vm.name)
    return vm


def no_such_vm(vm_id: UUID) -> VmNotFound:
    return VmNotFound(f"no VM has the id {vm_id}; VMs that ended are deleted from the history after some days")
