"""What planning reads and writes: the pools that are due, one pool's snapshot, and what the plan waits for."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.planning import InFlightVm, PoolSnapshot, ReadyVm
from app.store.rows import PoolRow

# Below the floor first: theirs are the creates that cannot wait.
_TAKE = text("""
    SELECT q.pool_id FROM pool_plan q JOIN pool p ON p.id = q.pool_id
    WHERE q.due_at <= now() AND NOT (q.pool_id = ANY(CAST(:skip AS uuid[])))
    ORDER BY (SELECT count(*) FROM (
            SELECT 1 FROM ready_slot r WHERE r.pool_id = q.pool_id LIMIT (p.spec->>'min_available')::int) floor)
        >= (p.spec->>'min_available')::int, q.due_at
    LIMIT 1 FOR UPDATE OF q SKIP LOCKED
""")

_WRITE = text("""
    UPDATE pool_plan SET planned_at = now(), due_at = now() + make_interval(secs => :seconds), notes = :notes WHERE pool_id = :id
""").bindparams(bindparam("notes", type_=JSONB))

_VMS = text("""
    SELECT id, state, created_at, ready_at, revision = :revision AS current, asked_at IS NOT NULL AS asked,
        state = 'creating' AS leased
    FROM vm WHERE pool_id = :id AND ended_at IS NULL AND state IN ('planned', 'creating', 'booting', 'ready')
    ORDER BY created_at, id
""")

_COUNTS = text("""
    SELECT
        (SELECT count(*) FROM vm WHERE pool_id = :id AND ended_at IS NULL AND state = 'claimed') AS claimed,
        (SELECT count(*) FROM vm WHERE pool_id = :id AND ended_at IS NULL AND state IN ('failed', 'releasing')) AS leaving,
        (SELECT count(*) FROM claim_queue WHERE pool_id = :id) AS waiting,
        now() AS now
""")

# Ids rise with time, so the index bounds the scan; an hour is above any time that a claim may wait.
_DRAINED = text("""
    SELECT coalesce(sum(1 + jsonb_array_length(replacements)), 0) FROM (
        SELECT replacements FROM claim WHERE pool_id = :id AND id >= CAST(:since_id AS uuid) AND bound_at > :since LIMIT :size) c
""")

_NOTES = text("SELECT notes FROM pool_plan WHERE pool_id = :id")


async def take_due(tx: AsyncConnection, *, skip: Sequence[UUID] = ()) -> UUID | None:
    """One pool that is due, locked until `tx` ends so that no other replica plans it meanwhile; None: none is."""
    found: UUID | None = (await tx.execute(_TAKE, {"skip": list(skip)})).scalar()
    return found


async def write(tx: AsyncConnection, pool_id: UUID, *, next_in_seconds: float, notes: Sequence[str]) -> None:
    await tx.execute(_WRITE, {"id": pool_id, "seconds": next_in_seconds, "notes": list(notes)})


async def notes(tx: AsyncConnection, pool_id: UUID) -> tuple[str, ...]:
    """What the last plan said that keeps the pool from its size."""
    return tuple((await tx.execute(_NOTES, {"id": pool_id})).scalar() or ())


async def snapshot(tx: AsyncConnection, pool: PoolRow) -> tuple[PoolSnapshot, datetime]:
    """The pool as its rows stand, and the database's time."""
    ready: list[ReadyVm] = []
    in_flight: list[InFlightVm] = []
    for row in await tx.execute(_VMS, {"id": pool.id, "revision": pool.revision}):
        if row.state == "ready":
            ready.append(ReadyVm(id=row.id, ready_at=row.ready_at, current=row.current))
        else:
            in_flight.append(
                InFlightVm(
                    id=row.id, created_at=row.created_at, current=row.current, asked=row.asked, leased=row.leased
                )
            )
    counts = (await tx.execute(_COUNTS, {"id": pool.id})).one()
    spec = pool.spec
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
        drained=0 if spec.auto_replenish else await _drained(tx, pool),
        paused=pool.paused,
        deleting=pool.deleting_at is not None,
        stalled=pool.stalled_at is not None,
        backoff_until=pool.backoff_until,
    ), counts.now


async def _drained(tx: AsyncConnection, pool: PoolRow) -> int:
    since_id = _lowest_id_at(pool.refilled_at - timedelta(hours=1))
    params = {"id": pool.id, "since_id": since_id, "since": pool.refilled_at, "size": pool.spec.size}
    return int((await tx.execute(_DRAINED, params)).scalar_one())


def _lowest_id_at(moment: datetime) -> UUID:
    """The lowest UUIDv7 of a moment: 48 bits of milliseconds since 1970 (RFC 9562), the rest zero."""
    return UUID(int=int(moment.timestamp() * 1000) << 80)
