"""Planning a pool: snapshot, pure plan, and its intent written, all in one short transaction that calls nobody."""

from dataclasses import replace
from datetime import datetime
from uuid import UUID

import structlog

from app.domain.planning import Plan, plan
from app.domain.states import ClaimState, VmState
from app.ids import new_id, vm_name
from app.lifecycle.placement import Placing, Room
from app.lifecycle.start_sources import note_on_start
from app.store import events
from app.store import vm_pools as backing
from app.store.claims import rows as claims
from app.store.database import Database, Tx
from app.store.notices import Topic, notify, notify_settled
from app.store.pools import planning
from app.store.pools import rows as pool_rows
from app.store.rows import PoolRow
from app.store.vms import rows as vms

log = structlog.get_logger(__name__)


async def plan_next_pool(
    db: Database, *, every_seconds: float, skip: tuple[UUID, ...] = (), placing: Placing | None = None
) -> UUID | None:
    """Plans one pool that is due; None where none is (or others plan them this moment). Without `placing` nothing is known of
    nodes.

    A pool that has nothing left of a deletion is ended here. The next look is after `every_seconds`, or when the plan says.
    """
    async with db.begin() as tx:
        pool_id = await planning.take_due(tx, skip=skip)
        if pool_id is None:
            return None
        pool = await pool_rows.get_by_id(tx, pool_id)
        if pool is None:
            return pool_id
        snapshot, now = await planning.snapshot(tx, pool)
        if pool.deleting_at is not None:
            await _turn_away(tx, pool)
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
        notes = (
            *step.notes,
            *await note_on_start(tx, pool.path, pool.source),
            *await backing.notes(tx, pool_id),
        )
        await planning.write(
            tx,
            pool_id,
            next_in_seconds=_next_look(step, now, every_seconds),
            notes=notes,
            capacity_problem=room.capacity_problem,
            waits_for_room=step.waits_for_room,
        )
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


async def _turn_away(tx: Tx, pool: PoolRow) -> None:
    """Ends the waits that began while the deletion was not committed yet."""
    late = await claims.pending_of_pool(tx, pool.id)
    reason = f"pool {pool.name!r} was deleted"
    ended = await claims.end(tx, late, ClaimState.FAILED, sources=[ClaimState.PENDING], reason=reason)
    await notify_settled(tx, [claim_id for claim_id, _, _ in ended])


async def _apply(tx: Tx, pool: PoolRow, step: Plan, *, asked: set[UUID]) -> None:
    if step.remove:
        taken = await vms.take_from_queue(tx, pool.id, step.remove, floor=step.floor)
        # Their places in the queue are gone and locked by us: no claim can have them any more.
        await vms.leave_ready(tx, taken, reason=_why_removed(pool))
    if step.cancel:
        why = _why_removed(pool)
        never_asked = [vm_id for vm_id in step.cancel if vm_id not in asked]
        await vms.move(tx, never_asked, VmState.DELETED, sources=[VmState.PLANNED], reason=why)
        # A create whose answer was lost is planned again, and may have made its object: that one is to be removed.
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
    return "the pool has no more use for it: it is above the size, of an old template, or has waited too long"


def _next_look(step: Plan, now: datetime, every_seconds: float) -> float:
    if step.look_again_at is None:
        return every_seconds
    return min(every_seconds, max(0.05, (step.look_again_at - now).total_seconds()))
