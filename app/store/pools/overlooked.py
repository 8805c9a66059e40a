"""Pools that have changed and that nobody asked to be planned: found in the history, which every change is written to.

Whoever changes a pool asks for a plan of it, but a warm claim does so after its commit, and a process may end in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text

from app.store.database import Tx, any_row, run

_CALM = ("vm.planned", "vm.creating", "vm.booting", "claim.renewed")
"""Events that no plan depends on."""

_BEGIN = text("""
    INSERT INTO event_reader (name, xid, id) VALUES ('plan', '0', 0) ON CONFLICT DO NOTHING
""")
_ANY = text("""
    SELECT 1 FROM event e, event_reader r WHERE r.name = 'plan' AND e.xid < pg_snapshot_xmin(pg_current_snapshot())
      AND (e.xid, e.id) > (least(r.xid, pg_snapshot_xmin(pg_current_snapshot())), r.id) LIMIT 1
""")
# A pool that was planned since its event is left alone. One replica at a time; what is younger than the delay is read later,
# when most of it has been planned already.
_REQUEST = text("""
    WITH reader AS MATERIALIZED (SELECT xid, id FROM event_reader WHERE name = 'plan' FOR UPDATE SKIP LOCKED),
    news AS MATERIALIZED (
        SELECT e.* FROM reader r CROSS JOIN LATERAL (
            SELECT xid, id, at, pool_id, type, coalesce(data->>'snapshot', data->>'preload') AS source FROM event
            WHERE (event.xid, event.id) > (least(r.xid, pg_snapshot_xmin(pg_current_snapshot())), r.id)
              AND event.xid < pg_snapshot_xmin(pg_current_snapshot())
            ORDER BY event.xid, event.id LIMIT :limit) e),
    young AS MATERIALIZED (
        SELECT xid, id FROM news WHERE at > now() - make_interval(secs => :delay) ORDER BY xid, id LIMIT 1),
    read AS MATERIALIZED (SELECT * FROM news n WHERE NOT EXISTS (SELECT 1 FROM young y WHERE (n.xid, n.id) >= (y.xid, y.id))),
    changed AS (
        SELECT pool_id, at FROM read WHERE pool_id IS NOT NULL AND NOT (type = ANY(CAST(:calm AS text[])))
        UNION ALL
        SELECT p.id, r.at FROM read r JOIN pool p ON p.source = r.source AND p.deleted_at IS NULL),
    requested AS (
        INSERT INTO plan_request (pool_id)
        SELECT DISTINCT q.pool_id FROM changed c JOIN pool_plan q ON q.pool_id = c.pool_id
        WHERE q.planned_at IS NULL OR q.planned_at < c.at RETURNING pool_id),
    listed AS (
        INSERT INTO bound_event (pool_id, xid, id) SELECT pool_id, xid, id FROM read WHERE type = 'claim.bound' ON CONFLICT DO NOTHING),
    moved AS (
        UPDATE event_reader SET (xid, id) = (SELECT xid, id FROM read ORDER BY xid DESC, id DESC LIMIT 1)
        WHERE name = 'plan' AND EXISTS (SELECT 1 FROM read))
    SELECT (SELECT count(*) FROM requested) AS requested, (SELECT count(*) FROM read) AS read
""")
_ON_NODES = text("""
    INSERT INTO plan_request (pool_id)
    SELECT DISTINCT pool_id FROM vm WHERE ended_at IS NULL AND state = 'ready' AND node = ANY(CAST(:names AS text[]))
""")
_SPREAD = text("""
    UPDATE pool_plan SET due_at = now() + make_interval(secs => :seconds * random()) WHERE pool_id = ANY(ARRAY(
        SELECT pool_id FROM pool_plan WHERE due_at > now() + make_interval(secs => :seconds) FOR UPDATE SKIP LOCKED))
""")


@dataclass(frozen=True, slots=True)
class Found:
    """How many pools are to be planned, and how many events were read."""

    pools: int
    events: int


async def begin(tx: Tx) -> None:
    """Has `request_changed` begin with the first event, unless a process has begun before."""
    await run(tx, _BEGIN)


async def request_changed(tx: Tx, *, delay_seconds: float, limit: int) -> Found:
    """Asks for a plan of each pool with an event of which no plan was made since. Reads up to `limit` events that are older than
    `delay_seconds`, each once, and keeps by pool which of them are of warm claims: lists of events find them there.
    """
    if not await any_row(tx, _ANY):
        return Found(0, 0)  # without a lock, which would be a write
    row = (await run(tx, _REQUEST, delay=delay_seconds, limit=limit, calm=list(_CALM))).one()
    return Found(row.requested, row.read)


async def request_on_nodes(tx: Tx, names: Sequence[str]) -> None:
    """Asks for a plan of each pool that has a ready VM on one of these nodes."""
    await run(tx, _ON_NODES, names=list(names))


async def spread(tx: Tx, *, seconds: float) -> None:
    """Every pool is due within `seconds`."""
    await run(tx, _SPREAD, seconds=seconds)
