"""Creates in the cluster the VMs that rows plan.

The name of a VM is in its row before the cluster is asked. The worker after one that died therefore asks for the same name,
and "already exists" is success.
"""

import math
from collections.abc import Sequence

from typing_extensions import override

from app.domain.paths import FromSnapshot, Start, StartPath
from app.domain.states import VmState
from app.domain.templates import Exclusive
from app.errors import ClusterError
from app.lifecycle.start_sources import NotYet, resolve_start
from app.reconcilers.runtime.leased_worker import LeasedWorker, RetryLater
from app.reconcilers.vms.outcomes import give_up
from app.store.database import Tx
from app.store.preloads import rows as preload_rows
from app.store.vms import observed, work
from app.store.vms import rows as vms
from app.store.vms.work import CreateWork

_IN_USE_SECONDS = 2.0


class SourceNotReady(RetryLater):
    """The cluster was not asked for the VM: its snapshot or preload is not ready."""


class InUse(SourceNotReady):
    """Something that exists once is in use by another VM."""


class VmCreator(LeasedWorker[CreateWork]):
    subject = "vm"
    call = "create"
    leases = work.LEASES
    retry_cap_seconds = math.inf

    @override
    async def acquire(self, tx: Tx, limit: int) -> Sequence[CreateWork]:
        settings = self._settings
        return await work.acquire_creates(
            tx, token=self.token, limit=limit, seconds=settings.work_lease_seconds, rate=settings.creates_per_second
        )

    @override
    async def process(self, item: CreateWork) -> None:
        exclusives = self._gateway.reopen(item.vm_spec).exclusives
        async with self._db.begin() as tx:
            start = await resolve_start(tx, item.path, item.source, asked_at=item.asked_at)
            if not isinstance(start, NotYet):
                await _take_exclusives(tx, item, [each for each in exclusives if not _is_replaced(each, start)])
            if start is None and item.source is not None:
                await work.start_cold(tx, item.id, token=self.token)
        if isinstance(start, NotYet):
            raise SourceNotReady(start.reason)
        made = await self._gateway.create_vm(
            name=item.name, pool=item.pool, vm_id=str(item.id), spec=item.vm_spec, start=start
        )
        async with self._db.begin() as tx:
            if item.path is StartPath.PRELOAD and item.source is not None:
                await preload_rows.note_use(tx, item.source)
            # If the informer saw the VM first, the row is booting already and no longer ours: nothing is left to write.
            if await self.leases.holds(tx, item.id, token=self.token):
                await work.write_uid(tx, item.id, made.uid)
                await vms.move(
                    tx,
                    [item.id],
                    VmState.BOOTING,
                    sources=[VmState.CREATING],
                    deadline_seconds=item.boot_timeout_seconds,
                )

    @override
    def pause(self, item: CreateWork, retry: RetryLater) -> float:
        return _IN_USE_SECONDS if isinstance(retry, InUse) else super().pause(item, retry)

    @override
    async def retry_later(self, tx: Tx, item: CreateWork, retry: RetryLater, *, seconds: float) -> None:
        unasked = item.first and isinstance(retry, SourceNotReady)
        await work.retry_create(tx, item.id, token=self.token, seconds=seconds, reason=retry.reason, unasked=unasked)

    @override
    async def refused(self, item: CreateWork, error: ClusterError) -> None:
        """The VM has failed."""
        async with self.guarded(item.id) as tx:
            vm = (await observed.by_ids(tx, [item.id])).get(item.id)
            if vm is not None:
                await give_up(tx, vm, VmState.FAILED, reason=error.detail, settings=self._settings)


async def _take_exclusives(tx: Tx, item: CreateWork, exclusives: Sequence[Exclusive]) -> None:
    """Gives the VM what it writes to although it exists once. Raises SourceNotReady and InUse, with nothing written."""
    for each in sorted(exclusives, key=lambda each: each.key):
        if not item.on_demand:
            raise SourceNotReady(f"a pool makes no VM of this template: {each.message}")
        if (holder := await work.take_exclusive(tx, item.id, each.key)) is not None:
            raise InUse(f"{each.key} exists once and is in use by VM {holder}")


def _is_replaced(each: Exclusive, start: Start) -> bool:
    """Whether the VM has a copy instead, from the snapshot that it starts from."""
    return isinstance(start, FromSnapshot) and any(disk.volume == each.volume for disk in start.disks)
