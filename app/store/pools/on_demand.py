"""Pools by the shape of their VMs: users' pools that serve a shape warm, and the on-demand pools of one shape and path.

An on-demand pool has size 0 and users do not see it: its VMs are made for the claims in its queue. It is deleted in one step,
once it has no VM and no claim; whoever puts a claim into it locks its row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text

from app.ids import lowest_id_at
from app.store.database import Tx, first, mappings, run
from app.store.rows import POOL_COLUMNS, PoolRow, read_pool

_BY_NAME = text(f"""
    SELECT {POOL_COLUMNS} FROM pool p WHERE p.name = :name AND p.kind = 'on_demand' AND p.deleted_at IS NULL FOR NO KEY UPDATE OF p
""")
# `mixed`: while a new template replaces the pool's VMs, a claim could get one of the old template.
_SERVING = text(f"""
    SELECT {POOL_COLUMNS}, EXISTS (
        SELECT 1 FROM vm v WHERE v.pool_id = p.id AND v.ended_at IS NULL AND v.state IN ('creating', 'booting', 'ready')
          AND v.revision <> p.revision AND v.shape IS DISTINCT FROM p.shape) AS mixed
    FROM pool p WHERE p.shape = :shape AND p.kind = 'pool' AND p.deleted_at IS NULL ORDER BY p.name LIMIT 50
""")
_OF_SHAPE = text(f"""
    SELECT {POOL_COLUMNS}, (SELECT count(*) FROM claim_queue q WHERE q.pool_id = p.id) AS waiting FROM pool p WHERE p.shape = :shape AND p.kind = 'on_demand' AND p.deleted_at IS NULL
""")

# A pool that is being planned is skipped: the planner may be about to make a VM.
_IDLE = text("""
    SELECT q.pool_id FROM pool_plan q JOIN pool p ON p.id = q.pool_id
    WHERE p.kind = 'on_demand' AND p.deleted_at IS NULL AND p.created_at < now() - make_interval(secs => :seconds)
      AND NOT EXISTS (SELECT 1 FROM vm WHERE vm.pool_id = p.id AND vm.ended_at IS NULL)
      AND NOT EXISTS (SELECT 1 FROM claim_queue WHERE claim_queue.pool_id = p.id)
      AND NOT EXISTS (SELECT 1 FROM claim WHERE claim.pool_id = p.id AND claim.id >= CAST(:since AS uuid))
    ORDER BY p.id LIMIT :limit FOR UPDATE OF q, p SKIP LOCKED
""")
_RETIRE = text("""
    UPDATE pool SET deleting_at = now(), deleted_at = now() WHERE id = ANY(CAST(:ids AS uuid[]))
      AND NOT EXISTS (SELECT 1 FROM vm WHERE vm.pool_id = pool.id AND vm.ended_at IS NULL)
      AND NOT EXISTS (SELECT 1 FROM claim_queue WHERE claim_queue.pool_id = pool.id)
    RETURNING id
""")
_DROP_PLANS = text("DELETE FROM pool_plan WHERE pool_id = ANY(CAST(:ids AS uuid[]))")


@dataclass(frozen=True, slots=True)
class ServingPool:
    """A pool whose template has the shape. `mixed`: some of its VMs are of an older template with another shape."""

    pool: PoolRow
    mixed: bool


@dataclass(frozen=True, slots=True)
class OnDemandPool:
    """`waiting`: how many claims are in its queue."""

    pool: PoolRow
    waiting: int


async def lock(tx: Tx, name: str) -> PoolRow | None:
    """The on-demand pool of that name, locked so that it is not retired before `tx` ends."""
    row = await first(tx, _BY_NAME, name=name)
    return read_pool(row) if row else None


async def serving(tx: Tx, shape: str) -> list[ServingPool]:
    """The users' pools of that shape, by name, including those that are being deleted."""
    return [ServingPool(*_with(row, "mixed")) for row in await mappings(tx, _SERVING, shape=shape)]


async def of_shape(tx: Tx, shape: str) -> list[OnDemandPool]:
    return [OnDemandPool(*_with(row, "waiting")) for row in await mappings(tx, _OF_SHAPE, shape=shape)]


async def retire_idle(tx: Tx, *, seconds: float, limit: int) -> list[UUID]:
    """Deletes on-demand pools that have no VM and no waiting claim and got no claim for `seconds`; returns which ones."""
    since = lowest_id_at(datetime.now(UTC) - timedelta(seconds=seconds))
    idle = [row.pool_id for row in await run(tx, _IDLE, seconds=seconds, since=since, limit=limit)]
    # In a statement of its own, which sees a claim that was added before the rows were locked.
    gone = [row.id for row in await run(tx, _RETIRE, ids=idle)] if idle else []
    await run(tx, _DROP_PLANS, ids=gone)
    return gone


def _with(row: Mapping[Any, Any], extra: str) -> tuple[PoolRow, Any]:
    """A pool, and one more column of its row."""
    return read_pool({key: value for key, value in row.items() if key != extra}), row[extra]
