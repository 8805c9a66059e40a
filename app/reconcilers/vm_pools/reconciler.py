"""Brings each VirtualMachinePool to what the rows of its pool want, and detaches VMs that are claimed or to be removed.

Only this reconciler writes to VirtualMachinePools, in this order: replicas down, VMs detached, replicas up. Each step starts
from what the cluster shows and what the rows say, and writes only to the object that it read. A worker that dies between two
steps leaves nothing that the next worker would not do anyway.

What somebody else changed is recorded as an incident and an event of the pool, and put back. A VirtualMachinePool that
somebody deleted is replaced by one of another name: under the old name it would use the names of its VMs again, and with them
the disks that are still being removed.
"""

from collections.abc import Sequence
from dataclasses import replace

import structlog
from typing_extensions import override

from app.compute.gateway import Gateway
from app.compute.vm_pools import VmPoolOrder
from app.config import Settings
from app.domain.ownership import Orphan
from app.domain.states import VmState
from app.domain.vm_pools import (
    Change,
    DesiredVmPool,
    VmPoolStatus,
    describe_problem,
    is_changed_by_others,
    lower_first,
    name_incidents,
    plan_change,
)
from app.errors import ClusterConflict, ClusterError, ClusterNotFound, ClusterUnavailable
from app.ids import vm_pool_name
from app.lifecycle.start_sources import NotYet, resolve_start
from app.reconcilers.installation.orphans import Orphanage
from app.reconcilers.runtime.leased_worker import LeasedWorker, RetryLater
from app.reconcilers.runtime.loop import at_once
from app.store import events, installation, vm_pools
from app.store.database import Database, Tx
from app.store.notices import Topic, notify
from app.store.pools import rows as pool_rows
from app.store.vm_pools import LeavingVm, VmPoolRow
from app.store.vms import work
from app.telemetry import ORPHANS

_BATCH = 8
_DETACH_BATCH = 100
_VISIT_SECONDS = 2.0
_SOON_SECONDS = 0.2
_LEAVING = (VmState.CLAIMED, VmState.FAILED, VmState.RELEASING)
_ALL = (*_LEAVING, VmState.CREATING, VmState.BOOTING, VmState.READY)
log = structlog.get_logger(__name__)


