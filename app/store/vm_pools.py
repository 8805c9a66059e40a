"""The VirtualMachinePools of pools, as work for a reconciler: leased to one worker, and written while the lease holds.

And the VMs that they make: each is assigned to a row by its UID, because a VirtualMachinePool uses names again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import RowMapping, text

from app.domain.paths import StartPath
from app.domain.states import VmState
from app.domain.templates import VmSpec
from app.domain.vm_pools import DesiredVmPool, VmPoolStatus, Written
from app.store.database import Tx, any_row, mappings, run
from app.store.leases import ACQUIRE, IS_FREE, RELEASE, RowLeases
from app.store.rows import names_of

LEASES = RowLeases("vm_pool", key="pool_id")
INCIDENT_SHOWN = timedelta(minutes=10)
"""How long the pool's notes show what somebody else did. The event of it stays."""

_INSERT = text(
    "INSERT INTO vm_pool (pool_id, name, uid, replicas, adopted) VALUES (:pool_id, :name, :uid, :replicas, :adopted)"
)

_WRITTEN = names_of(Written)
# VMs to be detached and replicas to be changed are work at once. After a failure they are work once the row is due again.
_ACQUIRE_DUE = text(f"""
    WITH due AS (
        SELECT o.pool_id FROM vm_pool o JOIN pool p ON p.id = o.pool_id
        WHERE o.deleted_at IS NULL AND {IS_FREE}
          AND (o.due_at <= now() OR (o.attempts = 0 AND (
            EXISTS (SELECT 1 FROM vm v WHERE v.pool_id = o.pool_id AND v.ended_at IS NULL AND v.member
                AND v.state IN ('claimed', 'failed', 'releasing'))
            OR o.replicas IS DISTINCT FROM (SELECT count(*) FROM vm v WHERE v.pool_id = o.pool_id AND v.ended_at IS NULL
                AND (v.state = 'planned' OR v.member AND v.state IN ('creating', 'booting', 'ready'))))))
        ORDER BY o.due_at LIMIT :limit FOR UPDATE OF o SKIP LOCKED)
    UPDATE vm_pool o SET attempts = attempts + 1, due_at = now(), {ACQUIRE}
    FROM due, pool p WHERE o.pool_id = due.pool_id AND p.id = o.pool_id
    RETURNING o.pool_id, p.name AS pool, o.name, o.round, o.adopted, o.attempts, o.incident, p.paused,
        {", ".join(f"o.{name} AS written_{name}" for name in _WRITTEN)}, p.deleting_at IS NOT NULL AS deleting, p.vm_spec, p.revision, p.path, p.source
""")
_LEAVING = text("""
    SELECT v.id, v.pool_id, v.name, v.uid, v.state, v.claim_id FROM vm v
    WHERE v.pool_id = :pool_id AND v.ended_at IS NULL AND v.member AND v.state = ANY(CAST(:states AS text[]))
    ORDER BY v.state <> 'claimed', v.id LIMIT :limit
""")
_COUNT = text("""
    SELECT count(*) FILTER (WHERE state = 'planned') AS planned,
        count(*) FILTER (WHERE member AND state IN ('creating', 'booting', 'ready')) AS kept
    FROM vm WHERE pool_id = :pool_id AND ended_at IS NULL
""")
_WRITE_STATUS = text("""
    UPDATE vm_pool SET uid = :uid, replicas = :replicas, generation = :generation, template = coalesce(:template, template),
        paused = :paused
    WHERE pool_id = :pool_id AND lease_token = :token
""")
_REPLACE = text("""
    UPDATE vm_pool SET uid = NULL, replicas = NULL, generation = NULL, template = NULL, paused = false, adopted = false,
        round = :round, name = :name
    WHERE pool_id = :pool_id AND lease_token = :token
""")
_INCIDENT = text("UPDATE vm_pool SET incident = :incident, incident_at = now() WHERE pool_id = :pool_id")
_FINISH = text(f"""
    UPDATE vm_pool SET reason = :reason, attempts = CASE WHEN :failed THEN attempts ELSE 0 END, {RELEASE},
        due_at = now() + make_interval(secs => :seconds)
    WHERE pool_id = :pool_id AND lease_token = :token
""")
_END = text("UPDATE vm_pool SET deleted_at = now() WHERE pool_id = :pool_id AND lease_token = :token RETURNING pool_id")
_ENROLLED = text("UPDATE vm_pool SET adopted = false WHERE pool_id = :pool_id AND lease_token = :token")
_NOTES = text("""
    SELECT reason, CASE WHEN incident_at > now() - CAST(:shown AS interval) THEN incident END AS incident
    FROM vm_pool WHERE pool_id = :pool_id
""")
_NAMES = text("SELECT name FROM vm_pool WHERE deleted_at IS NULL")
_OF_POOL = text("SELECT name, uid FROM vm_pool WHERE pool_id = :pool_id")

