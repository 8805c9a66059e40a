"""Brings each VirtualMachinePool to what its pool's rows want, and takes from it what is claimed or to go.

One worker at a time is at one of them, under a lease, and all that is written to it is written here, in this order: replicas
down, VMs detached, replicas up. Each step begins from what the cluster shows and what the rows say, and writes to what it
read alone: a worker that dies between any two leaves nothing that the next would not do anyway.

What somebody else did to it is told on the pool, as an event too, and put right. One that was deleted is replaced under another
name: the names of its VMs would come back else, and with them the disks that are still on their way out.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import replace

import structlog

from app.compute.gateway import Gateway
from app.compute.vm_pools import VmPoolOrder
from app.config import Settings
from app.domain.failures import retry_delay
from app.domain.states import VmState
from app.domain.vm_pools import (
    Change,
    VmPoolSight,
    Wish,
    bring_about,
    is_changed_by_others,
    lower_first,
    name_incidents,
    tell_state,
)
from app.errors import ClusterConflict, ClusterError, ClusterNotFound, ClusterUnavailable
from app.ids import new_id, vm_pool_name
from app.lifecycle.start_sources import NotYet, resolve_start
from app.reconcilers.runtime.loop import at_once
from app.store import events
from app.store import vm_pools as backing
from app.store.database import Database
from app.store.notices import Topic, notify
from app.store.pools import rows as pool_rows
from app.store.vm_pools import BackingRow, LeavingVm
from app.store.vms import work
from app.store.vms.work import LabelWork
from app.telemetry import CLUSTER_CALLS, ORPHANS

_BATCH = 8
_DETACH_BATCH = 100
_LOOK_SECONDS = 2.0
_SOON_SECONDS = 0.2
_RETRY_CAP_SECONDS = 15.0
_TO_GO = (VmState.CLAIMED, VmState.FAILED, VmState.RELEASING)
_ALL = (*_TO_GO, VmState.CREATING, VmState.BOOTING, VmState.READY)
log = structlog.get_logger(__name__)


class Backings:
    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        self._db = db
        self._gateway = gateway
        self._settings = settings
        self._swept_at = -float("inf")
        self.token = new_id()

    async def step(self) -> bool:
        """Looks at one batch of VirtualMachinePools that are due; True where there may be more."""
        async with self._db.begin() as tx:
            taken = await backing.take_due(
                tx, token=self.token, limit=_BATCH, seconds=self._settings.work_lease_seconds
            )
        await at_once(self._visit, taken)
        if time.monotonic() - self._swept_at >= self._settings.relist_seconds:
            self._swept_at = time.monotonic()
            await self._sweep()
        return len(taken) == _BATCH

    async def hand_back(self) -> None:
        """What this worker still holds is free for another at once."""
        async with self._db.begin() as tx:
            await backing.hand_back(tx, token=self.token)

    async def _visit(self, row: BackingRow) -> None:
        with structlog.contextvars.bound_contextvars(vm_pool=row.name):
            try:
                await self._advance(row)
            except ClusterUnavailable as error:
                CLUSTER_CALLS.labels(call="vm_pool", outcome="unavailable").inc()
                await self._defer(row, f"the cluster is away: {error.detail}")
            except ClusterError as error:
                CLUSTER_CALLS.labels(call="vm_pool", outcome=error.code).inc()
                await self._defer(row, error.detail)
            else:
                CLUSTER_CALLS.labels(call="vm_pool", outcome="ok").inc()

    async def _advance(self, row: BackingRow) -> None:
        seen = await self._gateway.vm_pools.look(row.name)
        if row.deleting:
            await self._end(row, seen)
            return
        if row.written.uid is not None and (seen is None or seen.uid != row.written.uid):
            await self._replace(row)
            return
        order, waits = await self._order(row)
        if seen is None:
            await self._make(row, order, waits)
            return
        if row.written.uid is None and seen.pool_id != str(row.pool_id):
            raise ClusterConflict(f"The name {row.name} belongs to a VirtualMachinePool that is not ours.")
        if seen.deleting:
            await self._let_go(row, seen)
            return
        await self._bring_about(row, order, waits, seen)

    async def _order(self, row: BackingRow) -> tuple[VmPoolOrder, str | None]:
        """What VMs are made from, and what they wait for."""
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

    async def _make(self, row: BackingRow, order: VmPoolOrder, waits: str | None) -> None:
        if waits is not None:
            await self._finish(row, reason=f"waits: {waits}")
            return
        template = self._gateway.vm_pools.fingerprint(order)
        wish, _ = await self._read(row, template)
        seen = await self._gateway.vm_pools.make(order, replicas=wish.replicas, paused=wish.paused)
        log.info("vm_pool.made", replicas=wish.replicas)
        await self._write(row, seen, template=template, paused=wish.paused)
        await self._finish(row, reason=None, seconds=_SOON_SECONDS)

    async def _bring_about(self, row: BackingRow, order: VmPoolOrder, waits: str | None, seen: VmPoolSight) -> None:
        gateway = self._gateway.vm_pools
        template = gateway.fingerprint(order) if waits is None else None
        wish, leaving = await self._read(row, template)
        others_wrote = is_changed_by_others(row.written, seen)
        await self._tell(row, name_incidents(wish, row.written, seen))
        if first := _of(row, lower_first(wish, seen)):
            seen = await self._change(row, order, seen, first, template=None)
        await self._detach(leaving)
        left = _of(row, bring_about(wish, row.written, seen, others_wrote=others_wrote))
        if left:
            seen = await self._change(row, order, seen, left, template=template if left.template else None)
        enrolled = await gateway.enroll(order, seen.uid) if row.adopted else 0
        async with self._db.begin() as tx:
            if row.adopted and not enrolled and not left:
                await backing.mark_enrolled(tx, row.pool_id, token=self.token)
        reason = f"waits: {waits}" if waits is not None else tell_state(wish, row.written, seen)
        more = len(leaving) == _DETACH_BATCH
        await self._finish(row, reason=reason, seconds=0 if more else _LOOK_SECONDS)

    async def _read(self, row: BackingRow, template: str | None) -> tuple[Wish, list[LeavingVm]]:
        async with self._db.begin() as tx:
            leaving = await backing.leaving(tx, row.pool_id, states=_TO_GO, limit=_DETACH_BATCH)
            return await backing.wish(tx, row, template=template), leaving

    async def _change(
        self, row: BackingRow, order: VmPoolOrder, seen: VmPoolSight, change: Change, *, template: str | None
    ) -> VmPoolSight:
        changed = await self._gateway.vm_pools.change(order, seen, change)
        log.info("vm_pool.changed", replicas=change.replicas, template=change.template, restored=change.restore)
        paused = change.paused if change.paused is not None else row.written.paused and changed.paused
        await self._write(row, changed, template=template, paused=paused)
        return changed

    async def _write(self, row: BackingRow, seen: VmPoolSight, *, template: str | None, paused: bool) -> None:
        async with self._db.begin() as tx:
            await backing.write_seen(tx, row, seen, token=self.token, template=template, paused=paused)

    async def _detach(self, leaving: Sequence[LeavingVm]) -> None:
        size = self._settings.provision_concurrency
        for start in range(0, len(leaving), size):
            await at_once(self._detach_one, leaving[start : start + size])

    async def _detach_one(self, vm: LeavingVm) -> None:
        claim_id = vm.claim_id if vm.state is VmState.CLAIMED else None
        found = True
        try:
            await self._gateway.vm_pools.detach(
                name=vm.name, uid=vm.uid, claim_id=str(claim_id) if claim_id is not None else None
            )
        except ClusterNotFound:
            found = False  # whoever watches tells what becomes of its row
        async with self._db.begin() as tx:
            await backing.set_free(tx, ids=[vm.id])
            if claim_id is not None and found:
                label = LabelWork(claim_id=claim_id, vm_id=vm.id, name=vm.name, uid=vm.uid, attempts=0)
                if vm.is_named:  # which is more than one patch may say: its name may be no label
                    await work.label_later(tx, label, seconds=0)
                    await notify(tx, Topic.CLAIMED, vm.pool_id)
                else:
                    await work.mark_labelled(tx, label)
            await notify(tx, Topic.REMOVE)

    async def _let_go(self, row: BackingRow, seen: VmPoolSight) -> None:
        """Somebody deletes it, and it waits for us: its VMs are taken from it, and stay. Those claimed go first."""
        async with self._db.begin() as tx:
            members = await backing.leaving(tx, row.pool_id, states=_ALL, limit=_DETACH_BATCH)
        await self._detach(members)
        if len(members) < _DETACH_BATCH:
            await self._gateway.vm_pools.free(seen)
        await self._finish(row, reason="it is being deleted in the cluster", seconds=_SOON_SECONDS)

    async def _replace(self, row: BackingRow) -> None:
        """Somebody deleted it. Nobody owns its VMs any more: they stay, or the cluster is at removing them."""
        name = vm_pool_name(row.pool, row.pool_id, row.round + 1)
        incident = f"VirtualMachinePool {row.name} was deleted by somebody in the cluster; {name} takes its place"
        log.warning("vm_pool.was_deleted", successor=name)
        async with self._db.begin() as tx:
            if not await backing.holds(tx, row.pool_id, token=self.token):
                return
            await backing.set_free(tx, pool_id=row.pool_id)
            await backing.replace(tx, row, token=self.token, name=name)
            await backing.write_incident(tx, row.pool_id, incident)
            await events.record(tx, "pool.backing", pool_id=row.pool_id, incident=incident)
            await pool_rows.plan_soon(tx, row.pool_id)
            await backing.finish(tx, row.pool_id, token=self.token, seconds=0, reason=None)

    async def _end(self, row: BackingRow, seen: VmPoolSight | None) -> None:
        """Its pool is being deleted: claimed VMs are detached, it goes without the rest, which is then removed by us."""
        if seen is None or seen.pool_id != str(row.pool_id) or row.written.uid not in {None, seen.uid}:
            async with self._db.begin() as tx:
                await backing.set_free(tx, pool_id=row.pool_id)
                await backing.end(tx, row.pool_id, token=self.token)
                await pool_rows.plan_soon(tx, row.pool_id)
                await notify(tx, Topic.REMOVE)
            return
        async with self._db.begin() as tx:
            claimed = await backing.leaving(tx, row.pool_id, states=[VmState.CLAIMED], limit=_DETACH_BATCH)
        if not seen.deleting and seen.replicas:
            order, _ = await self._order(row)
            seen = await self._change(row, order, seen, Change(replicas=0, restore=not seen.unmanaged), template=None)
        await self._detach(claimed)
        if len(claimed) < _DETACH_BATCH:
            await self._remove(seen)
        await self._finish(row, reason=None, seconds=_SOON_SECONDS)

    async def _remove(self, seen: VmPoolSight) -> None:
        """In two looks: once it is being deleted, it is let go."""
        if seen.deleting:
            await self._gateway.vm_pools.free(seen)
        else:
            await self._gateway.vm_pools.remove(seen)

    async def _tell(self, row: BackingRow, incidents: Sequence[str]) -> None:
        if not incidents:
            return
        told = f"VirtualMachinePool {row.name}: {'; '.join(incidents)}"
        log.warning("vm_pool.changed_by_others", incidents=list(incidents))
        async with self._db.begin() as tx:
            await backing.write_incident(tx, row.pool_id, told)
            await events.record(tx, "pool.backing", pool_id=row.pool_id, incident=told)
            await pool_rows.plan_soon(tx, row.pool_id)

    async def _finish(self, row: BackingRow, *, reason: str | None, seconds: float = _LOOK_SECONDS) -> None:
        async with self._db.begin() as tx:
            await backing.finish(tx, row.pool_id, token=self.token, seconds=seconds, reason=reason)

    async def _defer(self, row: BackingRow, why: str) -> None:
        seconds = retry_delay(
            row.attempts,
            base_seconds=self._settings.backoff_base_seconds,
            cap_seconds=min(_RETRY_CAP_SECONDS, self._settings.backoff_cap_seconds),
            roll=random.random(),  # noqa: S311 - jitter, not a secret
        )
        log.info("vm_pool.put_off", why=why, seconds=round(seconds, 1), attempts=row.attempts)
        async with self._db.begin() as tx:
            await backing.finish(tx, row.pool_id, token=self.token, seconds=seconds, reason=why, failed=True)

    async def _sweep(self) -> None:
        """VirtualMachinePools of ours that no pool knows go, without their VMs; those are orphans then, if no row knows them."""
        try:
            found = await self._gateway.vm_pools.all()
            async with self._db.begin() as tx:
                known = await backing.known_names(tx)
            for seen in found:
                if seen.name in known:
                    continue
                log.warning("vm_pool.orphan_removed", vm_pool=seen.name, uid=seen.uid)
                await self._remove(seen)
                ORPHANS.inc()
        except (ClusterUnavailable, ClusterError) as error:
            # Also where the cluster has no such kind, or we no right to it: then no pool of ours is one.
            log.debug("vm_pool.sweep_put_off", error=error.detail)


def _of(row: BackingRow, change: Change) -> Change:
    """Of one that was taken over the number is left until all of its VMs are known."""
    return replace(change, replicas=None) if row.adopted else change
