"""Claims that describe their VM: the choice that was made for each, and its change to another path.

Rows are locked in the order of `store.claims.rows`: a place in a queue, then the claim.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from app.store.claims.rows import StoredChoice
from app.store.database import Tx, any_row, run

# The VM may have been labelled before its marks were known.
_EXPLAIN = text("""
    UPDATE claim SET shape = :shape, choice = :choice, allowed = CAST(:allowed AS text[]), marks = :marks,
        labelled = false, label_due_at = now()
    WHERE id = :id AND (:whatever OR EXISTS (
        SELECT 1 FROM vm v JOIN pool p ON p.id = v.pool_id WHERE v.id = claim.vm_id
          AND (v.shape = :shape OR (v.shape IS NULL AND v.revision = p.revision AND p.shape = :shape)))) RETURNING id
""").bindparams(bindparam("choice", type_=JSONB), bindparam("marks", type_=JSONB))
_REMEMBER = text("""
    UPDATE claim SET choice = choice || jsonb_build_object('remembered', CAST(:remembered AS jsonb)) WHERE id = :id AND choice IS NOT NULL
""").bindparams(bindparam("remembered", type_=JSONB))

# Few pools are in trouble. A claim that waits long in an on-demand pool is looked at too: its source may be gone.
_STUCK = text("""
    SELECT q.claim_id, q.pool_id FROM claim_queue q JOIN claim c ON c.id = q.claim_id JOIN pool p ON p.id = q.pool_id
    WHERE c.allowed IS NOT NULL AND c.state = 'pending' AND (
        p.deleting_at IS NOT NULL OR p.stalled_at IS NOT NULL OR p.paused
        OR (p.kind = 'on_demand' AND p.path <> 'cold' AND (
            p.last_failure_at > (c.choice->>'at')::timestamptz
            OR (c.choice->>'at')::timestamptz < now() - make_interval(secs => :patience)
                AND EXISTS (SELECT 1 FROM vm v WHERE v.pool_id = p.id AND v.ended_at IS NULL AND v.state = 'planned' AND v.health IS NOT NULL))))
    ORDER BY random() LIMIT :limit
""")
_LOCK_PLACE = text("SELECT 1 FROM claim_queue WHERE claim_id = :id AND pool_id = :pool_id FOR UPDATE SKIP LOCKED")
_LOCK_CLAIM = text("SELECT id FROM claim WHERE id = :id AND state = 'pending' FOR UPDATE")
_MOVE = text("""
    WITH left_behind AS (DELETE FROM claim_queue WHERE claim_id = :id),
    moved AS (
        UPDATE claim SET pool_id = :pool_id, choice = choice || :choice, reason = :reason WHERE id = :id RETURNING id),
    noted AS (INSERT INTO event (type, pool_id, claim_id, data)
        SELECT 'claim.failed_over', CAST(:pool_id AS uuid), id, jsonb_build_object('path', CAST(:path AS text), 'reason', CAST(:reason AS text))
        FROM moved)
    SELECT id FROM moved
""").bindparams(bindparam("choice", type_=JSONB))
_QUEUE = text("INSERT INTO claim_queue (pool_id, claim_id) VALUES (:pool_id, :id)")


@dataclass(frozen=True, slots=True)
class StuckClaim:
    id: UUID
    pool_id: UUID


async def explain(tx: Tx, claim_id: UUID, written: StoredChoice, *, whatever_vm: bool = False) -> bool:
    """Writes the choice to the claim's row. False where the claim's VM does not have that shape: nothing was written.

    With `whatever_vm` the VM's shape is not checked.
    """
    return await any_row(
        tx,
        _EXPLAIN,
        id=claim_id,
        shape=written.shape,
        choice=written.choice,
        allowed=list(written.allowed),
        marks=written.marks.as_json(),
        whatever=whatever_vm,
    )


async def remember(tx: Tx, claim_id: UUID, remembered: dict[str, Any]) -> None:
    """Writes to the claim's row what was kept for the next claim of the same shape."""
    await run(tx, _REMEMBER, id=claim_id, remembered=remembered)


async def stuck(tx: Tx, *, patience_seconds: float, limit: int) -> list[StuckClaim]:
    """Some of the claims that may wait in vain: their pool is stalled, paused or being deleted, or one of its VMs failed or has
    been waiting for its source for long. In random order, so that claims with no other path do not hide the rest.
    """
    rows = await run(tx, _STUCK, patience=patience_seconds, limit=limit)
    return [StuckClaim(row.claim_id, row.pool_id) for row in rows]


async def lock(tx: Tx, claim: StuckClaim) -> bool:
    """Locks the claim with its place until `tx` ends; False where it no longer waits there, or is being served."""
    if not await any_row(tx, _LOCK_PLACE, id=claim.id, pool_id=claim.pool_id):
        return False
    return await any_row(tx, _LOCK_CLAIM, id=claim.id)


async def move(tx: Tx, claim_id: UUID, *, pool_id: UUID, path: str, choice: dict[str, Any], reason: str) -> None:
    """Moves a pending claim, which the caller has locked, to the end of another pool's queue."""
    await run(tx, _MOVE, id=claim_id, pool_id=pool_id, path=path, choice=choice, reason=reason)
    await run(tx, _QUEUE, id=claim_id, pool_id=pool_id)
