"""Writes onto each claimed VM in the cluster its claim's id and labels, the marks of the template that the claim describes, and what
the claim can be rebuilt from should the database lose it.

The claim was answered before, and does not wait for it. A renewal is written only if its lease is longer than the one that the VM
carries: whoever rebuilds a claim gives it a whole lease of that length.
"""

from collections.abc import Sequence

from typing_extensions import override

from app.reconcilers.runtime.leased_worker import LeasedWorker, RetryLater
from app.store.database import Tx
from app.store.vms import work
from app.store.vms.work import LabelWork


class ClaimLabeler(LeasedWorker[LabelWork]):
    """A VM that has gone is retried too: once the informer has seen it go, its claim is no longer due."""

    subject = "vm"
    call = "label"

    @override
    async def acquire(self, tx: Tx, limit: int) -> Sequence[LabelWork]:
        return await work.acquire_labels(tx, limit=limit, seconds=self._settings.work_lease_seconds)

    @override
    async def release(self) -> None:
        """Nothing is held: a claim has no token, and is due again by itself."""

    @override
    async def process(self, item: LabelWork) -> None:
        await self._gateway.label_claim(
            name=item.name,
            uid=item.uid,
            claim_id=str(item.claim_id),
            given=item.given,
            marks=item.marks,
            instance=item.instance,
            record=item.record,
        )
        async with self._db.begin() as tx:
            await work.mark_labelled(tx, item)

    @override
    async def retry_later(self, tx: Tx, item: LabelWork, retry: RetryLater, *, seconds: float) -> None:
        await work.label_later(tx, item.claim_id, item.vm_id, seconds=seconds)
