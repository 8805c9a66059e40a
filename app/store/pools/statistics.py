"""Figures of pools, for their status and for estimates. The database counts and measures them on each call."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text

from app.domain.health import PASSING
from app.domain.statistics import Ailment, BootTimes, PoolCounts, PoolFlags, why_stalled, why_waiting
from app.store.database import Tx, run
from app.store.pools import put_off
from app.store.pools.put_off import PutOff, is_health

_LAST_BOOTS = 200
_RATE_WINDOW_SECONDS = 300
SETTLED_SECONDS = 3.0
"""How long a VM that boots must have shown a problem before its pool, and the claims that wait, tell it."""
PASSING_SECONDS = 180.0
"""The same for a guest that runs without its agent, or is not ready: a slow guest, such as Windows, takes a minute or two to boot."""

_COUNTS = text("""
    SELECT pool_id, state, count(*) AS n FROM vm
    WHERE pool_id = ANY(CAST(:ids AS uuid[])) AND ended_at IS NULL GROUP BY pool_id, state
    UNION ALL
    SELECT pool_id, 'waiting', count(*) FROM claim_queue WHERE pool_id = ANY(CAST(:ids AS uuid[])) GROUP BY pool_id
""")

# What was never asked for is made from the present template.
_OUTDATED = text("""
    SELECT v.pool_id, count(*) AS outdated, count(*) FILTER (WHERE v.asked_at <= p.rotated_at) AS rotated
    FROM vm v JOIN pool p ON p.id = v.pool_id
    WHERE v.pool_id = ANY(CAST(:ids AS uuid[])) AND v.ended_at IS NULL AND v.asked_at IS NOT NULL
      AND v.state IN ('planned', 'creating', 'booting', 'ready') AND (v.revision <> p.revision OR v.asked_at <= p.rotated_at)
    GROUP BY v.pool_id
""")

_BOOTS = text("""
    SELECT p.id, b.n, b.p50, b.p95, b.recent FROM unnest(CAST(:ids AS uuid[])) AS p(id) CROSS JOIN LATERAL (
        SELECT count(*) AS n,
            percentile_cont(0.5) WITHIN GROUP (ORDER BY boot_seconds) AS p50,
            percentile_cont(0.95) WITHIN GROUP (ORDER BY boot_seconds) AS p95,
            count(*) FILTER (WHERE ready_at > now() - make_interval(secs => :window)) AS recent
        FROM (SELECT boot_seconds, ready_at FROM vm WHERE pool_id = p.id AND boot_seconds IS NOT NULL
              ORDER BY ready_at DESC LIMIT :last) last) b
""")

# By pool, what most of its VMs on their way suffer from. A condition of a VM that boots counts once it has lasted, because many
# pass at once: a pod is often unschedulable for a moment. One that is being pulled shows two reasons in turn.
_AILING = text("""
    SELECT p.id, a.n, a.total, a.sample FROM unnest(CAST(:ids AS uuid[])) AS p(id) CROSS JOIN LATERAL (
        SELECT count(*) AS n, (sum(count(*)) OVER ())::int AS total, min(health) AS sample FROM (
            SELECT CASE WHEN state <> 'booting' OR unhealthy_since <= now() - make_interval(
                secs => CASE WHEN health = ANY(:passing) THEN CAST(:slow AS float) ELSE :settled END) THEN health END AS health
            FROM vm WHERE pool_id = p.id AND ended_at IS NULL AND state IN ('planned', 'creating', 'booting')) v
        GROUP BY replace(split_part(health, ':', 1), 'ImagePullBackOff', 'ErrImagePull')
        ORDER BY min(health) IS NULL, n DESC, sample LIMIT 1) a
    WHERE a.sample IS NOT NULL
""")

# What keeps claims of these pools waiting, beside their VMs.
_WAITING = text("""
    SELECT p.id, coalesce(q.notes, '[]') AS notes, CASE WHEN p.consecutive_failures > 0 THEN p.last_failure END AS last_failure,
        CASE WHEN p.stalled_at IS NOT NULL THEN p.consecutive_failures END AS stalled_after
    FROM pool p LEFT JOIN pool_plan q ON q.pool_id = p.id WHERE p.id = ANY(CAST(:ids AS uuid[]))
""")

_IN_FLIGHT = text("""
    SELECT coalesce(asked_at, now()) AS since FROM vm
    WHERE pool_id = :id AND ended_at IS NULL AND (state IN ('creating', 'booting')
        OR (state = 'planned' AND NOT (SELECT paused FROM pool WHERE id = :id))) ORDER BY 1 LIMIT 500