_DETACH = text("""
    WITH leaving AS (
        SELECT id FROM vm WHERE member AND ended_at IS NULL
          AND (id = ANY(CAST(:ids AS uuid[])) OR uid = ANY(CAST(:uids AS text[])) OR pool_id = :pool_id) ORDER BY id FOR UPDATE),
    freed AS (
        UPDATE vm SET member = false, due_at = now() FROM leaving WHERE vm.id = leaving.id
        RETURNING vm.id, vm.pool_id, vm.claim_id)
    INSERT INTO event (type, pool_id, vm_id, claim_id) SELECT 'vm.detached', pool_id, id, claim_id FROM freed
    RETURNING vm_id, pool_id
""")
_IDS_OF_UIDS = text("SELECT id, uid FROM vm WHERE uid = ANY(CAST(:uids AS text[])) AND ended_at IS NULL")

_WITH_VM_POOL = text("""
    SELECT p.id, p.revision, p.source FROM vm_pool o JOIN pool p ON p.id = o.pool_id
    WHERE o.pool_id = ANY(CAST(:ids AS uuid[])) AND p.deleted_at IS NULL
""")
_UNASSIGNED = text("""
    SELECT id FROM vm WHERE pool_id = :pool_id AND ended_at IS NULL AND state = 'planned' AND uid IS NULL
    ORDER BY created_at, id LIMIT :limit FOR UPDATE
""")
_ASSIGN = text("""
    UPDATE vm SET name = n.name, uid = n.uid, member = n.member, revision = n.revision, asked_at = coalesce(vm.asked_at, now()),
        shape = p.shape, path = p.path, source = p.source
    FROM unnest(CAST(:ids AS uuid[]), CAST(:names AS text[]), CAST(:uids AS text[]), CAST(:members AS bool[]),
        CAST(:revisions AS text[])) AS n(id, name, uid, member, revision), pool p
    WHERE vm.id = n.id AND p.id = vm.pool_id
""")


@dataclass(frozen=True, slots=True)
class VmPoolRow:
    """The VirtualMachinePool of one pool, which only this worker may change until its lease ends. `attempts` includes this one."""

    pool_id: UUID
    pool: str
    name: str
    round: int
    adopted: bool
    written: Written
    attempts: int
    incident: str | None
    paused: bool
    deleting: bool
    vm_spec: VmSpec
    revision: str
    path: StartPath
    source: str | None


@dataclass(frozen=True, slots=True)
class LeavingVm:
    """A VM that its VirtualMachinePool owns and must not own any longer, because it is claimed or will be removed."""

    id: UUID
    pool_id: UUID
    name: str
    uid: str
    state: VmState
    claim_id: UUID | None


@dataclass(frozen=True, slots=True)
class MadeVm:
    """A VM that a VirtualMachinePool made from the template of that revision."""

    name: str
    uid: str
    member: bool
    revision: str


@dataclass(frozen=True, slots=True)
class PoolOfVmPool:
    """A pool that has a VirtualMachinePool. `source`: the preload that its VMs start from."""

    revision: str
    source: str | None


async def insert(
    tx: Tx, pool_id: UUID, *, name: str, uid: str | None = None, replicas: int | None = None, adopted: bool = False
) -> None:
    """The pool is to have a VirtualMachinePool of that name. `adopted`: the cluster has it already."""
    await run(tx, _INSERT, pool_id=pool_id, name=name, uid=uid, replicas=replicas, adopted=adopted)


async def acquire_due(tx: Tx, *, token: UUID, limit: int, seconds: float) -> list[VmPoolRow]:
    rows = await mappings(tx, _ACQUIRE_DUE, token=token, limit=limit, seconds=seconds)
    return [_read(row) for row in rows]


async def leaving(tx: Tx, pool_id: UUID, *, states: Sequence[VmState], limit: int) -> list[LeavingVm]:
    """VMs that must be detached, claimed ones first."""
    rows = await mappings(tx, _LEAVING, pool_id=pool_id, states=[str(state) for state in states], limit=limit)
    return [LeavingVm(**{**row, "state": VmState(row["state"])}) for row in rows]


async def read_desired(tx: Tx, row: VmPoolRow, *, template: str | None) -> DesiredVmPool:
    """What the rows want of it now. Call it after `leaving` in the same transaction: it counts none of those."""
    counts = (await run(tx, _COUNT, pool_id=row.pool_id)).one()
    return DesiredVmPool(
        planned=counts.planned, kept=counts.kept, paused=row.paused, deleting=row.deleting, template=template
    )


