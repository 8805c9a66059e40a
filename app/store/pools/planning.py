"""Rows for the planner: pools that are due, the snapshot of one pool, and what its last plan found."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text

from app.domain.planning import InFlightVm, PoolSnapshot, ReadyVm
from app.ids import lowest_id_at
from app.store.database import Tx, run
from app.store.rows import PoolRow
from app.store.vms.rows import LAST_PLACES

# What somebody asked for comes before what is due by time alone. Both are bounded: what is left is due at the next look.
_DUE = text("""
    (SELECT pool_id FROM plan_request ORDER BY id LIMIT :limit)
    UNION ALL (SELECT pool_id FROM pool_plan WHERE due_at <= now() ORDER BY due_at LIMIT :limit)
""")
# Pools below their floor first: their VMs are needed soonest.
_LOCK = text("""
    SELECT q.pool_id FROM pool_plan q JOIN pool p ON p.id = q.pool_id WHERE q.pool_id = ANY(CAST(:ids AS uuid[]))
    ORDER BY (SELECT count(*) FROM (
            SELECT 1 FROM ready_slot r WHERE r.pool_id = q.pool_id LIMIT (p.spec->>'min_available')::int) floor)
        >= (p.spec->>'min_available')::int, array_position(CAST(:ids AS uuid[]), q.pool_id)
    LIMIT :limit FOR UPDATE OF q SKIP LOCKED
""")
# What is asked for after this statement began stays: the pool is then planned again.
_ANSWER = text("DELETE FROM plan_request WHERE pool_id = ANY(CAST(:ids AS uuid[]))")
_ANSWER_DELETED = text("""
    DELETE FROM plan_request WHERE pool_id = ANY(CAST(:ids AS uuid[]))
      AND NOT EXISTS (SELECT 1 FROM pool_plan q WHERE q.pool_id = plan_request.pool_id)
""")
_REQUEST = text("INSERT INTO plan_request (pool_id) SELECT unnest(CAST(:ids AS uuid[]))")

# Spread, so that pools that were planned at one moment are not all due at another.
_WRITE = text("""
    UPDATE pool_plan q SET planned_at = now(), due_at = now() + make_interval(secs => n.seconds * (0.9 + 0.2 * random())),
        notes = n.notes::jsonb, held = n.held, capacity_problem = n.capacity_problem, waits_for_room = n.waits_for_room
    FROM unnest(CAST(:ids AS uuid[]), CAST(:seconds AS float[]), CAST(:notes AS text[]), CAST(:held AS text[]),
        CAST(:capacity_problems AS text[]), CAST(:waits_for_room AS bool[]))
        AS n(id, seconds, notes, held, capacity_problem, waits_for_room)
    WHERE q.pool_id = n.id AND q.pool_id = ANY(CAST(:ids AS uuid[]))
""")

# One statement, so that everything is read at the same moment and a VM that is claimed meanwhile counts once. Each claim since
# the last refill used one VM, and one more for each replacement. Ids rise with time, so the index bounds the scan, and no claim
# waits longer than the hour that `since_id` lies before the refill.
_SNAPSHOTS = text("""
    SELECT p.id AS pool_id, c.now, c.claimed, c.leaving, c.waiting, c.drained, c.last, c.urgent, c.calm,
        v.id, v.state, v.node, v.created_at, v.ready_at, v.current, v.asked
    FROM unnest(CAST(:ids AS uuid[]), CAST(:revisions AS text[]), CAST(:rotated AS timestamptz[]), CAST(:drains AS bool[]),
        CAST(:since AS timestamptz[]), CAST(:since_ids AS uuid[]), CAST(:sizes AS int[]))
        AS p(id, revision, rotated_at, drains, since, since_id, size)
    CROSS JOIN LATERAL (
        SELECT now() AS now, count(*) FILTER (WHERE state = 'claimed') AS claimed,
            count(*) FILTER (WHERE state IN ('failed', 'releasing')) AS leaving,
            count(*) FILTER (WHERE state = 'planned' AND vm.urgent) AS urgent,
            count(*) FILTER (WHERE state = 'planned' AND NOT vm.urgent) AS calm,
            (SELECT count(*) FROM claim_queue WHERE pool_id = p.id) AS waiting,
            ARRAY(SELECT vm_id FROM ready_slot WHERE pool_id = p.id AND seq >= :last_places) AS last,
            CASE WHEN p.drains THEN (
                SELECT coalesce(sum((bound_at IS NOT NULL)::int + jsonb_array_length(replacements)), 0) FROM (
                    SELECT bound_at, replacements FROM claim WHERE pool_id = p.id AND claim.id >= p.since_id
                      AND coalesce(bound_at, (replacements->-1->>'at')::timestamptz) > p.since LIMIT p.size) used)
            ELSE 0 END AS drained
        FROM vm WHERE pool_id = p.id AND ended_at IS NULL) c
    LEFT JOIN LATERAL (
        SELECT vm.id, state, node, created_at, ready_at, asked_at IS NOT NULL AS asked,
            vm.revision = p.revision AND (asked_at <= p.rotated_at) IS NOT TRUE AS current
        FROM vm WHERE pool_id = p.id AND ended_at IS NULL AND state IN ('planned', 'creating', 'booting', 'ready')) v ON true
    ORDER BY v.created_at, v.id
