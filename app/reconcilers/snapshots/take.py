"""The phases of one take of a snapshot: each observes, asks the cluster where it must, and writes what follows.

The state of a take is the intent of what its phase does, and each phase is safe to do again. The worker after one that died
finds what was done under the take's own name. What ends the work of a take releases its VM in the same transaction. A take is
`failed` only once the cluster has nothing of it any more.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from app.compute.gateway import Gateway
from app.config import Settings
from app.domain.pools import revision_of
from app.domain.snapshots import (
    STOP_SECONDS,
    UNDER_WAY,
    ClaimFacts,
    Origin,
    SnapshotStatus,
    Step,
    TakeState,
    after_claim,
    after_loss,
    after_status,
    after_stop,
    left_out,
    not_disks,
    unkept_disks,
    why_memory_is_lost,
)
from app.domain.states import ClaimState
from app.errors import ClusterError, ClusterUnavailable
from app.ids import new_id, vm_name
from app.lifecycle.claims import release
from app.lifecycle.on_demand_pools import ensure_on_demand_pool
from app.lifecycle.snapshot_origins import made_from
from app.lifecycle.start_sources import FROM_SNAPSHOT
from app.store.claims import rows as claims
from app.store.database import Database, Tx
from app.store.notices import Topic, notify
from app.store.pools import rows as pool_rows
from app.store.rows import ClaimRow
from app.store.snapshots import rows as snapshot_rows
from app.store.snapshots import work as snapshot_work
from app.store.snapshots.rows import SnapshotRow, TakeRow
from app.store.vms import rows as vms
from app.store.vms import work
from app.store.vms.observed import database_now

CLAIM_KEY = "snapshot/"
"""Before a take's id: the idempotency key of the claim on the VM that is booted for it."""
POLL_SECONDS = (0.25, 5.0)
"""The shortest and the longest time between two visits of a take under way."""
_POLL_SHARE = 0.1
_SPARE_LEASE_SECONDS = 900
_SETTLE = timedelta(seconds=30)
"""A VM that was asked for so soon after a take stopped serving may have been told of that take the moment before."""
log = structlog.get_logger(__name__)

Guarded = Callable[[UUID], AbstractAsyncContextManager[Tx]]
"""Opens a transaction in which the worker holds the snapshot, and raises LeaseLost if it does not."""


@dataclass(frozen=True, slots=True)
class Situation:
    """One snapshot as its rows stand. `claims` and `bound`: by take, our claims on the VMs that are booted for them."""

    row: SnapshotRow
    takes: tuple[TakeRow, ...]
    origin: Origin | None
    claims: dict[UUID, ClaimFacts]
    bound: dict[UUID, ClaimRow]
    now: datetime


