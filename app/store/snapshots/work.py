"""Snapshots as work: each is taken by one worker under a lease (token and expiry), and written while the token still holds.

A snapshot that is taken is not due again until it is rested; what wakes it meanwhile is kept. One whose worker died is taken
once the lease is over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.snapshots import TakeState

_TAKE = text("""
    WITH due AS (
        SELECT id FROM snapshot
        WHERE deleted_at IS NULL AND (due_at <= now() AND lease_token IS NULL OR lease_expires_at < now())
        ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED)
    UPDATE snapshot s SET attempts = attempts + 1, due_at = 'infinity', lease_token = :token,
        lease_expires_at = now() + make_interval(secs => :seconds)
    FROM due WHERE s.id = due.id RETURNING s.id, s.name, s.attempts
""")
_HOLDS = text("""
    UPDATE snapshot SET lease_expires_at = now() + make_interval(secs => :seconds)
    WHERE id = :id AND lease_token = :token RETURNING id
""")
_REST = text("""
    UPDATE snapshot SET due_at = least(due_at, now() + make_interval(secs => :seconds)), lease_token = NULL,
        lease_expires_at = NULL, attempts = CASE WHEN :well THEN 0 ELSE attempts END
    WHERE id = :id AND lease_token = :token
""")
_HAND_BACK = text("""
    UPDATE snapshot SET due_at = now(), lease_token = NULL, lease_expires_at = NULL WHERE lease_token = :token
""")
# The VM's row is claimed by us, so that nobody else changes what it is for.
_MARK_STOPPED = text("""
    UPDATE vm SET stopped = true FROM claim c
    WHERE c.id = :claim_id AND c.state = 'bound' AND vm.id = c.vm_id AND vm.state = 'claimed' AND vm.claim_id = c.id
    RETURNING vm.id
""")
_STARTED_FROM = text("""
    SELECT count(*) FROM vm
    WHERE source = :name AND path = 'snapshot' AND ended_at IS NULL AND asked_at < CAST(:before AS timestamptz)
      AND state IN ('planned', 'creating', 'booting')
""")
# What a VM that has a node began with is its own by then. One without waits for disks that were to be made from a lost take.
_STRANDED = text("""
    SELECT v.id, v.source FROM vm v JOIN snapshot s ON s.name = v.source AND s.deleted_at IS NULL
    WHERE v.path = 'snapshot' AND v.ended_at IS NULL AND v.state IN ('creating', 'booting') AND v.node IS NULL
      AND EXISTS (SELECT 1 FROM snapshot_take t
                  WHERE t.snapshot_id = s.id AND t.state IN ('failing', 'failed') AND t.ready_at <= v.asked_at)
      AND NOT EXISTS (SELECT 1 FROM snapshot_take t
                      WHERE t.snapshot_id = s.id AND t.state IN ('ready', 'retiring') AND t.ready_at <= v.asked_at)
    ORDER BY v.id LIMIT :limit
""")
_VM_SHAPE = text("SELECT shape FROM vm WHERE name = :name AND ended_at IS NULL")
_STATES = text("SELECT id, state FROM snapshot_take WHERE id = ANY(CAST(:ids AS uuid[]))")
_READY = text("""
    SELECT t.id, t.snapshot_id FROM snapshot_take t JOIN snapshot s ON s.id = t.snapshot_id
    WHERE t.state = 'ready' AND s.deleted_at IS NULL AND t.object_uid IS NOT NULL
""")


@dataclass(frozen=True, slots=True)
class SnapshotWork:
    """One snapshot that this worker may call the cluster for. `attempts`: in a row that did not end well, with this one."""

    id: UUID
    name: str
    attempts: int


async def take_due(tx: AsyncConnection, *, token: UUID, limit: int, seconds: float) -> list[SnapshotWork]:
    """Snapshots that are due, and those that a dead worker left."""
    rows = (await tx.execute(_TAKE, {"token": token, "limit": limit, "seconds": seconds})).mappings()
    return [SnapshotWork(**row) for row in rows]


async def holds(tx: AsyncConnection, snapshot_id: UUID, *, token: UUID, seconds: float) -> bool:
    """Whether the work is still ours; it is then for `seconds` more, and the row is locked until `tx` ends."""
    params = {"id": snapshot_id, "token": token, "seconds": seconds}
    return (await tx.execute(_HOLDS, params)).first() is not None


async def rest(tx: AsyncConnection, snapshot_id: UUID, *, token: UUID, seconds: float, well: bool) -> None:
    """Gives the work back, to be looked at again after `seconds`, or at once where it was woken meanwhile."""
    await tx.execute(_REST, {"id": snapshot_id, "token": token, "seconds": seconds, "well": well})


async def hand_back(tx: AsyncConnection, *, token: UUID) -> None:
    """Gives back all that a stopping worker still holds, to be taken at once by another."""
    await tx.execute(_HAND_BACK, {"token": token})


async def mark_stopped(tx: AsyncConnection, claim_id: UUID) -> bool:
    """The VM of our claim is going to be stopped by us. False where the claim holds none any more."""
    return (await tx.execute(_MARK_STOPPED, {"claim_id": claim_id})).first() is not None


async def starting_from(tx: AsyncConnection, name: str, *, before: datetime) -> int:
    """VMs that are still on their way, from the snapshot of that name, and were first asked for before that moment."""
    count: int = (await tx.execute(_STARTED_FROM, {"name": name, "before": before})).scalar_one()
    return count


async def stranded(tx: AsyncConnection, *, limit: int) -> dict[UUID, str]:
    """VMs on their way that have no node yet and began with a take that has been lost since, each with its snapshot's name."""
    return {row.id: row.source for row in await tx.execute(_STRANDED, {"limit": limit})}


async def shape_of_vm(tx: AsyncConnection, name: str) -> str | None:
    """The shape of a VM of ours; None where it is none of ours, or has none."""
    row = (await tx.execute(_VM_SHAPE, {"name": name})).first()
    return row.shape if row else None


async def states_of(tx: AsyncConnection, take_ids: Sequence[UUID]) -> dict[UUID, TakeState]:
    """The state of each of these takes that is known."""
    return {row.id: TakeState(row.state) for row in await tx.execute(_STATES, {"ids": list(take_ids)})}


async def ready_objects(tx: AsyncConnection) -> dict[UUID, UUID]:
    """Every ready take whose object is known, with its snapshot's id."""
    return {row.id: row.snapshot_id for row in await tx.execute(_READY)}