""")

_PLACE = text("""
    SELECT count(*) FROM claim_queue WHERE pool_id = :id
      AND seq < coalesce((SELECT seq FROM claim_queue WHERE claim_id = :claim_id), 9223372036854775807)
""")


@dataclass(frozen=True, slots=True)
class Outdated:
    """How many unclaimed VMs are to be replaced: `count` in all, `rotated` of them by a rotation that was requested. The others
    are of an old template.
    """

    count: int = 0
    rotated: int = 0


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """`refill_per_minute`: VMs that became ready per minute, over the last five minutes. `ailing`: what most of its VMs on their way
    suffer from. `put_off`: why the cluster takes no creates.
    """

    counts: PoolCounts
    boots: BootTimes
    refill_per_minute: float
    outdated: Outdated
    ailing: Ailment | None = None
    put_off: PutOff | None = None


async def of_pools(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, PoolFigures]:
    """The figures of each of these pools."""
    counts: dict[UUID, dict[str, int]] = {pool_id: {} for pool_id in ids}
    for row in await run(tx, _COUNTS, ids=list(ids)):
        counts[row.pool_id][row.state] = row.n
    replaced = await outdated(tx, ids)
    found = {pool_id: PoolCounts(**of_pool) for pool_id, of_pool in counts.items()}
    ailing = await ailments(tx, [pool_id for pool_id, of_pool in found.items() if of_pool.in_flight])
    off = await put_off.of_pools(tx, ids)
    return {
        row.id: PoolFigures(
            counts=found[row.id],
            ailing=ailing.get(row.id),
            put_off=off.get(row.id),
            boots=BootTimes(count=row.n, p50=row.p50, p95=row.p95),
            refill_per_minute=row.recent * 60 / _RATE_WINDOW_SECONDS,
            outdated=replaced[row.id],
        )
        for row in await run(tx, _BOOTS, ids=list(ids), last=_LAST_BOOTS, window=_RATE_WINDOW_SECONDS)
    }


async def outdated(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, Outdated]:
    """What is to be replaced in each of these pools."""
    found = {row.pool_id: Outdated(row.outdated, row.rotated) for row in await run(tx, _OUTDATED, ids=list(ids))}
    return {pool_id: found.get(pool_id, Outdated()) for pool_id in ids}


async def ailments(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, Ailment]:
    """What most VMs on their way suffer from, of those of the pools that have such VMs."""
    if not ids:
        return {}
    waits = {"settled": SETTLED_SECONDS, "slow": PASSING_SECONDS, "passing": list(PASSING)}
    rows = await run(tx, _AILING, ids=list(ids), **waits)
    return {row.id: Ailment(row.n, row.total, row.sample) for row in rows if not is_health(row.sample)}


async def why_waiting_for(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, str]:
    """What keeps VMs of these pools from being ready, in words, as far as something is known to."""
    if not ids:
        return {}
    ailing, off = await ailments(tx, ids), await put_off.of_pools(tx, ids)
    told = {}
    for row in await run(tx, _WAITING, ids=list(ids)):
        flags = PoolFlags(
            stalled_because=why_stalled(row.stalled_after, row.last_failure),
            ailing=ailing.get(row.id),
            last_failure=row.last_failure,
            put_off=str(off[row.id]) if row.id in off else None,
        )
        told[row.id] = why_waiting(flags, tuple(row.notes))
    return {pool_id: why for pool_id, why in told.items() if why is not None}


async def count(tx: Tx, pool_id: UUID) -> PoolCounts:
    """Only the counts, of one pool."""
    return PoolCounts(**{row.state: row.n for row in await run(tx, _COUNTS, ids=[pool_id])})


async def in_flight_since(tx: Tx, pool_id: UUID) -> tuple[datetime, ...]:
    """When each VM on its way was requested, oldest first. A VM that a paused pool only plans is not on its way."""
    return tuple(row.since for row in await run(tx, _IN_FLIGHT, id=pool_id))


async def place_in_queue(tx: Tx, pool_id: UUID, claim_id: UUID | None) -> int:
    """1 is the next to be served. A claim that is not in the queue counts as the last."""
    before: int = (await run(tx, _PLACE, id=pool_id, claim_id=claim_id)).scalar_one()
    return before + 1
