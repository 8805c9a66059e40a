"""The VirtualMachinePools behind pools, as work: taken under a lease, written back while it holds. And the VMs that they make:
each is given to a row, by UID, for their names come back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.paths import StartPath
from app.domain.states import VmState
from app.domain.templates import VmSpec
from app.domain.vm_pools import VmPoolSight, Wish, Written

INCIDENT_TOLD = timedelta(minutes=10)
"""For so long what somebody else did is told on the pool; its event stays."""

_INSERT = text(
    "INSERT INTO vm_pool (pool_id, name, uid, replicas, adopted) VALUES (:pool_id, :name, :uid, :replicas, :adopted)"
)

# What is to be detached, or to be scaled, is work at once; after a failure only once it is due again.
_TAKE = text("""
    WITH due AS (
        SELECT b.pool_id FROM vm_pool b JOIN pool p ON p.id = b.pool_id
        WHERE b.deleted_at IS NULL AND (b.lease_expires_at IS NULL OR b.lease_expires_at < now())
          AND (b.due_at <= now() OR (b.attempts = 0 AND (
            EXISTS (SELECT 1 FROM vm v WHERE v.pool_id = b.pool_id AND v.ended_at IS NULL AND v.member
                AND v.state IN ('claimed', 'failed', 'releasing'))
            OR b.replicas IS DISTINCT FROM (SELECT count(*) FROM vm v WHERE v.pool_id = b.pool_id AND v.ended_at IS NULL
                AND (v.state = 'planned' OR v.member AND v.state IN ('creating', 'booting', 'ready'))))))
        ORDER BY b.due_at LIMIT :limit FOR UPDATE OF b SKIP LOCKED)
    UPDATE vm_pool b SET attempts = attempts + 1, due_at = now(), lease_token = :token,
        lease_expires_at = now() + make_interval(secs => :seconds)
    FROM due, pool p WHERE b.pool_id = due.pool_id AND p.id = b.pool_id
    RETURNING b.pool_id, p.name AS pool, b.name, b.round, b.adopted, b.uid, b.replicas, b.generation, b.template,
        b.paused AS paused_by_us, b.attempts, b.incident, p.paused, p.deleting_at IS NOT NULL AS deleting, p.vm_spec,
        p.revision, p.path, p.source
""")
_HOLDS = text("SELECT 1 FROM vm_pool WHERE pool_id = :pool_id AND lease_token = :token FOR UPDATE")
_LEAVING = text("""
    SELECT v.id, v.pool_id, v.name, v.uid, v.state, v.claim_id, coalesce(jsonb_exists(c.labels, 'name'), false) AS is_named
    FROM vm v LEFT JOIN claim c ON c.id = v.claim_id
    WHERE v.pool_id = :pool_id AND v.ended_at IS NULL AND v.member AND v.state = ANY(CAST(:states AS text[]))
    ORDER BY v.state <> 'claimed', v.id LIMIT :limit
""")
_COUNT = text("""
    SELECT count(*) FILTER (WHERE state = 'planned') AS planned,
        count(*) FILTER (WHERE member AND state IN ('creating', 'booting', 'ready')) AS kept
    FROM vm WHERE pool_id = :pool_id AND ended_at IS NULL
""")
_SEEN = text("""
    UPDATE vm_pool SET uid = :uid, replicas = :replicas, generation = :generation, template = coalesce(:template, template),
        paused = :paused
    WHERE pool_id = :pool_id AND lease_token = :token
""")
_REPLACED = text("""
    UPDATE vm_pool SET uid = NULL, replicas = NULL, generation = NULL, template = NULL, paused = false, adopted = false,
        round = :round, name = :name
    WHERE pool_id = :pool_id AND lease_token = :token
""")
_INCIDENT = text("UPDATE vm_pool SET incident = :incident, incident_at = now() WHERE pool_id = :pool_id")
_DONE = text("""
    UPDATE vm_pool SET reason = :reason, attempts = CASE WHEN :failed THEN attempts ELSE 0 END, lease_token = NULL,
        lease_expires_at = NULL, due_at = now() + make_interval(secs => :seconds)
    WHERE pool_id = :pool_id AND lease_token = :token
""")
_GONE = text(
    "UPDATE vm_pool SET deleted_at = now() WHERE pool_id = :pool_id AND lease_token = :token RETURNING pool_id"
)
_ENROLLED = text("UPDATE vm_pool SET adopted = false WHERE pool_id = :pool_id AND lease_token = :token")
_HAND_BACK = text("UPDATE vm_pool SET lease_expires_at = now(), due_at = now() WHERE lease_token = :token")
_NOTES = text("""
    SELECT reason, CASE WHEN incident_at > now() - CAST(:told AS interval) THEN incident END AS incident
    FROM vm_pool WHERE pool_id = :pool_id
