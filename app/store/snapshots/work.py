"""Snapshots as work for a reconciler: each is leased to one worker, and written while the lease holds.

A leased snapshot is due at `infinity`, so that `due_at` remembers whether somebody made it due meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text

from app.domain.snapshots import TakeState
from app.domain.templates import VmSpec
from app.store.database import Tx, any_row, mappings, run
from app.store.leases import ACQUIRE, RELEASE, RowLeases

LEASES = RowLeases("snapshot")

_ACQUIRE_DUE = text(f"""
    WITH due AS (
        SELECT id FROM snapshot
        WHERE deleted_at IS NULL AND (due_at <= now() AND lease_token IS NULL OR lease_expires_at < now())
        ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED)
    UPDATE snapshot s SET attempts = attempts + 1, due_at = 'infinity', {ACQUIRE}
    FROM due WHERE s.id = due.id RETURNING s.id, s.name, s.attempts
""")
_RENEW = text("""
    UPDATE snapshot SET lease_expires_at = now() + make_interval(secs => :seconds)
    WHERE id = :id AND lease_token = :token RETURNING id
""")
_FINISH = text(f"""
    UPDATE snapshot SET due_at = least(due_at, now() + make_interval(secs => :seconds)), {RELEASE},
        attempts = CASE WHEN :failed THEN attempts ELSE 0 END
    WHERE id = :id AND lease_token = :token
""")
# The VM is claimed by us, so nobody else changes its state.
_MARK_STOPPED = text("""
    UPDATE vm SET stopped = true FROM claim c
    WHERE c.id = :claim_id AND c.state = 'bound' AND vm.id = c.vm_id AND vm.state = 'claimed' AND vm.claim_id = c.id
    RETURNING vm.id
""")
_STARTED_FROM = text("""
    SELECT count(*) FROM vm
    WHERE source = :name AND path IN ('memory', 'snapshot') AND ended_at IS NULL AND asked_at < CAST(:before AS timestamptz)
      AND state IN ('planned', 'creating', 'booting')
""")
# A VM that has a node has its disks. One that has none waits for disks that were to be made from a take that is lost.
_STRANDED = text("""
    SELECT v.id, v.source FROM vm v JOIN snapshot s ON s.name = v.source AND s.deleted_at IS NULL
    WHERE v.path IN ('memory', 'snapshot') AND v.ended_at IS NULL AND v.state IN ('creating', 'booting') AND v.node IS NULL
      AND EXISTS (SELECT 1 FROM snapshot_take t
                  WHERE t.snapshot_id = s.id AND t.state IN ('failing', 'failed') AND t.ready_at <= v.asked_at)
      AND NOT EXISTS (SELECT 1 FROM snapshot_take t
                      WHERE t.snapshot_id = s.id AND t.state IN ('ready', 'retiring') AND t.ready_at <= v.asked_at)
    ORDER BY v.id LIMIT :limit
""")
_VM_SHAPE = text("SELECT shape FROM vm WHERE name = :name AND ended_at IS NULL")
# A VM of an older template than its pool's was made from another spec.
_VM_SPEC = text("""
    SELECT p.vm_spec FROM vm v JOIN pool p ON p.id = v.pool_id
    WHERE v.name = :name AND v.ended_at IS NULL AND v.revision = p.revision
""")
_DOUBT = text("""
    UPDATE snapshot SET due_at = now() WHERE deleted_at IS NULL AND memory AND name = ANY(ARRAY(
        SELECT source FROM vm WHERE id = ANY(CAST(:ids AS uuid[])) AND path = 'memory'))
    RETURNING id
""")
_STATES = text("SELECT id, state FROM snapshot_take WHERE id = ANY(CAST(:ids AS uuid[]))")
_READY = text("""
    SELECT t.id, t.snapshot_id FROM snapshot_take t JOIN snapshot s ON s.id = t.snapshot_id
    WHERE t.state = 'ready' AND s.deleted_at IS NULL AND t.object_uid IS NOT NULL
""")


@dataclass(frozen=True, slots=True)
class SnapshotWork:
    """One snapshot that this worker may call the cluster for. `attempts`: how many in a row failed, this one included."""

    id: UUID
    name: str
    attempts: int


async def acquire_due(tx: Tx, *, token: UUID, limit: int, seconds: float) -> list[SnapshotWork]:
    """Snapshots that are due, and those whose lease expired."""
    rows = await mappings(tx, _ACQUIRE_DUE, token=token, limit=limit, seconds=seconds)
    return [SnapshotWork(**row) for row in rows]


async def renew(tx: Tx, snapshot_id: UUID, *, token: UUID, seconds: float) -> bool:
    """Renews the lease for `seconds`, and locks the row until `tx` ends. False if the token no longer holds it."""
    return await any_row(tx, _RENEW, id=snapshot_id, token=token, seconds=seconds)


async def finish(tx: Tx, snapshot_id: UUID, *, token: UUID, seconds: float, failed: bool = False) -> None:
    """Releases the snapshot, which is due again after `seconds`, or at once if somebody made it due meanwhile."""
    await run(tx, _FINISH, id=snapshot_id, token=token, seconds=seconds, failed=failed)


async def mark_stopped(tx: Tx, claim_id: UUID) -> bool:
    """Writes that we are about to stop the VM of our claim. False if the claim has no VM any more."""
    return await any_row(tx, _MARK_STOPPED, claim_id=claim_id)


async def starting_from(tx: Tx, name: str, *, before: datetime) -> int:
    """How many VMs start from the snapshot, are not ready, and were first asked for before that moment."""
    count: int = (await run(tx, _STARTED_FROM, name=name, before=before)).scalar_one()
    return count


async def stranded(tx: Tx, *, limit: int) -> dict[UUID, str]:
    """VMs that have no node yet and began with a take that was lost since, each with the name of its snapshot."""
    return {row.id: row.source for row in await run(tx, _STRANDED, limit=limit)}


async def shape_of_vm(tx: Tx, name: str) -> str | None:
    """The shape of one of our VMs; None if it is not ours or has no shape."""
    row = (await run(tx, _VM_SHAPE, name=name)).first()
    return row.shape if row else None


async def spec_of_vm(tx: Tx, name: str) -> VmSpec | None:
    """What one of our VMs was made from; None if it is not ours, or of an older template of its pool."""
    row = (await run(tx, _VM_SPEC, name=name)).first()
    return row.vm_spec if row else None


async def doubt(tx: Tx, vm_ids: Sequence[UUID]) -> bool:
    """VMs failed. Snapshots from whose memory they started are due, to find out whether it can still be restored; True if any is."""
    return await any_row(tx, _DOUBT, ids=list(vm_ids))


async def states_of(tx: Tx, take_ids: Sequence[UUID]) -> dict[UUID, TakeState]:
    """The state of each of these takes that has a row."""
    return {row.id: TakeState(row.state) for row in await run(tx, _STATES, ids=list(take_ids))}


async def ready_objects(tx: Tx) -> dict[UUID, UUID]:
    """Every ready take whose object is known, with the id of its snapshot."""
    return {row.id: row.snapshot_id for row in await run(tx, _READY)}