class TakePhases:
    """Each phase returns None if it changed the take, which may then go on at once; otherwise the seconds until the next visit."""

    def __init__(self, db: Database, gateway: Gateway, settings: Settings, guarded: Guarded) -> None:
        self._db = db
        self._gateway = gateway
        self._cluster = gateway.snapshots
        self._pending_seconds = settings.pending_seconds
        self._guarded = guarded

    async def advance(self, at: Situation, take: TakeRow) -> float | None:
        """The phase that the take is in. Raises LeaseLost, and ClusterUnavailable: then the phase is done again later."""
        try:
            match take.state:
                case TakeState.PLANNED if at.row.spec.source.vm is not None:
                    await self._begin_of_vm(at, take, at.row.spec.source.vm)
                    return None
                case TakeState.PLANNED:
                    await self._begin_of_pool(at, take)
                    return None
                case TakeState.BOOTING:
                    return await self._await_vm(at, take)
                case TakeState.STOPPING:
                    return await self._stop(at, take)
                case TakeState.TAKING:
                    return await self._take(at, take)
                case _:
                    return await self._remove(at, take)
        except ClusterUnavailable:
            raise
        except ClusterError as error:
            if take.state in UNDER_WAY:
                return await self._follow(at, take, Step(TakeState.FAILING, error.detail))
            log.warning("snapshot.not_removed", take=take.number, error=error.detail)
            return await self._follow(at, take, Step(None, f"it cannot be removed: {error.detail}"))

    async def _begin_of_vm(self, at: Situation, take: TakeRow, name: str) -> None:
        vm = await self._cluster.source(name)
        reason = None
        if vm is None or vm.deleting:
            reason = f"there is no VM {name!r} in the namespace any more"
        elif vm.volumes and not any(volume.enabled for volume in vm.volumes):
            reason = "; ".join(f"{volume.name}: {volume.reason}" for volume in vm.volumes)
        elif at.row.spec.memory and not vm.running:
            reason = f"VM {name!r} does not run, so it has no memory to keep; start it, and refresh the snapshot"
        async with self._guarded(at.row.id) as tx:
            if vm is None or reason is not None:
                await fail_take(tx, take, reason)
                return
            spec = await snapshot_work.spec_of_vm(tx, name) or vm.spec
            if at.row.spec.memory and spec is None:
                await fail_take(tx, take, f"VM {name!r} is written in a way in which the service makes no VMs")
                return
            known: dict[str, Any] = {
                "vm_name": vm.name,
                "vm_uid": vm.uid,
                "vm_spec": spec if at.row.spec.memory else None,
            }
            shape = await snapshot_work.shape_of_vm(tx, name) or vm.shape
            now = await database_now(tx)
            await snapshot_rows.move_take(tx, take, TakeState.TAKING, shape=shape, based_at=now, **known)

    async def _begin_of_pool(self, at: Situation, take: TakeRow) -> None:
        """Claims a VM of an on-demand pool, under an idempotency key of this take."""
        name = at.row.spec.source.pool or ""
        async with self._guarded(at.row.id) as tx:
            pool = await pool_rows.get(tx, name)
            if pool is None or pool.deleting_at is not None:
                await fail_take(tx, take, f"there is no pool {name!r} any more")
                return
            template, spec = made_from(self._gateway, pool, at.row.spec)
            on_demand = await ensure_on_demand_pool(tx, template, spec)
            await pool_rows.forgive(tx, [on_demand.id])
            claim_id = await claims.insert_pending(
                tx,
                claim_id=new_id(),
                pool_id=on_demand.id,
                key=f"{CLAIM_KEY}{take.id}",
                request_hash=str(take.id),
                labels={"snapshot": at.row.name},
                lease_seconds=_claim_lease_seconds(at.row),
                pending_seconds=max(self._pending_seconds, 2.0 * spec.boot_timeout_seconds),
                reason=f"its VM is booted for snapshot {at.row.name!r}",
            )
            await snapshot_rows.move_take(
                tx,
                take,
                TakeState.BOOTING,
                claim_id=claim_id,
                shape=template.shape,
                revision=revision_of(template.fingerprint, spec),
                vm_spec=template.spec if at.row.spec.memory else None,
            )
            await pool_rows.plan_soon(tx, on_demand.id)

    async def _await_vm(self, at: Situation, take: TakeRow) -> float | None:
        step = after_claim(at.claims.get(take.id), stops=at.row.spec.stops)
        claim = at.bound.get(take.id)
        if step.to in {TakeState.STOPPING, TakeState.TAKING} and claim is not None:
            async with self._db.begin() as tx:
                vm = await vms.get(tx, claim.vm_id) if claim.vm_id else None
            known = {"vm_name": claim.vm_name, "vm_uid": claim.vm_uid, "based_at": vm.asked_at if vm else None}
            return await self._follow(at, take, step, **known)
        return await self._follow(at, take, step)

    async def _stop(self, at: Situation, take: TakeRow) -> float | None:
        lost = after_loss(at.claims.get(take.id), take.vm_name)
        if lost is not None or take.claim_id is None or take.vm_name is None or take.vm_uid is None:
            return await self._follow(at, take, lost or Step(TakeState.FAILING, "its VM is not known"))
        await self._renew_claim(at, take)
        vm = await self._cluster.source(take.vm_name)
        if vm is not None and vm.uid == take.vm_uid and not vm.halted:
            # The row says so before the cluster is asked, so that the informer does not take the stop for a failure.
            async with self._guarded(at.row.id) as tx:
                marked = await snapshot_work.mark_stopped(tx, take.claim_id)
            if marked:
                await self._cluster.stop(name=take.vm_name, uid=take.vm_uid)
        return await self._follow(at, take, after_stop(vm, take.vm_uid, at.now - take.state_since))

    async def _take(self, at: Situation, take: TakeRow) -> float | None:
        spec = at.row.spec
        name = vm_name(at.row.name, take.id)  # never used twice
        status = await self._cluster.look(name)
        if status is not None and status.take_id != str(take.id):
            taken = f"the name {name} belongs to a VirtualMachineSnapshot that is not ours"
            return await self._follow(at, take, Step(TakeState.FAILING, taken))
        if status is None and take.object_uid is None:
            lost = after_loss(at.claims.get(take.id), take.vm_name) if take.claim_id is not None else None
            if lost is not None:
                return await self._follow(at, take, lost)
            status = await self._cluster.take(
                name=name,
                snapshot=at.row.name,
                take_id=str(take.id),
                vm=take.vm_name or "",
                deadline_seconds=spec.timeout_seconds,
                memory=spec.memory,
            )
        if status is not None and take.object_uid is None:
            async with self._guarded(at.row.id) as tx:
                await snapshot_rows.write_object(tx, take.id, status.uid)
        await self._renew_claim(at, take)
        age = at.now - take.state_since
        step = after_status(status, age, timeout_seconds=spec.timeout_seconds, memory=spec.memory)
        if step.to is TakeState.READY and status is not None:
            return await self._finish(at, take, status)
        return await self._follow(at, take, step)

    async def _finish(self, at: Situation, take: TakeRow, status: SnapshotStatus) -> float | None:
        disks = await self._cluster.disks(status)
        if not disks:
            why = "its VirtualMachineSnapshot holds no VolumeSnapshot"
            return await self._follow(at, take, Step(TakeState.FAILING, why))
        vm = await self._cluster.source(take.vm_name) if take.vm_name is not None and status.excluded else None
        excluded = (
            *left_out(status, vm.volumes if vm is not None else ()),
            *not_disks(status, [disk.volume for disk in disks]),
        )
        if at.row.spec.memory and (unkept := unkept_disks(left_out(status, vm.volumes if vm is not None else ()))):
            why = f"its memory is worth nothing without disks that are not in it: {'; '.join(unkept)}"
            return await self._follow(at, take, Step(TakeState.FAILING, why))
        memory = status.memory if at.row.spec.memory else None
        return await self._follow(
            at,
            take,
            Step(TakeState.READY),
            disks=[asdict(disk) for disk in disks],
            excluded=[{"name": volume.name, "reason": volume.reason} for volume in excluded],
            bytes=self._cluster.count_bytes(disks),
            memory_bytes=memory.bytes if memory is not None else None,
            fingerprint=memory.fingerprint if memory is not None else None,
        )

    async def finds_stale(self, at: Situation, take: TakeRow) -> bool:
        """Looks at the memory of a ready take. True: it cannot be restored any more, which was not known before."""
        if take.fingerprint is None or take.stale_reason is not None:
            return False
        try:
            status = await self._cluster.look(vm_name(at.row.name, take.id))
        except ClusterUnavailable:
            raise
        except ClusterError as error:
            log.warning("snapshot.memory_not_seen", take=take.number, error=error.detail)
            return False
        if (reason := why_memory_is_lost(status)) is None:
            return False
        async with self._guarded(at.row.id) as tx:
            marked = await snapshot_rows.mark_stale(tx, take.id, reason)
        log.warning("snapshot.stale", take=take.number, reason=reason)
        return marked

    async def _remove(self, at: Situation, take: TakeRow) -> float | None:
        """Removes what the cluster has of a take that is over, once no VM is being made from it any more."""
        if take.ready_at is not None:
            async with self._db.begin() as tx:
                waiting = await snapshot_work.starting_from(tx, at.row.name, before=take.state_since + _SETTLE)
            if waiting:
                return await self._follow(at, take, Step(None, f"{waiting} VMs that start from it are on their way"))
        going = await self._cluster.remove(
            name=vm_name(at.row.name, take.id), uid=take.object_uid, take_id=str(take.id)
        )
        if going:
            return _pause(at, take)
        over = TakeState.RETIRED if take.state is TakeState.RETIRING else TakeState.FAILED
        return await self._follow(at, take, Step(over, take.reason))

    async def _follow(self, at: Situation, take: TakeRow, step: Step, **written: Any) -> float | None:
        """Writes a step, and in the same transaction everything that follows from it."""
        async with self._guarded(at.row.id) as tx:
            if step.to is None:
                if take.state in UNDER_WAY:
                    await snapshot_rows.note_take(tx, take.id, step.reason)
                return _pause(at, take)
            if step.to is TakeState.FAILING:
                await fail_take(tx, take, step.reason)
            else:
                await snapshot_rows.move_take(tx, take, step.to, reason=step.reason, **written)
            if step.to is TakeState.READY:
                if take.claim_id is not None:
                    await release(tx, take.claim_id, reason="its disks were taken")
                await work.source_is_ready(tx, paths=list(FROM_SNAPSHOT), source=at.row.name)
                await notify(tx, Topic.CREATE)
        log.info("snapshot.moved", take=take.number, state=step.to, reason=step.reason)
        return None

    async def _renew_claim(self, at: Situation, take: TakeRow) -> None:
        """Our claim on the take's VM lasts as long as the work: it is renewed once half of its lease is over."""
        claim = at.bound.get(take.id)
        if claim is None or claim.state is not ClaimState.BOUND or claim.lease_expires_at is None:
            return
        seconds = _claim_lease_seconds(at.row)
        if claim.lease_expires_at - at.now < timedelta(seconds=seconds / 2):
            async with self._guarded(at.row.id) as tx:
                await claims.renew(tx, claim.id, seconds=seconds)


async def fail_take(tx: Tx, take: TakeRow, reason: str | None) -> None:
    """A take is failing: its VM is released, and its object is removed next."""
    await snapshot_rows.move_take(tx, take, TakeState.FAILING, reason=reason)
    if take.claim_id is not None:
        await release(tx, take.claim_id, reason="the snapshot that it was booted for failed")


def _claim_lease_seconds(row: SnapshotRow) -> int:
    return row.spec.timeout_seconds + STOP_SECONDS + _SPARE_LEASE_SECONDS


def _pause(at: Situation, take: TakeRow) -> float:
    """A take that has been in its phase for long is visited less often."""
    shortest, longest = POLL_SECONDS
    return min(longest, max(shortest, _POLL_SHARE * (at.now - take.state_since).total_seconds()))