""")
_KNOWN = text("SELECT name FROM vm_pool WHERE deleted_at IS NULL")
_OF_POOL = text("SELECT name, uid FROM vm_pool WHERE pool_id = :pool_id")

_LEFT = text("""
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

_BACKED = text("""
    SELECT p.id, p.revision, p.source FROM vm_pool b JOIN pool p ON p.id = b.pool_id
    WHERE b.pool_id = ANY(CAST(:ids AS uuid[])) AND p.deleted_at IS NULL
""")
_FREE_ROWS = text("""
    SELECT id FROM vm WHERE pool_id = :pool_id AND ended_at IS NULL AND state = 'planned' AND uid IS NULL
    ORDER BY created_at, id LIMIT :limit FOR UPDATE
""")
_GIVE = text("""
    UPDATE vm SET name = n.name, uid = n.uid, member = n.member, revision = n.revision, asked_at = coalesce(vm.asked_at, now()),
        shape = p.shape, path = p.path, source = p.source
    FROM unnest(CAST(:ids AS uuid[]), CAST(:names AS text[]), CAST(:uids AS text[]), CAST(:members AS bool[]),
        CAST(:revisions AS text[])) AS n(id, name, uid, member, revision), pool p
    WHERE vm.id = n.id AND p.id = vm.pool_id
""")


@dataclass(frozen=True, slots=True)
class BackingRow:
    """One pool's VirtualMachinePool, which this worker alone may write to until its lease ends. `attempts` counts this one."""

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
    """A VM that its VirtualMachinePool still owns, and is not to: it is claimed, or is to be removed. `is_named`: people have a
    name for its claim, which the VM is to carry too.
    """

    id: UUID
    pool_id: UUID
    name: str
    uid: str
    state: VmState
    claim_id: UUID | None
    is_named: bool


@dataclass(frozen=True, slots=True)
class MadeVm:
    """A VM that a VirtualMachinePool made, from the template of that revision."""

    name: str
    uid: str
    member: bool
    revision: str


@dataclass(frozen=True, slots=True)
class BackedPool:
    """A pool as its next VMs will be. `source`: the preload that they start from."""

    revision: str
    source: str | None


async def insert(
    tx: AsyncConnection,
    pool_id: UUID,
    *,
    name: str,
    uid: str | None = None,
    replicas: int | None = None,
    adopted: bool = False,
) -> None:
    """The intent that a VirtualMachinePool of that name stands behind the pool. `adopted`: it is there already."""
    params = {"pool_id": pool_id, "name": name, "uid": uid, "replicas": replicas, "adopted": adopted}
    await tx.execute(_INSERT, params)


async def take_due(tx: AsyncConnection, *, token: UUID, limit: int, seconds: float) -> list[BackingRow]:
    rows = (await tx.execute(_TAKE, {"token": token, "limit": limit, "seconds": seconds})).mappings()
    return [_read(row) for row in rows]


async def holds(tx: AsyncConnection, pool_id: UUID, *, token: UUID) -> bool:
    """Whether the work is still ours; the row is then locked until `tx` ends."""
    return (await tx.execute(_HOLDS, {"pool_id": pool_id, "token": token})).first() is not None


async def leaving(tx: AsyncConnection, pool_id: UUID, *, states: Sequence[VmState], limit: int) -> list[LeavingVm]:
    """VMs that are to be detached, the claimed first."""
    params = {"pool_id": pool_id, "states": [str(state) for state in states], "limit": limit}
    rows = (await tx.execute(_LEAVING, params)).mappings()
    return [LeavingVm(**{**row, "state": VmState(row["state"])}) for row in rows]


async def wish(tx: AsyncConnection, row: BackingRow, *, template: str | None) -> Wish:
    """What the rows want of it now. Read after `leaving`, it counts none of those."""
    counts = (await tx.execute(_COUNT, {"pool_id": row.pool_id})).one()
    return Wish(planned=counts.planned, kept=counts.kept, paused=row.paused, deleting=row.deleting, template=template)


async def write_seen(
    tx: AsyncConnection, row: BackingRow, seen: VmPoolSight, *, token: UUID, template: str | None, paused: bool
) -> None:
    """What it is after our write. `template` None: that was not written."""
    params = {
        "pool_id": row.pool_id,
        "token": token,
        "uid": seen.uid,
        "replicas": seen.replicas,
        "generation": seen.generation,
        "template": template,
        "paused": paused,
    }
    await tx.execute(_SEEN, params)


async def replace(tx: AsyncConnection, row: BackingRow, *, token: UUID, name: str) -> None:
    """It is gone, and another is to be made, under another name."""
    params = {"pool_id": row.pool_id, "token": token, "name": name, "round": row.round + 1}
    await tx.execute(_REPLACED, params)


