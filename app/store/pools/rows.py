"""Pool rows: written by name, listed, and their failures counted."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from app.domain.failures import FailureVerdict
from app.domain.pools import PoolSpec
from app.domain.templates import VmSpec
from app.store.database import Tx, any_row, first, mappings, read_page, run
from app.store.notices import Topic, notify
from app.store.pools import planning
from app.store.rows import POOL_COLUMNS, PoolRow, read_pool

_BY_NAME = f"SELECT {POOL_COLUMNS} FROM pool p WHERE p.name = :name AND p.deleted_at IS NULL"
_BY_IDS = text(f"SELECT {POOL_COLUMNS} FROM pool p WHERE p.id = ANY(CAST(:ids AS uuid[]))")
_PAGE = text(f"""
    SELECT {POOL_COLUMNS} FROM pool p WHERE p.deleted_at IS NULL AND p.kind = 'pool' AND p.name > :after ORDER BY p.name LIMIT :limit
""")

# A spec names a snapshot; that one says whether VMs start from its memory.
_PATH = """CASE WHEN CAST(:path AS text) = 'snapshot' AND EXISTS (
        SELECT 1 FROM snapshot s WHERE s.name = CAST(:source AS text) AND s.memory AND s.deleted_at IS NULL)
        THEN 'memory' ELSE CAST(:path AS text) END"""
_INSERT = text(f"""
    INSERT INTO pool (id, name, spec, vm_spec, revision, kind, shape, path, source)
    VALUES (:id, :name, :spec, :vm_spec, :revision, :kind, :shape, {_PATH}, :source)
    ON CONFLICT (name) WHERE deleted_at IS NULL DO NOTHING RETURNING id
""").bindparams(bindparam("spec", type_=JSONB), bindparam("vm_spec", type_=JSONB))
_INSERT_PLAN = text("INSERT INTO pool_plan (pool_id) VALUES (:id)")

# An edit resets the backoff and the breaker: whoever edits has seen the failures.
_REPLACE = text(f"""
    UPDATE pool SET spec = :spec, vm_spec = :vm_spec, revision = :revision, shape = :shape, path = {_PATH}, source = :source,
        generation = generation + 1, updated_at = now(),
        refilled_at = CASE WHEN (spec->>'size')::int <> :size OR revision <> :revision
            OR (spec->>'auto_replenish')::boolean <> :replenishes THEN now() ELSE refilled_at END,
        consecutive_failures = 0, backoff_until = NULL, stalled_at = NULL
    WHERE id = :id
""").bindparams(bindparam("spec", type_=JSONB), bindparam("vm_spec", type_=JSONB))

# By the clock rather than the start of the transaction: it may have waited for the row while a VM was begun.
_ROTATE = text("UPDATE pool SET rotated_at = clock_timestamp() WHERE id = :id")
_REPLENISH = text("UPDATE pool SET refilled_at = now() WHERE id = :id")
_PAUSE = text("UPDATE pool SET paused = :paused, updated_at = now() WHERE id = :id AND paused <> :paused RETURNING id")
_RESET = text("""
    UPDATE pool SET consecutive_failures = 0, backoff_until = NULL, stalled_at = NULL
    WHERE id = ANY(CAST(:ids AS uuid[])) AND (consecutive_failures > 0 OR stalled_at IS NOT NULL)
    RETURNING id, stalled_at
""")
_BEGIN_DELETE = text("UPDATE pool SET deleting_at = now() WHERE id = :id AND deleting_at IS NULL RETURNING id")
_END_DELETE = text("""
    UPDATE pool SET deleted_at = now() WHERE id = :id AND deleting_at IS NOT NULL AND deleted_at IS NULL
      AND NOT EXISTS (SELECT 1 FROM vm WHERE pool_id = :id AND ended_at IS NULL)
      AND NOT EXISTS (SELECT 1 FROM claim_queue WHERE pool_id = :id)
      AND NOT EXISTS (SELECT 1 FROM vm_pool WHERE pool_id = :id AND deleted_at IS NULL)
    RETURNING id
""")
_DROP_PLAN = text("DELETE FROM pool_plan WHERE pool_id = :id")
# NO KEY: inserting a VM, which refers to the pool, need not wait.
_LOCK = text("SELECT consecutive_failures, last_failure_at FROM pool WHERE id = :id FOR NO KEY UPDATE")
_FAILED = text("""
    UPDATE pool SET consecutive_failures = :consecutive, last_failure = :reason, last_failure_at = now(),
        backoff_until = :backoff_until, stalled_at = CASE WHEN :stalled THEN coalesce(stalled_at, now()) ELSE stalled_at END
    WHERE id = :id
""")
_PRUNE = text("""
    DELETE FROM pool WHERE deleted_at < now() - make_interval(secs => :seconds)
      AND NOT EXISTS (SELECT 1 FROM vm WHERE vm.pool_id = pool.id)
      AND NOT EXISTS (SELECT 1 FROM claim WHERE claim.pool_id = pool.id)
