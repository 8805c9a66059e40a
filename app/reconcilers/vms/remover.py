"""Removes from the cluster the VMs that failed or were released. A row is `deleted` only once the cluster has no such object."""

from collections.abc import Sequence

from typing_extensions import override

from app.domain.states import VmState
from app.errors import ClusterError
from app.reconcilers.runtime.leased_worker import LeasedWorker, RetryLater
from app.store import guests
from app.store.database import Tx
from app.store.pools import rows as pool_rows
from app.store.vms import rows as vms
from app.store.vms import work
from app.store.vms.work import RemoveWork

_CHECK_SECONDS = 30.0
_MOST_CHECKS = 4  # then the pause between two checks grows no more


class VmRemover(LeasedWorker[RemoveWork]):
    subject = "vm"
    call = "delete"
    leases = work.LEASES

    @override
    async def acquire(self, tx: Tx, limit: int) -> Sequence[RemoveWork]:
        return await work.acquire_removals(tx, token=self.token, limit=limit, seconds=self._settings.work_lease_seconds)

    @override
    async def process(self, item: RemoveWork) -> None:
        going = await self._gateway.delete_vm(name=item.name, uid=item.uid, again=item.attempts > 1)
        if item.has_identity:
            await self._gateway.identities.remove(name=item.name, uid=item.identity_uid, vm_id=str(item.id))
        async with self.guarded(item.id) as tx:
            if item.has_identity:
                await guests.note_gone(tx, item.id)
            await vms.release(tx, [item.id], sources=[VmState.FAILED], reason=None)
            if going:
                # The informer sees it go. Looking again is for the case that it does not, or that the cluster forgot it.
                await work.check_removal(tx, item.id, seconds=_CHECK_SECONDS * min(item.attempts, _MOST_CHECKS))
                return
            await vms.move(tx, [item.id], VmState.DELETED, sources=[VmState.RELEASING])
            await pool_rows.plan_soon(tx, item.pool_id)

    @override
    async def refused(self, item: RemoveWork, error: ClusterError) -> None:
        raise RetryLater(f"it cannot be removed: {error.detail}") from error

    @override
    async def retry_later(self, tx: Tx, item: RemoveWork, retry: RetryLater, *, seconds: float) -> None:
        await work.retry_removal(tx, item.id, token=self.token, seconds=seconds, reason=retry.reason)
