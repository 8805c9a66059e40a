"""Plans every pool that is due, many in one short transaction: it reads the pools, decides, and writes what is to be done.

What a step costs depends on how many pools have changed, not on how many there are. Whoever changes a pool asks for a plan of it;
a pool of which nothing changes is looked at now and then. Pools below their floor come first.

Two replicas never plan one pool at the same moment: its row in `pool_plan` stays locked while it is planned, which takes
milliseconds and calls nobody.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

import structlog

from app.domain.planning import Plan, plan, target
from app.domain.vm_pools import Backing
from app.ids import new_id, vm_name
from app.lifecycle.placement import Placing, Room
from app.lifecycle.start_sources import note_on_start
from app.reconcilers.pools.changes import end_deleted, replace_vms
from app.store import vm_pools
from app.store.database import Database, Tx
from app.store.notices import Topic, notify
from app.store.pools import overlooked, planning, put_off
from app.store.pools import rows as pool_rows
from app.store.pools.planning import Moment, Planned
from app.store.rows import PoolRow
from app.store.vms import rows as vms

_AT_ONCE = 50
_DUE = 500
_GATHER_SECONDS = 0.05
_LOOK_SECONDS = 1.0
_DELAY_SECONDS = 1.0
_EVENTS = 5000
_NEW_NODES_SECONDS = 10.0
_DELETING_SECONDS = 5.0
_PUT_OFF_SECONDS = 1.0
log = structlog.get_logger(__name__)


class PoolPlanner:
    """Without `placing` VMs are created whether the nodes have room for them or not."""

    def __init__(
        self,
        db: Database,
        *,
        every_seconds: float,
        placing: Placing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._every_seconds = every_seconds
        self._placing = placing
        self._clock = clock
        self._looked_at = float("-inf")
        self._begins = True

    async def step(self) -> bool:
        """Plans a number of the pools that are due. True if there may be more."""
        more = False
        if self._clock() - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = self._clock()
            more = await self._look()
            self._begins = False
        planned = await plan_due_pools(self._db, every_seconds=self._every_seconds, placing=self._placing)
        if more or len(planned) >= _AT_ONCE:
            return True
        if planned:
            await asyncio.sleep(_GATHER_SECONDS)  # what comes in this moment is planned together
        return False

    async def _look(self) -> bool:
        """Looks for changes that nobody asked to be planned: an overlooked event, nodes that go, come or leave. True if there are
        more events to be read.
        """
        async with self._db.begin() as tx:
            if self._begins:
                await overlooked.begin(tx)
            found = await overlooked.request_changed(tx, delay_seconds=_DELAY_SECONDS, limit=_EVENTS)
            more = found.events == _EVENTS
            if more:
                self._looked_at = float("-inf")
            if self._placing is None:
                return more
            changes = await self._placing.changes(tx)
            if changes.going:
                await overlooked.request_on_nodes(tx, sorted(changes.going))
            if changes.came_or_left:
                await overlooked.spread(tx, seconds=_NEW_NODES_SECONDS)
            return more


async def plan_due_pools(
    db: Database, *, every_seconds: float, placing: Placing | None = None, limit: int = _AT_ONCE
) -> list[UUID]:
    """Plans up to `limit` pools that are due, and returns their ids; those that others are planning are left to them.

    A pool that is being deleted and has nothing left is deleted here. The next plan is due after about `every_seconds`, or when
    the plan itself says.
    """
    async with db.once() as tx:
        due = await planning.due(tx, limit=_DUE)
    if not due:
        return []
    async with db.begin() as tx:
        taken = await planning.take(tx, due, limit=limit)
        alone = await _plan_together(tx, taken, every_seconds=every_seconds, placing=placing)
    # What changes VMs that exist locks them: each such pool has its own transaction, so that no two can wait in a circle.
    for pool_id in alone:
        async with db.begin() as tx:
            for locked in await planning.take(tx, [pool_id], limit=1):
                await _plan_together(tx, [locked], every_seconds=every_seconds, placing=placing, alone=True)
    return taken


async def _plan_together(
    tx: Tx, ids: Sequence[UUID], *, every_seconds: float, placing: Placing | None, alone: bool = False
) -> list[UUID]:
    """Plans the pools, which are locked; without `alone`, returns those that have to be planned alone, for which a plan is asked again."""
    pools = await pool_rows.by_ids(tx, ids)
    ended = [pool.id for pool in pools.values() if alone and await end_deleted(tx, pool)]
    pools = {pool_id: pools[pool_id] for pool_id in ids if pool_id in pools and pool_id not in ended}
    if not pools:
        return []
    going = {pool.id: await placing.going(tx, pool) if placing is not None else None for pool in pools.values()}
    off = await put_off.of_pools(tx, list(pools))
    moments = {
        pool_id: replace(moment, pool=replace(moment.pool, put_off=pool_id in off))
        for pool_id, moment in (await planning.snapshots(tx, pools, going)).items()
    }
    if placing is not None:
        placing.begin()
    steps: dict[UUID, Plan] = {}
    found: dict[UUID, Planned] = {}
    for pool_id, moment in moments.items():
        step, room = await _decide(tx, pools[pool_id], moment, placing)
        if not alone and _changes_vms(pools[pool_id], step):
            continue
        steps[pool_id] = step
        found[pool_id] = await _describe(tx, pools[pool_id], step, room, moment, every_seconds)
        if alone:
            await replace_vms(tx, pools[pool_id], step, moment.pool)
    await _create(tx, pools, steps, moments)
    await planning.write(tx, found)
    for pool_id, step in steps.items():
        _log(pools[pool_id], step)
    left = [pool_id for pool_id in pools if pool_id not in steps]
    await planning.request(tx, left)
    return left


async def _decide(tx: Tx, pool: PoolRow, moment: Moment, placing: Placing | None) -> tuple[Plan, Room]:
    step = plan(moment.pool, moment.now)
    room = await placing.look(tx, pool, wants_more=step.create > 0) if placing is not None else Room()
    if room.count is not None:
        known = replace(moment.pool, room=room.count, room_note=room.note, never_fits=room.never_fits)
        step = plan(known, moment.now)
    if placing is not None and step.create:
        placing.note_created(pool, step.create)
    return step, room


def _changes_vms(pool: PoolRow, step: Plan) -> bool:
    return bool(pool.deleting_at or step.remove or step.cancel or step.put_last or step.put_back)


async def _describe(tx: Tx, pool: PoolRow, step: Plan, room: Room, moment: Moment, every_seconds: float) -> Planned:
    waits = await note_on_start(tx, pool.path, pool.source)
    shown = await vm_pools.notes(tx, pool.id) if pool.spec.backing is Backing.VIRTUAL_MACHINE_POOL else ()
    return Planned(
        next_in_seconds=_next_look(moment, step, every_seconds),
        notes=(*step.notes, *waits, *shown),
        held=step.held,
        capacity_problem=room.capacity_problem,
        waits_for_room=step.waits_for_room,
    )


async def _create(
    tx: Tx, pools: Mapping[UUID, PoolRow], steps: Mapping[UUID, Plan], moments: Mapping[UUID, Moment]
) -> None:
    urged = {
        pool_id: step.urgent
        for pool_id, step in steps.items()
        if (moments[pool_id].calm if step.urgent else moments[pool_id].urgent)
    }
    await vms.urge(tx, urged)
    made = [
        vms.PlannedVm(vm_id, pool_id, vm_name(pools[pool_id].name, vm_id), pools[pool_id].revision, step.urgent)
        for pool_id, step in steps.items()
        for vm_id in (new_id() for _ in range(step.create))
    ]
    if made:
        await vms.plan(tx, made)
        await notify(tx, Topic.CREATE)


def _next_look(moment: Moment, step: Plan, every_seconds: float) -> float:
    pool = moment.pool
    if pool.deleting:
        every_seconds = min(every_seconds, _DELETING_SECONDS)
    if pool.put_off and target(pool) > len(pool.ready) + len(pool.in_flight):
        every_seconds = min(every_seconds, _PUT_OFF_SECONDS)
    if step.look_again_at is None:
        return every_seconds
    return min(every_seconds, max(0.05, (step.look_again_at - moment.now).total_seconds()))


def _log(pool: PoolRow, step: Plan) -> None:
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