class VmPoolReconciler(LeasedWorker[VmPoolRow]):
    subject = call = "vm_pool"
    leases = vm_pools.LEASES
    batch_size = _BATCH
    retry_cap_seconds = 15.0

    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        super().__init__(db, gateway, settings)
        self._cluster = gateway.vm_pools
        self._orphanage = Orphanage("VirtualMachinePool", settings)

    @override
    async def acquire(self, tx: Tx, limit: int) -> Sequence[VmPoolRow]:
        return await vm_pools.acquire_due(tx, token=self.token, limit=limit, seconds=self._settings.work_lease_seconds)

    @override
    async def retry_later(self, tx: Tx, item: VmPoolRow, retry: RetryLater, *, seconds: float) -> None:
        await vm_pools.finish(tx, item.pool_id, token=self.token, seconds=seconds, reason=retry.reason, failed=True)

    @override
    async def process(self, row: VmPoolRow) -> None:
        status = await self._cluster.look(row.name)
        if row.deleting:
            await self._end(row, status)
            return
        if row.written.uid is not None and (status is None or status.uid != row.written.uid):
            await self._replace(row)
            return
        order, waits = await self._order(row)
        if status is None:
            await self._make(row, order, waits)
            return
        if row.written.uid is None and status.pool_id != str(row.pool_id):
            raise ClusterConflict(f"The name {row.name} belongs to a VirtualMachinePool that is not ours.")
        if status.deleting:
            await self._detach_all(row, status)
            return
        await self._converge(row, order, waits, status)

    async def _order(self, row: VmPoolRow) -> tuple[VmPoolOrder, str | None]:
        """What VMs are made from, and what they wait for; None: nothing."""
        async with self._db.begin() as tx:
            start = await resolve_start(tx, row.path, row.source)
        waits = start.reason if isinstance(start, NotYet) else None
        return VmPoolOrder(
            name=row.name,
            pool=row.pool,
            pool_id=row.pool_id,
            spec=row.vm_spec,
            revision=row.revision,
            start=None if isinstance(start, NotYet) else start,
        ), waits

    async def _make(self, row: VmPoolRow, order: VmPoolOrder, waits: str | None) -> None:
        if waits is not None:
            await self._finish(row, reason=f"waits: {waits}")
            return
        template = self._cluster.fingerprint(order)
        desired, _ = await self._read(row, template)
        status = await self._cluster.make(order, replicas=desired.replicas, paused=desired.paused)
        log.info("vm_pool.made", replicas=desired.replicas)
        await self._write(row, status, template=template, paused=desired.paused)
        await self._finish(row, reason=None, seconds=_SOON_SECONDS)

    async def _converge(self, row: VmPoolRow, order: VmPoolOrder, waits: str | None, status: VmPoolStatus) -> None:
        template = self._cluster.fingerprint(order) if waits is None else None
        desired, leaving = await self._read(row, template)
        others_wrote = is_changed_by_others(row.written, status)
        await self._tell(row, name_incidents(desired, row.written, status))
        if first := _adoptable(row, lower_first(desired, status)):
            status = await self._change(row, order, status, first, template=None)
        await self._detach(leaving)
        left = _adoptable(row, plan_change(desired, row.written, status, others_wrote=others_wrote))
        if left:
            status = await self._change(row, order, status, left, template=template if left.template else None)
        enrolled = await self._cluster.enroll(order, status.uid) if row.adopted else 0
        async with self._db.begin() as tx:
            if row.adopted and not enrolled and not left:
                await vm_pools.mark_enrolled(tx, row.pool_id, token=self.token)
        reason = f"waits: {waits}" if waits is not None else describe_problem(desired, row.written, status)
        more = len(leaving) == _DETACH_BATCH
        await self._finish(row, reason=reason, seconds=0 if more else _VISIT_SECONDS)

    async def _read(self, row: VmPoolRow, template: str | None) -> tuple[DesiredVmPool, list[LeavingVm]]:
        async with self._db.begin() as tx:
            leaving = await vm_pools.leaving(tx, row.pool_id, states=_LEAVING, limit=_DETACH_BATCH)
            return await vm_pools.read_desired(tx, row, template=template), leaving

    async def _change(
        self, row: VmPoolRow, order: VmPoolOrder, status: VmPoolStatus, change: Change, *, template: str | None
    ) -> VmPoolStatus:
        changed = await self._cluster.change(order, status, change)
        log.info("vm_pool.changed", replicas=change.replicas, template=change.template, restored=change.restore)
        paused = change.paused if change.paused is not None else row.written.paused and changed.paused
        await self._write(row, changed, template=template, paused=paused)
        return changed

    async def _write(self, row: VmPoolRow, status: VmPoolStatus, *, template: str | None, paused: bool) -> None:
        async with self._db.begin() as tx:
            await vm_pools.write_status(tx, row, status, token=self.token, template=template, paused=paused)

    async def _detach(self, leaving: Sequence[LeavingVm]) -> None:
        size = self._settings.provision_concurrency
        for start in range(0, len(leaving), size):
            await at_once(self._detach_one, leaving[start : start + size])

    async def _detach_one(self, vm: LeavingVm) -> None:
        claim_id = vm.claim_id if vm.state is VmState.CLAIMED else None
        found = True
        try:
            await self._cluster.detach(
                name=vm.name, uid=vm.uid, claim_id=str(claim_id) if claim_id is not None else None
            )
        except ClusterNotFound:
            found = False  # the informer says what becomes of its row
        async with self._db.begin() as tx:
            await vm_pools.mark_detached(tx, ids=[vm.id])
            if claim_id is not None and found:
                # For the labeler: what else the VM is to carry must not keep it from being detached.
                await work.label_later(tx, claim_id, vm.id, seconds=0)
                await notify(tx, Topic.CLAIMED, vm.pool_id)
            await notify(tx, Topic.REMOVE)

    async def _detach_all(self, row: VmPoolRow, status: VmPoolStatus) -> None:
        """Somebody is deleting it, and it waits for us: its VMs are detached, claimed ones first, and stay."""
        async with self._db.begin() as tx:
            members = await vm_pools.leaving(tx, row.pool_id, states=_ALL, limit=_DETACH_BATCH)
        await self._detach(members)
        if len(members) < _DETACH_BATCH:
            await self._cluster.free(status)
        await self._finish(row, reason="it is being deleted in the cluster", seconds=_SOON_SECONDS)

    async def _replace(self, row: VmPoolRow) -> None:
        """Somebody deleted it. Nobody owns its VMs any more: they stay, unless the cluster is removing them."""
        name = vm_pool_name(row.pool, row.pool_id, row.round + 1)
        incident = f"VirtualMachinePool {row.name} was deleted by somebody in the cluster; {name} takes its place"
        log.warning("vm_pool.was_deleted", successor=name)
        async with self.guarded(row.pool_id) as tx:
            await vm_pools.mark_detached(tx, pool_id=row.pool_id)
            await vm_pools.replace(tx, row, token=self.token, name=name)
            await vm_pools.write_incident(tx, row.pool_id, incident)
            await events.record(tx, "pool.backing", pool_id=row.pool_id, incident=incident)
            await pool_rows.plan_soon(tx, row.pool_id)
            await vm_pools.finish(tx, row.pool_id, token=self.token, seconds=0, reason=None)

    async def _end(self, row: VmPoolRow, status: VmPoolStatus | None) -> None:
        """Its pool is being deleted: claimed VMs are detached, then it is deleted without the rest, which the remover removes."""
        if status is None or status.pool_id != str(row.pool_id) or row.written.uid not in {None, status.uid}:
            async with self._db.begin() as tx:
                await vm_pools.mark_detached(tx, pool_id=row.pool_id)
                await vm_pools.end(tx, row.pool_id, token=self.token)
                await pool_rows.plan_soon(tx, row.pool_id)
                await notify(tx, Topic.REMOVE)
            return
        async with self._db.begin() as tx:
            claimed = await vm_pools.leaving(tx, row.pool_id, states=[VmState.CLAIMED], limit=_DETACH_BATCH)
        if not status.deleting and status.replicas:
            order, _ = await self._order(row)
            status = await self._change(
                row, order, status, Change(replicas=0, restore=not status.unmanaged), template=None
            )
        await self._detach(claimed)
        if len(claimed) < _DETACH_BATCH:
            await self._remove(status)
        await self._finish(row, reason=None, seconds=_SOON_SECONDS)

    async def _remove(self, status: VmPoolStatus) -> None:
        """In two visits: first it is deleted, then it is released from our finalizer."""
        if status.deleting:
            await self._cluster.free(status)
        else:
            await self._cluster.remove(status)

    async def _tell(self, row: VmPoolRow, incidents: Sequence[str]) -> None:
        if not incidents:
            return
        told = f"VirtualMachinePool {row.name}: {'; '.join(incidents)}"
        log.warning("vm_pool.changed_by_others", incidents=list(incidents))
        async with self._db.begin() as tx:
            await vm_pools.write_incident(tx, row.pool_id, told)
            await events.record(tx, "pool.backing", pool_id=row.pool_id, incident=told)
            await pool_rows.plan_soon(tx, row.pool_id)

    async def _finish(self, row: VmPoolRow, *, reason: str | None, seconds: float = _VISIT_SECONDS) -> None:
        async with self._db.begin() as tx:
            await vm_pools.finish(tx, row.pool_id, token=self.token, seconds=seconds, reason=reason)

    async def sweep(self) -> bool:
        """Removes VirtualMachinePools of ours that no pool has. Their VMs stay: the status writer removes those without a row.

        Never asks to be run again at once.
        """
        try:
            found = await self._cluster.all()
            async with self._db.begin() as tx:
                known = await vm_pools.known_names(tx)
                orphans = [Orphan(each.name, each.uid, each.installation) for each in found if each.name not in known]
                identity = await installation.read_identity(tx)
                removable = await self._orphanage.sort(tx, identity, orphans, listed=len(found))
            removed = {each.uid for each in removable}
            for status in found:
                if status.uid not in removed:
                    continue
                log.warning("vm_pool.orphan_removed", vm_pool=status.name, uid=status.uid)
                await self._remove(status)
                ORPHANS.inc()
        except (ClusterUnavailable, ClusterError) as error:
            # Also if the cluster has no such kind, or we have no right to it: then no pool of ours has one.
            log.debug("vm_pool.sweep_put_off", error=error.detail)
        return False


def _adoptable(row: VmPoolRow, change: Change) -> Change:
    """The replicas of an adopted one are left alone until all of its VMs are known."""
    return replace(change, replicas=None) if row.adopted else change
