"""Taking a snapshot, one step at a time: a look at the rows, at the cluster where it must be, and what follows written down.

Each state of a take is the intent of what is done in it, and what is done is done again without harm: a worker that dies
anywhere is followed by another, which finds what was done under the take's own name. Whatever ends a take's work releases the
VM that was booted for it in the same transaction, and a take has failed only once the cluster holds nothing of it.
"""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from app.compute.gateway import Gateway
from app.config import Settings
from app.domain.paths import StartPath
from app.domain.pools import revision_of
from app.domain.snapshots import (
    STOP_SECONDS,
    TAKE_ENDED,
    UNDER_WAY,
    ClaimFacts,
    Origin,
    Sight,
    Step,
    TakePlan,
    TakeState,
    after_claim,
    after_look,
    after_loss,
    after_stop,
    left_out,
    plan_takes,
)
from app.domain.states import ClaimState
from app.errors import ClusterError, ClusterUnavailable
from app.ids import new_id, vm_name
from app.lifecycle.claims import release
from app.lifecycle.on_demand_pools import ensure_on_demand_pool
from app.lifecycle.snapshot_origins import claim_facts, made_from, origin_of
from app.store.claims import rows as claims
from app.store.database import Database, Tx
from app.store.notices import Topic, notify
from app.store.pools import rows as pool_rows
from app.store.rows import ClaimRow
from app.store.snapshots import rows as snapshot_rows
from app.store.snapshots import work as snapshot_work
from app.store.snapshots.rows import SnapshotRow, TakeRow
from app.store.snapshots.work import SnapshotWork
from app.store.vms import rows as vms
from app.store.vms import work
from app.store.vms.observed import database_now

CLAIM_KEY = "snapshot/"
"""Before a take's id: the idempotency key of the claim on the VM that is booted for it."""
_POLL_BOUNDS = (0.25, 5.0)
_POLL_SHARE = 0.1
_IDLE_SECONDS = 3600.0
_WATCH_SECONDS = 5.0
_SPARE_LEASE_SECONDS = 900
_SETTLE = timedelta(seconds=30)
"""A VM that was asked for so soon after a take stopped to serve may have been told of it the moment before."""
log = structlog.get_logger(__name__)


class LeaseLost(Exception):
    """Another worker has the snapshot by now."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One snapshot as its rows stand. `claims`: by take, our claims on the VMs that are booted for them."""

    row: SnapshotRow
    takes: tuple[TakeRow, ...]
    origin: Origin | None
    claims: dict[UUID, ClaimFacts]
    bound: dict[UUID, ClaimRow]
    now: datetime