""")

_LAST = text("""
    SELECT pool_id, notes, held, capacity_problem FROM pool_plan WHERE pool_id = ANY(CAST(:ids AS uuid[]))
""")


@dataclass(frozen=True, slots=True)
class LastPlan:
    """What the last plan of a pool found. `notes`: what keeps the pool from its size. `held`: why VMs that are to be replaced are
    not. `capacity_problem`: why the nodes could never take as many of its VMs as its size; None: they could, or it is not known.
    """

    notes: tuple[str, ...] = ()
    held: str | None = None
    capacity_problem: str | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """What a plan found, and when the next one is due. See `LastPlan`; a pool that `waits_for_room` is planned as soon as a node
    has more of it.
    """

    next_in_seconds: float
    notes: tuple[str, ...]
    held: str | None = None
    capacity_problem: str | None = None
    waits_for_room: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """A pool as its rows say, at the time `now` of the database. `urgent` and `calm`: how many of its planned VMs are to be created
    first, and how many are not.
    """

    pool: PoolSnapshot
    now: datetime
    urgent: int
    calm: int


async def due(tx: Tx, *, limit: int) -> list[UUID]:
    """Pools that are due: first those that something has asked to be planned, then those that were not looked at for long."""
    return list(dict.fromkeys((await run(tx, _DUE, limit=limit)).scalars()))


async def take(tx: Tx, ids: Sequence[UUID], *, limit: int) -> list[UUID]:
    """Up to `limit` of the pools, those below their floor first. They are locked until `tx` ends, so that no other replica plans
    them; what is read of them from here on answers every request so far. Pools that another plans are left out.
    """
    taken = list((await run(tx, _LOCK, ids=list(ids), limit=limit)).scalars())
    await run(tx, _ANSWER, ids=taken)
    if len(taken) < min(limit, len(ids)):
        await run(tx, _ANSWER_DELETED, ids=list(ids))
    return taken


async def request(tx: Tx, ids: Sequence[UUID]) -> None:
    """These pools are due. Never waits for a planner, and is never overlooked by one."""
    await run(tx, _REQUEST, ids=list(ids))


async def write(tx: Tx, found: Mapping[UUID, Planned]) -> None:
    """Writes what the plans found."""
    plans = found.values()
    await run(
        tx,
        _WRITE,
        ids=list(found),
        seconds=[plan.next_in_seconds for plan in plans],
        notes=[json.dumps(plan.notes) for plan in plans],
        held=[plan.held for plan in plans],
        capacity_problems=[plan.capacity_problem for plan in plans],
        waits_for_room=[plan.waits_for_room for plan in plans],
    )


async def last_plan(tx: Tx, pool_id: UUID) -> LastPlan:
    return (await last_plans(tx, [pool_id]))[pool_id]


async def last_plans(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, LastPlan]:
    """What the last plan of each of these pools found."""
    found = {
        row.pool_id: LastPlan(tuple(row.notes), row.held, row.capacity_problem)
        for row in await run(tx, _LAST, ids=list(ids))
    }
    return {pool_id: found.get(pool_id, LastPlan()) for pool_id in ids}


async def snapshots(
    tx: Tx, pools: Mapping[UUID, PoolRow], going: Mapping[UUID, frozenset[str] | None]
) -> dict[UUID, Moment]:
    """Each of the pools at the same moment. `going`: the nodes that are going, for VMs of each pool; None: that is not known, and
    then no VM counts as last either.
    """
    given = list(pools.values())
    rows = await run(
        tx,
        _SNAPSHOTS,
        ids=[pool.id for pool in given],
        revisions=[pool.revision for pool in given],
        rotated=[pool.rotated_at for pool in given],
        last_places=LAST_PLACES,
        drains=[not pool.spec.auto_replenish for pool in given],
        since=[pool.refilled_at for pool in given],
        since_ids=[lowest_id_at(pool.refilled_at - timedelta(hours=1)) for pool in given],
        sizes=[pool.spec.size for pool in given],
    )
    found: dict[UUID, list[Any]] = {pool_id: [] for pool_id in pools}
    for row in rows:
        found[row.pool_id].append(row)
    return {pool_id: _moment(pools[pool_id], of_pool, going.get(pool_id)) for pool_id, of_pool in found.items()}


def _moment(pool: PoolRow, rows: Sequence[Any], going: frozenset[str] | None) -> Moment:
    spec = pool.spec
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
    found = PoolSnapshot(
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
    )
    return Moment(found, counts.now, counts.urgent, counts.calm)
