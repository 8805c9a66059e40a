"""Pools by the shape of their VMs: those that serve a shape warm, and the hidden ones that stand for one shape and path.

A hidden pool (`kind` 'on_demand') is of no size and shown to nobody: its VMs are made for the claims in its queue. It is not
deleted in steps as others are: it goes in one, once nothing hangs on it, and whoever puts a claim into it holds its row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.ids import lowest_id_at
from app.store.rows import POOL_COLUMNS, PoolRow, read_pool

_HIDDEN = text(f"""
    SELECT {POOL_COLUMNS} FROM pool p WHERE p.name = :name AND p.kind = 'on_demand' AND p.deleted_at IS NULL FOR NO KEY UPDATE OF p
""")
# Of the pool's ready VMs every one must be of the shape: while a new template rotates them, a claim could get an old one.
_SERVING = text(f"""
    SELECT {POOL_COLUMNS}, EXISTS (
        SELECT 1 FROM vm v WHERE v.pool_id = p.id AND v.ended_at IS NULL AND v.state IN ('creating', 'booting', 'ready')
          AND v.revision <> p.revision AND v.shape IS DISTINCT FROM p.shape) AS mixed
    FROM pool p WHERE p.shape = :shape AND p.kind = 'pool' AND p.deleted_at IS NULL ORDER BY p.name LIMIT 50
""")
_HIDDEN_OF_SHAPE = text(f"""
    SELECT {POOL_COLUMNS} FROM pool p WHERE p.shape = :shape AND p.kind = 'on_demand' AND p.deleted_at IS NULL
""")

# A planner that has the pool's plan is let be, for it may be about to make a VM.
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


async def hidden(tx: AsyncConnection, name: str) -> PoolRow | None:
    """The hidden pool of that name, which stays until `tx` ends."""
    row = (await tx.execute(_HIDDEN, {"name": name})).mappings().first()
    return read_pool(row) if row else None


async def serving(tx: AsyncConnection, shape: str) -> list[ServingPool]:
    """The users' pools of that shape, by name; those that are being deleted among them."""
    rows = (await tx.execute(_SERVING, {"shape": shape})).mappings()
    return [
        ServingPool(read_pool({key: value for key, value in row.items() if key != "mixed"}), row["mixed"])
        for row in rows
    ]


async def hidden_of_shape(tx: AsyncConnection, shape: str) -> list[PoolRow]:
    return [read_pool(row) for row in (await tx.execute(_HIDDEN_OF_SHAPE, {"shape": shape})).mappings()]


async def retire_idle(tx: AsyncConnection, *, seconds: float, limit: int) -> list[UUID]:
    """Drops hidden pools that have no VM and no waiting claim, and were given none for `seconds`; which ones."""
    since = lowest_id_at(datetime.now(UTC) - timedelta(seconds=seconds))
    idle = [row.pool_id for row in await tx.execute(_IDLE, {"seconds": seconds, "since": since, "limit": limit})]
    return await _retire(tx, idle) if idle else []


async def _retire(tx: AsyncConnection, ids: Sequence[UUID]) -> list[UUID]:
    """A look of its own: a claim that was put in before the rows were locked shows only now."""
    gone = [row.id for row in await tx.execute(_RETIRE, {"ids": list(ids)})]
    await tx.execute(_DROP_PLANS, {"ids": gone})
    return gone
