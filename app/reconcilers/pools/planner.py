"""Plans every pool that is due: one short transaction each, which reads the pool, decides, and writes what is to be done.

Pools below their floor come first. Two replicas never plan one pool at the same moment: its row in `pool_plan` stays locked
while it is planned, which takes milliseconds and calls nobody.
"""

from dataclasses import replace
from datetime import datetime
from uuid import UUID

import structlog

from app.domain.planning import Plan, plan
from app.domain.states import VmState
from app.ids import new_id, vm_name
from app.lifecycle.placement import Placing, Room
from app.lifecycle.start_sources import note_on_start
from app.store import events, vm_pools
from app.store.claims import rows as claims
from app.store.database import Database, Tx
from app.store.notices import Topic, notify
from app.store.pools import planning, put_off
from app.store.pools import rows as pool_rows
from app.store.rows import PoolRow
from app.store.vms import rows as vms

_POOLS_AT_ONCE = 200
log = structlog.get_logger(__name__)


class PoolPlanner:
    """Without `placing` VMs are created whether the nodes have room for them or not."""

    def __init__(self, db: Database, *, every_seconds: float, placing: Placing | None = None) -> None:
        self._db = db
        self._every_seconds = every_seconds
        self._placing = placing

    async def step(self) -> bool:
        """Plans every pool that is due, each once. True if there may be more."""
        planned: list[UUID] = []
        for _ in range(_POOLS_AT_ONCE):
            pool_id = await plan_next_pool(
                self._db, every_seconds=self._every_seconds, skip=tuple(planned), placing=self._placing
            )
            if pool_id is None:
                break
            planned.append(pool_id)
        return len(planned) == _POOLS_AT_ONCE


async def plan_next_pool(
    db: Database, *, every_seconds: float, skip: tuple[UUID, ...] = (), placing: Placing | None = None
) -> UUID | None:
    """Plans one pool that is due, and returns its id. None if no pool is due, or others are planning those that are.

    A pool that is being deleted and has nothing left is deleted here. The next plan is due after `every_seconds`, or when the
    plan itself says.
    """
    async with db.begin() as tx:
        pool_id = await planning.take_due(tx, skip=skip)
        if pool_id is None:
            return None
        pool = await pool_rows.get_by_id(tx, pool_id)
        if pool is None:
            return pool_id
        going = await placing.going(tx, pool) if placing is not None else None
        snapshot, now = await planning.snapshot(tx, pool, going=going)
        if pool_id in await put_off.of_pools(tx, [pool_id]):
            snapshot = replace(snapshot, put_off=True)
        if pool.deleting_at is not None:
            # Claims that became pending before the deletion was committed.
            late = await claims.pending_of_pool(tx, pool.id)
            await claims.fail_pending(tx, late, reason=f"pool {pool.name!r} was deleted")
        if await pool_rows.end_delete(tx, pool_id):
            await events.record(tx, "pool.deleted", pool_id=pool_id)
            log.info("pool.deleted", pool=pool.name)
            return pool_id
        step = plan(snapshot, now)
        room = await placing.look(tx, pool, wants_more=step.create > 0) if placing is not None else Room()
        if room.count is not None:
            known = replace(snapshot, room=room.count, room_note=room.note, never_fits=room.never_fits)
            step = plan(known, now)
        await _apply(tx, pool, step, asked={vm.id for vm in snapshot.in_flight if vm.asked})
        waits = await note_on_start(tx, pool.path, pool.source)
        notes = (*step.notes, *waits, *await vm_pools.notes(tx, pool_id))
        await planning.write(
            tx,
            pool_id,
            next_in_seconds=_next_look(step, now, every_seconds),
            notes=notes,
            held=step.held,
            capacity_problem=room.capacity_problem,
            waits_for_room=step.waits_for_room,
        )
    if step.put_last or step.put_back:
        log.info("pool.reordered", pool=pool.name, last=len(step.put_last), back=len(step.put_back))
    if not step.is_idle:
        log.info(
            "pool.planned",
            pool=pool.name,
            create=step.create,
            cancel=len(step.cancel),
            remove=len(step.remove),
            urgent=step.urgent,
        )
    return pool_id


async def _apply(tx: Tx, pool: PoolRow, step: Plan, *, asked: set[UUID]) -> None:
    await vms.put_last(tx, step.put_last)
    await vms.put_back(tx, step.put_back)
    if step.remove:
        taken = await vms.take_from_queue(tx, pool.id, step.remove, floor=step.floor)
        # Their places in the queue are deleted and locked by us: no claim can get them any more.
        await vms.leave_ready(tx, taken, reason=_why_removed(pool))
    if step.cancel:
        why = _why_removed(pool)
        never_asked = [vm_id for vm_id in step.cancel if vm_id not in asked]
        await vms.move(tx, never_asked, VmState.DELETED, sources=[VmState.PLANNED], reason=why)
        # A create whose answer was lost is planned again. It may have made its object, which must be removed.
        known = [vm_id for vm_id in step.cancel if vm_id in asked]
        await vms.release(tx, known, sources=[VmState.PLANNED, VmState.BOOTING], reason=why)
    await vms.urge(tx, pool.id, urgent=step.urgent)
    if step.create:
        made = [(vm_id, vm_name(pool.name, vm_id)) for vm_id in (new_id() for _ in range(step.create))]
        await vms.plan(tx, pool.id, vms=made, revision=pool.revision, urgent=step.urgent)
        await notify(tx, Topic.CREATE)
    if step.remove or step.cancel:
        await notify(tx, Topic.REMOVE)


def _why_removed(pool: PoolRow) -> str:
    if pool.deleting_at is not None:
        return "its pool is being deleted"
    return (
        "the pool no longer needs it: it is above the pool's size, of an old template, from before a rotation, older than "
        "max_ready_age_seconds, or on a node that is cordoned or going"
    )


def _next_look(step: Plan, now: datetime, every_seconds: float) -> float:
    if step.look_again_at is None:
        return every_seconds
    return min(every_seconds, max(0.05, (step.look_again_at - now).total_seconds()))
