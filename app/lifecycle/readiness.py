"""VMs that became warm: they enter the queue, and pending claims get them.

Functions work inside the caller's transaction. They lock in one order: place in a queue, claim, pool, VM.
"""

from collections.abc import Sequence
from uuid import UUID

from app.domain.states import VmState
from app.store import events
from app.store.claims import rows as claims
from app.store.database import Tx
from app.store.notices import notify_settled
from app.store.pools import rows as pool_rows
from app.store.vms import rows as vms
from app.store.vms.observed import ObservedVm


async def make_ready(tx: Tx, booted: Sequence[ObservedVm]) -> list[UUID]:
    """Booting VMs that are warm enter the queue, and pending claims are bound to them. Nothing else happens here, so that those
    claims are answered soon.

    Returns the pools that got a VM. The caller calls `follow_ready` for them after its commit.
    """
    ready = await vms.move(tx, [vm.id for vm in booted], VmState.READY, sources=[VmState.BOOTING])
    if not ready:
        return []
    pools = sorted({vm.pool_id for vm in booted if vm.id in set(ready)})
    for pool_id in pools:
        await notify_settled(tx, await claims.bind_pending(tx, pool_id))
    return pools


async def follow_ready(tx: Tx, pools: Sequence[UUID], booted: Sequence[ObservedVm]) -> None:
    """What follows once VMs became ready and that was committed: pending claims are bound once more, and the pools are planned.

    A claim that became pending at the same moment is seen by this or by `make_ready`. The failures of a pool are forgotten if
    one of its VMs became ready for the first time. A VM that only recovers says nothing about the next one.
    """
    for pool_id in pools:
        await notify_settled(tx, await claims.bind_pending(tx, pool_id))
        await pool_rows.plan_soon(tx, pool_id)
    came_up = sorted({vm.pool_id for vm in booted if vm.pool_id in set(pools) and vm.ready_at is None})
    for pool_id in await pool_rows.forgive(tx, came_up):
        await events.record(tx, "pool.recovered", pool_id=pool_id)


async def serve_waiting(tx: Tx, pool_id: UUID) -> int:
    """Binds pending claims of the pool to ready VMs, both in their order. Returns how many."""
    bound = await claims.bind_pending(tx, pool_id)
    if bound:
        await notify_settled(tx, bound)
        await pool_rows.plan_soon(tx, pool_id)
    return len(bound)
