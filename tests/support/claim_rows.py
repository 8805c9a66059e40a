"""Claims as rows, written by the store's own functions: pending, bound and ended."""

from app.domain.states import ClaimState, VmState
from app.ids import new_id
from app.store.claims import rows as claims
from app.store.vms import rows as vms


async def wait_for_vm(db, pool, *, key=None, seconds=600, labels=None):
    claim_id = new_id()
    async with db.begin() as tx:
        return await claims.insert_pending(
            tx,
            claim_id=claim_id,
            pool_id=pool.id,
            key=key,
            request_hash="body",
            labels=labels or {},
            lease_seconds=60,
            pending_seconds=seconds,
            reason="no ready VM",
        )


async def bind(db, pool, **how):
    async with db.begin() as tx:
        return await claims.bind_pending(tx, pool.id, **how)


async def end(db, ids, target=ClaimState.RELEASED, sources=(ClaimState.PENDING, ClaimState.BOUND)):
    async with db.begin() as tx:
        ended = await claims.end(tx, ids, target, sources=list(sources), reason="for the test")
        held = [vm_id for _, _, vm_id in ended if vm_id is not None]
        await vms.release(tx, held, sources=[VmState.CLAIMED], reason="for the test")
    return ended