async def write_status(
    tx: Tx, row: VmPoolRow, status: VmPoolStatus, *, token: UUID, template: str | None, paused: bool
) -> None:
    """What it is after our write. `template` None: the template was not written."""
    await run(
        tx,
        _WRITE_STATUS,
        pool_id=row.pool_id,
        token=token,
        uid=status.uid,
        replicas=status.replicas,
        generation=status.generation,
        template=template,
        paused=paused,
    )


async def replace(tx: Tx, row: VmPoolRow, *, token: UUID, name: str) -> None:
    """The cluster lost it, and another is to be made under another name."""
    await run(tx, _REPLACE, pool_id=row.pool_id, token=token, name=name, round=row.round + 1)


async def write_incident(tx: Tx, pool_id: UUID, incident: str) -> None:
    await run(tx, _INCIDENT, pool_id=pool_id, incident=incident)


async def finish(
    tx: Tx, pool_id: UUID, *, token: UUID, seconds: float, reason: str | None, failed: bool = False
) -> None:
    """Releases the row, which is due again after `seconds`; sooner if there is work for it, unless it `failed`."""
    await run(tx, _FINISH, pool_id=pool_id, token=token, seconds=seconds, reason=reason, failed=failed)


async def mark_enrolled(tx: Tx, pool_id: UUID, *, token: UUID) -> None:
    """All VMs that it had before the pool existed carry our labels."""
    await run(tx, _ENROLLED, pool_id=pool_id, token=token)


async def end(tx: Tx, pool_id: UUID, *, token: UUID) -> bool:
    """Its pool is being deleted, and the cluster has it no longer."""
    return await any_row(tx, _END, pool_id=pool_id, token=token)


async def notes(tx: Tx, pool_id: UUID) -> tuple[str, ...]:
    """What keeps it from making its VMs, and what somebody else did to it recently."""
    row = (await run(tx, _NOTES, pool_id=pool_id, shown=INCIDENT_SHOWN)).first()
    return tuple(each for each in (row.reason, row.incident) if each) if row else ()


async def known_names(tx: Tx) -> set[str]:
    """The names of all VirtualMachinePools that pools have, or are about to have."""
    return set((await run(tx, _NAMES)).scalars())


async def of_pool(tx: Tx, pool_id: UUID) -> tuple[str, str | None] | None:
    """Name and UID of the pool's VirtualMachinePool. None: the service creates its VMs one by one."""
    row = (await run(tx, _OF_POOL, pool_id=pool_id)).first()
    return (row.name, row.uid) if row else None


async def mark_detached(
    tx: Tx, *, ids: Sequence[UUID] = (), uids: Sequence[str] = (), pool_id: UUID | None = None
) -> list[UUID]:
    """No VirtualMachinePool owns these VMs (or any of the pool's) any more. Returns the pools of those for which that is new."""
    rows = await run(tx, _DETACH, ids=list(ids), uids=list(uids), pool_id=pool_id)
    return sorted({row.pool_id for row in rows})


async def ids_of_uids(tx: Tx, uids: Sequence[str]) -> dict[str, UUID]:
    """The rows of VMs that have not ended, by the UID of their object."""
    return {row.uid: row.id for row in await run(tx, _IDS_OF_UIDS, uids=list(uids))}


async def pools_of(tx: Tx, pool_ids: Sequence[UUID]) -> dict[UUID, PoolOfVmPool]:
    """Those of the pools that exist and have a VirtualMachinePool."""
    rows = await run(tx, _WITH_VM_POOL, ids=list(pool_ids))
    return {row.id: PoolOfVmPool(row.revision, row.source) for row in rows}


async def unassigned(tx: Tx, pool_id: UUID, *, limit: int) -> list[UUID]:
    """Planned VMs that have no object yet, the oldest first. They are locked until `tx` ends."""
    return list((await run(tx, _UNASSIGNED, pool_id=pool_id, limit=limit)).scalars())


async def assign(tx: Tx, objects: Mapping[UUID, MadeVm]) -> None:
    """Assigns objects to rows."""
    ids = sorted(objects)
    made = [objects[vm_id] for vm_id in ids]
    await run(
        tx,
        _ASSIGN,
        ids=ids,
        names=[vm.name for vm in made],
        uids=[vm.uid for vm in made],
        members=[vm.member for vm in made],
        revisions=[vm.revision for vm in made],
    )


def _read(row: RowMapping) -> VmPoolRow:
    given = dict(row)
    written = Written(**{name: given.pop(f"written_{name}") for name in _WRITTEN})
    return VmPoolRow(**{**given, "written": written, "path": StartPath(given["path"])})