async def write_incident(tx: AsyncConnection, pool_id: UUID, incident: str) -> None:
    await tx.execute(_INCIDENT, {"pool_id": pool_id, "incident": incident})


async def finish(
    tx: AsyncConnection, pool_id: UUID, *, token: UUID, seconds: float, reason: str | None, failed: bool = False
) -> None:
    """Gives the work back, to be looked at again after `seconds` at the latest; where it failed, not before."""
    params = {"pool_id": pool_id, "token": token, "seconds": seconds, "reason": reason, "failed": failed}
    await tx.execute(_DONE, params)


async def mark_enrolled(tx: AsyncConnection, pool_id: UUID, *, token: UUID) -> None:
    """All VMs that it had before the pool was carry our labels."""
    await tx.execute(_ENROLLED, {"pool_id": pool_id, "token": token})


async def end(tx: AsyncConnection, pool_id: UUID, *, token: UUID) -> bool:
    """Its pool is being deleted, and it has gone."""
    return (await tx.execute(_GONE, {"pool_id": pool_id, "token": token})).first() is not None


async def hand_back(tx: AsyncConnection, *, token: UUID) -> None:
    """Gives back all that a stopping worker still holds, to be taken at once by another."""
    await tx.execute(_HAND_BACK, {"token": token})


async def notes(tx: AsyncConnection, pool_id: UUID) -> tuple[str, ...]:
    """What keeps it from what it should be, and what somebody did to it lately, in words."""
    row = (await tx.execute(_NOTES, {"pool_id": pool_id, "told": INCIDENT_TOLD})).first()
    return tuple(each for each in (row.reason, row.incident) if each) if row else ()


async def known_names(tx: AsyncConnection) -> set[str]:
    """Of all VirtualMachinePools that a pool has, or is about to make."""
    return set((await tx.execute(_KNOWN)).scalars())


async def of_pool(tx: AsyncConnection, pool_id: UUID) -> tuple[str, str | None] | None:
    """Name and UID of what stands behind the pool; None: its VMs are made one by one."""
    row = (await tx.execute(_OF_POOL, {"pool_id": pool_id})).first()
    return (row.name, row.uid) if row else None


async def set_free(
    tx: AsyncConnection, *, ids: Sequence[UUID] = (), uids: Sequence[str] = (), pool_id: UUID | None = None
) -> list[UUID]:
    """No VirtualMachinePool owns these VMs (or any of the pool's) any more. The pools of those for which that is news."""
    rows = await tx.execute(_LEFT, {"ids": list(ids), "uids": list(uids), "pool_id": pool_id})
    return sorted({row.pool_id for row in rows})


async def ids_of_uids(tx: AsyncConnection, uids: Sequence[str]) -> dict[str, UUID]:
    """The rows of VMs that have not ended, by the UIDs of their objects."""
    return {row.uid: row.id for row in await tx.execute(_IDS_OF_UIDS, {"uids": list(uids)})}


async def backed(tx: AsyncConnection, pool_ids: Sequence[UUID]) -> dict[UUID, BackedPool]:
    """Those that exist, and have a VirtualMachinePool."""
    rows = await tx.execute(_BACKED, {"ids": list(pool_ids)})
    return {row.id: BackedPool(row.revision, row.source) for row in rows}


async def free_rows(tx: AsyncConnection, pool_id: UUID, *, limit: int) -> list[UUID]:
    """Planned VMs that have no object yet, the oldest first; locked until `tx` ends."""
    return list((await tx.execute(_FREE_ROWS, {"pool_id": pool_id, "limit": limit})).scalars())


async def give(tx: AsyncConnection, given: Mapping[UUID, MadeVm]) -> None:
    """Writes the objects onto planned rows."""
    ids = sorted(given)
    made = [given[vm_id] for vm_id in ids]
    await tx.execute(
        _GIVE,
        {
            "ids": ids,
            "names": [vm.name for vm in made],
            "uids": [vm.uid for vm in made],
            "members": [vm.member for vm in made],
            "revisions": [vm.revision for vm in made],
        },
    )


def _read(row: Mapping[Any, Any]) -> BackingRow:
    return BackingRow(
        pool_id=row["pool_id"],
        pool=row["pool"],
        name=row["name"],
        round=row["round"],
        adopted=row["adopted"],
        written=Written(
            uid=row["uid"],
            replicas=row["replicas"],
            generation=row["generation"],
            template=row["template"],
            paused=row["paused_by_us"],
        ),
        attempts=row["attempts"],
        incident=row["incident"],
        paused=row["paused"],
        deleting=row["deleting"],
        vm_spec=row["vm_spec"],
        revision=row["revision"],
        path=StartPath(row["path"]),
        source=row["source"],
    )