class Taking:
    """The steps of one worker, whose `token` its leases carry."""

    def __init__(self, db: Database, gateway: Gateway, settings: Settings, *, token: UUID) -> None:
        self._db = db
        self._gateway = gateway
        self._cluster = gateway.snapshots
        self._lease_seconds = settings.work_lease_seconds
        self._pending_seconds = settings.pending_seconds
        self._token = token

    async def step(self, item: SnapshotWork) -> float | None:
        """One step of one snapshot. None: something was done, and more may be; else seconds until the next look.

        Raises LeaseLost; ClusterUnavailable, with nothing lost.
        """
        scene = await self._look(item)
        if scene is None:
            return _IDLE_SECONDS
        facts = [take.facts for take in scene.takes]
        plan = plan_takes(scene.row.spec, facts, scene.origin, scene.now, deleting=scene.row.deleting_at is not None)
        if plan.begin or plan.retire or plan.cancel:
            await self._apply(item, scene, plan)
            return None
        rests: list[float] = []
        for take in scene.takes:
            if take.state is TakeState.READY or take.state in TAKE_ENDED:
                continue
            rest = await self._advance(item, scene, take)
            if rest is None:
                return None
            rests.append(rest)
        if not rests and scene.row.deleting_at is not None:
            async with self._db.begin() as tx:
                await self._require(tx, item)
                await snapshot_rows.end_delete(tx, item.id)
            log.info("snapshot.deleted", snapshot=item.name)
            return _IDLE_SECONDS
        if plan.look_again_at is not None:
            rests.append(max(_POLL_BOUNDS[0], (plan.look_again_at - scene.now).total_seconds()))
        rests.append(_WATCH_SECONDS if scene.row.spec.refresh else _IDLE_SECONDS)
        return min(rests)

    async def note(self, item: SnapshotWork, reason: str) -> None:
        """Says on every take under way what it waits for."""
        async with self._db.begin() as tx:
            await self._require(tx, item)
            for take in (await snapshot_rows.takes_of(tx, [item.id]))[item.id]:
                if take.state in UNDER_WAY:
                    await snapshot_rows.note_take(tx, take.id, reason)

    async def _look(self, item: SnapshotWork) -> Scene | None:
        async with self._db.begin() as tx:
            await self._require(tx, item)
            row = await snapshot_rows.get_by_id(tx, item.id)
            if row is None:
                return None
            takes = tuple((await snapshot_rows.takes_of(tx, [item.id]))[item.id])
            bound: dict[UUID, ClaimRow] = {}
            facts: dict[UUID, ClaimFacts] = {}
            for take in takes:
                claim = await claims.get(tx, take.claim_id) if take.claim_id and take.state in UNDER_WAY else None
                if claim is not None:
                    bound[take.id] = claim
                    facts[take.id] = await claim_facts(tx, claim)
            now = await database_now(tx)
            return Scene(row, takes, await origin_of(tx, self._gateway, row), facts, bound, now)

    async def _apply(self, item: SnapshotWork, scene: Scene, plan: TakePlan) -> None:
        async with self._db.begin() as tx:
            await self._require(tx, item)
            by_id = {take.id: take for take in scene.takes}
            for take_id in plan.retire:
                await snapshot_rows.move_take(tx, by_id[take_id], TakeState.RETIRING)
            for take_id in plan.cancel:
                await _fail(tx, by_id[take_id], "the snapshot is being deleted")
            if plan.begin:
                await snapshot_rows.insert_take(tx, snapshot_id=item.id, take_id=new_id())

    async def _advance(self, item: SnapshotWork, scene: Scene, take: TakeRow) -> float | None:
        try:
            match take.state:
                case TakeState.PLANNED if scene.row.spec.source.vm is not None:
                    await self._begin_of_vm(item, take, scene.row.spec.source.vm)
                    return None
                case TakeState.PLANNED:
                    await self._begin_of_pool(item, scene, take)
                    return None
                case TakeState.BOOTING:
                    return await self._await_vm(item, scene, take)
                case TakeState.STOPPING:
                    return await self._stop(item, scene, take)
                case TakeState.TAKING:
                    return await self._take(item, scene, take)
                case _:
                    return await self._clear(item, scene, take)
        except ClusterUnavailable:
            raise
        except ClusterError as error:
            if take.state in UNDER_WAY:
                return await self._follow(item, scene, take, Step(TakeState.FAILING, error.detail))
            log.warning("snapshot.not_removed", snapshot=item.name, take=take.number, error=error.detail)
            return await self._follow(item, scene, take, Step(None, f"it cannot be removed: {error.detail}"))

    async def _begin_of_vm(self, item: SnapshotWork, take: TakeRow, name: str) -> None:
        vm = await self._cluster.source(name)
        reason = None
        if vm is None or vm.deleting:
            reason = f"there is no VM {name!r} in the namespace any more"
        elif vm.volumes and not any(volume.enabled for volume in vm.volumes):
            reason = "; ".join(f"{volume.name}: {volume.reason}" for volume in vm.volumes)
        async with self._db.begin() as tx:
            await self._require(tx, item)
            if vm is None or reason is not None:
                await _fail(tx, take, reason)
                return
            shape = await snapshot_work.shape_of_vm(tx, name) or vm.shape
            await snapshot_rows.move_take(
                tx, take, TakeState.TAKING, vm_name=vm.name, vm_uid=vm.uid, shape=shape, based_at=await database_now(tx)
            )

    async def _begin_of_pool(self, item: SnapshotWork, scene: Scene, take: TakeRow) -> None:
        """The VM is claimed as any other: from a hidden pool, under a key of this take's own."""
        name = scene.row.spec.source.pool or ""
        async with self._db.begin() as tx:
            await self._require(tx, item)
            pool = await pool_rows.get(tx, name)
            if pool is None or pool.deleting_at is not None:
                await _fail(tx, take, f"there is no pool {name!r} any more")
                return
            template, spec = made_from(self._gateway, pool, scene.row.spec)
            hidden = await ensure_on_demand_pool(tx, template, spec)
            await pool_rows.forgive(tx, [hidden.id])
            claim_id = await claims.insert_pending(
                tx,
                claim_id=new_id(),
                pool_id=hidden.id,
                key=f"{CLAIM_KEY}{take.id}",
                request_hash=str(take.id),
                labels={"snapshot": item.name},
                lease_seconds=_claim_lease_seconds(scene.row),
                pending_seconds=max(self._pending_seconds, 2.0 * spec.boot_timeout_seconds),
                reason=f"its VM is booted for snapshot {item.name!r}",
            )
            await snapshot_rows.move_take(
                tx,
                take,
                TakeState.BOOTING,
                claim_id=claim_id,
                shape=template.shape,
                revision=revision_of(template.fingerprint, spec),
            )
            await pool_rows.plan_soon(tx, hidden.id)

    async def _await_vm(self, item: SnapshotWork, scene: Scene, take: TakeRow) -> float | None:
        step = after_claim(scene.claims.get(take.id), stops=scene.row.spec.stops)
        claim = scene.bound.get(take.id)
        if step.to in {TakeState.STOPPING, TakeState.TAKING} and claim is not None:
            async with self._db.begin() as tx:
                vm = await vms.get(tx, claim.vm_id) if claim.vm_id else None
            known = {"vm_name": claim.vm_name, "vm_uid": claim.vm_uid, "based_at": vm.asked_at if vm else None}
            return await self._follow(item, scene, take, step, **known)
        return await self._follow(item, scene, take, step)

    async def _stop(self, item: SnapshotWork, scene: Scene, take: TakeRow) -> float | None:
        lost = after_loss(scene.claims.get(take.id), take.vm_name)
        if lost is not None or take.claim_id is None or take.vm_name is None or take.vm_uid is None:
            return await self._follow(item, scene, take, lost or Step(TakeState.FAILING, "its VM is not known"))
        await self._renew(item, scene, take)
        vm = await self._cluster.source(take.vm_name)
        if vm is not None and vm.uid == take.vm_uid and not vm.halted:
            # The row says so before the cluster is asked: whoever watches must not take the stop for a death.
            async with self._db.begin() as tx:
                await self._require(tx, item)
                marked = await snapshot_work.mark_stopped(tx, take.claim_id)
            if marked:
                await self._cluster.stop(name=take.vm_name, uid=take.vm_uid)
        return await self._follow(item, scene, take, after_stop(vm, take.vm_uid, scene.now - take.state_since))

    async def _take(self, item: SnapshotWork, scene: Scene, take: TakeRow) -> float | None:
        spec = scene.row.spec
        name = object_name(scene.row, take)
        sight = await self._cluster.look(name)
        if sight is not None and sight.take_id != str(take.id):
            taken = f"the name {name} belongs to a VirtualMachineSnapshot that is not ours"
            return await self._follow(item, scene, take, Step(TakeState.FAILING, taken))
        if sight is None and take.object_uid is None:
            lost = after_loss(scene.claims.get(take.id), take.vm_name) if take.claim_id is not None else None
            if lost is not None:
                return await self._follow(item, scene, take, lost)
            sight = await self._cluster.take(
                name=name,
                snapshot=item.name,
                take_id=str(take.id),
                vm=take.vm_name or "",
                deadline_seconds=spec.timeout_seconds,
            )
        if sight is not None and take.object_uid is None:
            async with self._db.begin() as tx:
                await self._require(tx, item)
                await snapshot_rows.write_object(tx, take.id, sight.uid)
        await self._renew(item, scene, take)
        age = scene.now - take.state_since
        step = after_look(sight, age, timeout_seconds=spec.timeout_seconds)
        if step.to is TakeState.READY and sight is not None:
            return await self._finish(item, scene, take, sight)
        return await self._follow(item, scene, take, step)

    async def _finish(self, item: SnapshotWork, scene: Scene, take: TakeRow, sight: Sight) -> float | None:
        disks = await self._cluster.disks(sight)
        if not disks:
            return await self._follow(
                item, scene, take, Step(TakeState.FAILING, "its VirtualMachineSnapshot holds no VolumeSnapshot")
            )
        vm = await self._cluster.source(take.vm_name) if take.vm_name is not None and sight.excluded else None
        excluded = left_out(sight, vm.volumes if vm is not None else ())
        return await self._follow(
            item,
            scene,
            take,
            Step(TakeState.READY),
            disks=[asdict(disk) for disk in disks],
            excluded=[{"name": volume.name, "reason": volume.reason} for volume in excluded],
            bytes=self._cluster.count_bytes(disks),
        )

    async def _clear(self, item: SnapshotWork, scene: Scene, take: TakeRow) -> float | None:
        """What a take that is over has in the cluster is removed, once nothing is being made from it any more."""
        if take.ready_at is not None:
            async with self._db.begin() as tx:
                waiting = await snapshot_work.starting_from(tx, scene.row.name, before=take.state_since + _SETTLE)
            if waiting:
                return await self._follow(
                    item, scene, take, Step(None, f"{waiting} VMs that start from it are on their way")
                )
        going = await self._cluster.remove(name=object_name(scene.row, take), uid=take.object_uid, take_id=str(take.id))
        if going:
            return _pause(scene, take)
        over = TakeState.RETIRED if take.state is TakeState.RETIRING else TakeState.FAILED
        return await self._follow(item, scene, take, Step(over, take.reason))

    async def _follow(
        self, item: SnapshotWork, scene: Scene, take: TakeRow, step: Step, **written: Any
    ) -> float | None:
        """Writes a step down, with all that follows from it in the same transaction."""
        async with self._db.begin() as tx:
            await self._require(tx, item)
            if step.to is None:
                if take.state in UNDER_WAY:
                    await snapshot_rows.note_take(tx, take.id, step.reason)
                return _pause(scene, take)
            if step.to is TakeState.FAILING:
                await _fail(tx, take, step.reason)
            else:
                await snapshot_rows.move_take(tx, take, step.to, reason=step.reason, **written)
            if step.to is TakeState.READY:
                if take.claim_id is not None:
                    await release(tx, take.claim_id, reason="its disks were taken")
                await work.source_is_ready(tx, path=StartPath.SNAPSHOT, source=scene.row.name)
                await notify(tx, Topic.CREATE)
        log.info("snapshot.moved", snapshot=item.name, take=take.number, state=step.to, reason=step.reason)
        return None

    async def _renew(self, item: SnapshotWork, scene: Scene, take: TakeRow) -> None:
        """Our claim on the take's VM lasts as long as the work does: it is renewed once half of it is over."""
        claim = scene.bound.get(take.id)
        if claim is None or claim.state is not ClaimState.BOUND or claim.lease_expires_at is None:
            return
        seconds = _claim_lease_seconds(scene.row)
        if claim.lease_expires_at - scene.now < timedelta(seconds=seconds / 2):
            async with self._db.begin() as tx:
                await self._require(tx, item)
                await claims.renew(tx, claim.id, seconds=seconds)

    async def _require(self, tx: Tx, item: SnapshotWork) -> None:
        if not await snapshot_work.holds(tx, item.id, token=self._token, seconds=self._lease_seconds):
            raise LeaseLost


def object_name(row: SnapshotRow, take: TakeRow) -> str:
    """The name of a take's VirtualMachineSnapshot, never used twice."""
    return vm_name(row.name, take.id)


async def _fail(tx: Tx, take: TakeRow, reason: str | None) -> None:
    """A take has failed, and lets go of its VM; its object goes next."""
    await snapshot_rows.move_take(tx, take, TakeState.FAILING, reason=reason)
    if take.claim_id is not None:
        await release(tx, take.claim_id, reason="the snapshot that it was booted for failed")


def _claim_lease_seconds(row: SnapshotRow) -> int:
    return row.spec.timeout_seconds + STOP_SECONDS + _SPARE_LEASE_SECONDS


def _pause(scene: Scene, take: TakeRow) -> float:
    """What has taken long will take long: it is looked at less often."""
    low, high = _POLL_BOUNDS
    return min(high, max(low, _POLL_SHARE * (scene.now - take.state_since).total_seconds()))
