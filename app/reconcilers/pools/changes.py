"""What a plan changes of VMs that exist, and the end of a pool. The pool's row in `pool_plan` is locked."""

import structlog

from app.domain.planning import Plan, PoolSnapshot
from app.domain.states import VmState
from app.store import events
from app.store.claims import rows as claims
from app.store.database import Tx
from app.store.notices import Topic, notify
from app.store.pools import rows as pool_rows
from app.store.rows import PoolRow
from app.store.vms import rows as vms

log = structlog.get_logger(__name__)


async def replace_vms(tx: Tx, pool: PoolRow, step: Plan, before: PoolSnapshot) -> None:
    """Removes, cancels and reorders the VMs of one pool."""
    await vms.put_last(tx, step.put_last)
    await vms.put_back(tx, step.put_back)
    why = _why_removed(pool)
    if step.remove:
        taken = await vms.take_from_queue(tx, pool.id, step.remove, floor=step.floor)
        # Their places in the queue are deleted and locked by us: no claim can get them any more.
        await vms.leave_ready(tx, taken, reason=why)
    if step.cancel:
        asked = {vm.id for vm in before.in_flight if vm.asked}
        never_asked = [vm_id for vm_id in step.cancel if vm_id not in asked]
        await vms.move(tx, never_asked, VmState.DELETED, sources=[VmState.PLANNED], reason=why)
        # A create whose answer was lost is planned again. It may have made its object, which must be removed.
        known = [vm_id for vm_id in step.cancel if vm_id in asked]
        await vms.release(tx, known, sources=[VmState.PLANNED, VmState.BOOTING], reason=why)
    if step.remove or step.cancel:
        await notify(tx, Topic.REMOVE)


async def end_deleted(tx: Tx, pool: PoolRow) -> bool:
    """Whether the pool was being deleted, has nothing left, and is deleted now."""
    if pool.deleting_at is None:
        return False
    # Claims that became pending before the deletion was committed.
    late = await claims.pending_of_pool(tx, pool.id)
    await claims.fail_pending(tx, late, reason=f"pool {pool.name!r} was deleted")
    if not await pool_rows.end_delete(tx, pool.id):
        return False
    await events.record(tx, "pool.deleted", pool_id=pool.id)
    log.info("pool.deleted", pool=pool.name)
    return True


def _why_removed(pool: PoolRow) -> str:
    if pool.deleting_at is not None:
        return "its pool is being deleted"
    return (
        "the pool no longer needs it: it is above the pool's size, of an old template, from before a rotation, older than "
        "max_ready_age_seconds, or on a node that is cordoned or going"
    )
