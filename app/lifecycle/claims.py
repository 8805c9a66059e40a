"""Releasing a claim: its VM is destroyed, its pool is planned again and its waiting clients are told."""

from uuid import UUID

from app.domain.states import ClaimState, VmState
from app.store.claims import rows as claims
from app.store.database import Tx
from app.store.notices import Topic, notify, notify_settled
from app.store.pools import rows as pool_rows
from app.store.vms import rows as vms


async def release(tx: Tx, claim_id: UUID, *, reason: str) -> bool:
    """Releases the claim and its VM. Returns False where the claim had ended before."""
    sources = [ClaimState.PENDING, ClaimState.BOUND]
    ended = await claims.end(tx, [claim_id], ClaimState.RELEASED, sources=sources, reason=reason)
    for _, pool_id, vm_id in ended:
        if vm_id is not None:
            await vms.release(tx, [vm_id], sources=[VmState.CLAIMED], reason="its claim was released")
            await notify(tx, Topic.REMOVE)
        await pool_rows.plan_soon(tx, pool_id)
    await notify_settled(tx, [ended_id for ended_id, _, _ in ended])
    return bool(ended)
