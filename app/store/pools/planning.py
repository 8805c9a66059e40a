"""Rows for the planner: pools that are due, the snapshot of one pool, and what its last plan found."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from app.domain.planning import InFlightVm, PoolSnapshot, ReadyVm
from app.ids import lowest_id_at
from app.store.database import Tx, run
from app.store.rows import PoolRow
from app.store.vms.rows import LAST_PLACES

# Pools below their floor first: their VMs are needed soonest.
_TAKE = text("""
    SELECT q.pool_id FROM pool_plan q JOIN pool p ON p.id = q.pool_id
    WHERE q.due_at <= now() AND NOT (q.pool_id = ANY(CAST(:skip AS uuid[])))
    ORDER BY (SELECT count(*) FROM (
            SELECT 1 FROM ready_slot r WHERE r.pool_id = q.pool_id LIMIT (p.spec->>'min_available')::int) floor)
        >= (p.spec->>'min_available')::int, q.due_at
    LIMIT 1 FOR UPDATE OF q SKIP LOCKED
""")

_WRITE = text("""
    UPDATE pool_plan SET planned_at = now(), due_at = now() + make_interval(secs => :seconds), notes = :notes,
        held = :held, capacity_problem = :capacity_problem, waits_for_room = :waits_for_room
    WHERE pool_id = :id
""").bindparams(bindparam("notes", type_=JSONB))

# One statement, so that everything is read at the same moment and a VM that is claimed meanwhile counts once. Each claim since
# the last refill used one VM, and one more for each replacement. Ids rise with time, so the index bounds the scan, and no claim
# waits longer than the hour that `since_id` lies before the refill.
_SNAPSHOT = text("""
    SELECT c.now, c.claimed, c.leaving, c.waiting, c.drained, c.last, v.id, v.state, v.node, v.created_at, v.ready_at, v.current, v.asked
    FROM (
        SELECT now() AS now, count(*) FILTER (WHERE state = 'claimed') AS claimed,
            count(*) FILTER (WHERE state IN ('failed', 'releasing')) AS leaving,
            (SELECT count(*) FROM claim_queue WHERE pool_id = :id) AS waiting,
            ARRAY(SELECT vm_id FROM ready_slot WHERE pool_id = :id AND seq >= :last_places) AS last,
            CASE WHEN :drains THEN (
                SELECT coalesce(sum((bound_at IS NOT NULL)::int + jsonb_array_length(replacements)), 0) FROM (
                    SELECT bound_at, replacements FROM claim WHERE pool_id = :id AND id >= CAST(:since_id AS uuid)
                      AND coalesce(bound_at, (replacements->-1->>'at')::timestamptz) > :since LIMIT :size) used)
            ELSE 0 END AS drained
        FROM vm WHERE pool_id = :id AND ended_at IS NULL) c
    LEFT JOIN (
        SELECT id, state, node, created_at, ready_at, asked_at IS NOT NULL AS asked,
            revision = :revision AND (asked_at <= CAST(:rotated_at AS timestamptz)) IS NOT TRUE AS current
        FROM vm WHERE pool_id = :id AND ended_at IS NULL AND state IN ('planned', 'creating', 'booting', 'ready')) v ON true
    ORDER BY v.created_at, v.id
""")

_LAST = text("SELECT notes, held, capacity_problem FROM pool_plan WHERE pool_id = :id")


@dataclass(frozen=True, slots=True)
class LastPlan:
    """What the last plan of a pool found. `notes`: what keeps the pool from its size. `held`: why VMs that are to be replaced are
    not. `capacity_problem`: why the nodes could never take as many of its VMs as its size; None: they could, or it is not known.
    """

    notes: tuple[str, ...] = ()
    held: str | None = None
    capacity_problem: str | None = None


async def take_due(tx: Tx, *, skip: Sequence[UUID] = ()) -> UUID | None:
    """One pool that is due. It is locked until `tx` ends, so that no other replica plans it. None: no pool is due."""
    found: UUID | None = (await run(tx, _TAKE, skip=list(skip))).scalar()
    return found


async def write(
    tx: Tx,
    pool_id: UUID,
    *,
    next_in_seconds: float,
    notes: Sequence[str],
    held: str | None = None,
    capacity_problem: str | None = None,
    waits_for_room: bool = False,
) -> None:
    """Writes what a plan found, and when the next one is due. See `LastPlan`; a pool that `waits_for_room` is planned as soon
    as a node has more of it.
    """
    await run(
        tx,
        _WRITE,
        id=pool_id,
        seconds=next_in_seconds,
        notes=list(notes),
        held=held,
        capacity_problem=capacity_problem,
        waits_for_room=waits_for_room,
    )


async def last_plan(tx: Tx, pool_id: UUID) -> LastPlan:
    row = (await run(tx, _LAST, id=pool_id)).first()
    return LastPlan(tuple(row.notes), row.held, row.capacity_problem) if row else LastPlan()


async def snapshot(tx: Tx, pool: PoolRow, *, going: frozenset[str] | None = None) -> tuple[PoolSnapshot, datetime]:
    """The pool as its rows say, and the time of the database. `going`: the nodes that are going; None: that is not known, and
    then no VM counts as last either.
    """
    spec = pool.spec
    found = await run(
        tx,
        _SNAPSHOT,
        id=pool.id,
        revision=pool.revision,
        rotated_at=pool.rotated_at,
        last_places=LAST_PLACES,
        drains=not spec.auto_replenish,
        since=pool.refilled_at,
        since_id=lowest_id_at(pool.refilled_at - timedelta(hours=1)),
        size=spec.size,
    )
    rows = found.all()
    ready: list[ReadyVm] = []
    in_flight: list[InFlightVm] = []
    last = set(rows[0].last) if going is not None else set()
    for row in rows:
        if row.state == "ready":
            leaves = row.node if going is not None and row.node in going else None
            ready.append(ReadyVm(row.id, row.ready_at, row.current, going=leaves, last=row.id in last))
        elif row.id is not None:
            leased = row.state == "creating"
            in_flight.append(InFlightVm(row.id, row.created_at, row.current, asked=row.asked, leased=leased))
    counts = rows[0]
    return PoolSnapshot(
        size=spec.size,
        min_available=spec.min_available,
        auto_replenish=spec.auto_replenish,
        max_vms=spec.max_vms,
        max_concurrent_creates=spec.max_concurrent_creates,
        max_ready_age=timedelta(seconds=spec.max_ready_age_seconds) if spec.max_ready_age_seconds else None,
        ready=tuple(ready),
        in_flight=tuple(in_flight),
        claimed=counts.claimed,
        leaving=counts.leaving,
        waiting=counts.waiting,
        drained=int(counts.drained),
        paused=pool.paused,
        deleting=pool.deleting_at is not None,
        stalled=pool.stalled_at is not None,
        rotated=pool.rotated_at is not None,
        backoff_until=pool.backoff_until,
    ), counts.now