""")


async def get(tx: Tx, name: str, *, lock: bool = False) -> PoolRow | None:
    """The pool of that name; with `lock` no other writer changes it until `tx` ends."""
    row = await first(tx, text(_BY_NAME + (" FOR UPDATE" if lock else "")), name=name)
    return read_pool(row) if row else None


async def get_by_id(tx: Tx, pool_id: UUID) -> PoolRow | None:
    return (await by_ids(tx, [pool_id])).get(pool_id)


async def by_ids(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, PoolRow]:
    return {row["id"]: read_pool(row) for row in await mappings(tx, _BY_IDS, ids=list(ids))}


async def page(tx: Tx, *, after: str, limit: int) -> list[PoolRow]:
    """By name, those after `after`."""
    return await read_page(tx, _PAGE, read_pool, after=after, limit=limit)


async def insert(
    tx: Tx,
    *,
    pool_id: UUID,
    name: str,
    spec: PoolSpec,
    vm_spec: VmSpec,
    revision: str,
    shape: str,
    kind: str = "pool",
) -> bool:
    """False if there is a pool of that name already."""
    written = _written(spec, vm_spec, revision, shape)
    if not await any_row(tx, _INSERT, id=pool_id, name=name, kind=kind, **written):
        return False
    await run(tx, _INSERT_PLAN, id=pool_id)
    return True


async def replace(tx: Tx, pool_id: UUID, *, spec: PoolSpec, vm_spec: VmSpec, revision: str, shape: str) -> None:
    written = _written(spec, vm_spec, revision, shape)
    await run(tx, _REPLACE, id=pool_id, size=spec.size, replenishes=spec.auto_replenish, **written)


async def plan_soon(tx: Tx, *pool_ids: UUID) -> None:
    """The pools are due for planning, and planners are woken when `tx` commits."""
    if pool_ids:
        await planning.request(tx, sorted(set(pool_ids)))
        await notify(tx, Topic.PLAN)


async def replenish(tx: Tx, pool_id: UUID) -> None:
    await run(tx, _REPLENISH, id=pool_id)


async def rotate(tx: Tx, pool_id: UUID) -> None:
    """Every unclaimed VM that the cluster was asked for until now is to be replaced. A VM that a VirtualMachinePool made counts from
    when the service first saw it.
    """
    await run(tx, _ROTATE, id=pool_id)


async def set_paused(tx: Tx, pool_id: UUID, *, paused: bool) -> bool:
    """True if that changed anything."""
    return await any_row(tx, _PAUSE, id=pool_id, paused=paused)


async def forgive(tx: Tx, ids: Sequence[UUID]) -> list[UUID]:
    """Forgets the failures of these pools and ends their stalls. Returns those that had failures."""
    return [row.id for row in await run(tx, _RESET, ids=list(ids))]


async def begin_delete(tx: Tx, pool_id: UUID) -> bool:
    return await any_row(tx, _BEGIN_DELETE, id=pool_id)


async def end_delete(tx: Tx, pool_id: UUID) -> bool:
    """Deletes a pool that is being deleted and has no VM, no pending claim and no VirtualMachinePool left. Its name is free then."""
    if not await any_row(tx, _END_DELETE, id=pool_id):
        return False
    await run(tx, _DROP_PLAN, id=pool_id)
    return True


async def lock_failures(tx: Tx, pool_id: UUID) -> tuple[int, datetime | None]:
    """Failures in a row, and when the last one was counted. The row is locked until `tx` ends."""
    row = (await run(tx, _LOCK, id=pool_id)).one()
    return row.consecutive_failures, row.last_failure_at


async def write_failure(tx: Tx, pool_id: UUID, verdict: FailureVerdict, *, reason: str) -> None:
    consecutive, backoff_until, stalled = verdict.consecutive, verdict.backoff_until, verdict.stalled
    await run(
        tx, _FAILED, id=pool_id, reason=reason, consecutive=consecutive, backoff_until=backoff_until, stalled=stalled
    )


async def prune(tx: Tx, *, seconds: float) -> int:
    """Deletes the rows of pools that were deleted more than `seconds` ago and have no rows of VMs and claims any more."""
    return (await run(tx, _PRUNE, seconds=seconds)).rowcount


def _written(spec: PoolSpec, vm_spec: VmSpec, revision: str, shape: str) -> dict[str, object]:
    kept = {"vm_spec": vm_spec, "revision": revision, "shape": shape, "path": str(spec.path), "source": spec.source}
    # A pool without it can also be read by a program that does not know the field.
    unknown = {"guest"} if spec.guest is None else None
    return {"spec": spec.model_dump(mode="json", exclude=unknown), **kept}
