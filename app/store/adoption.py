"""Rows that are made from what the cluster has, and rows that are given up because the cluster's objects are somebody else's.

Only for an installation that stands still: the statements lock in the order of claims (queue, claim, VM), and go from any state.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from app.domain.ownership import ClaimRecord
from app.domain.states import VmState
from app.store.database import Tx, run
from app.store.leases import RELEASE

_CALM = f"state_since = now(), due_at = now(), attempts = 0, deadline_at = NULL, health = NULL, unhealthy_since = NULL, {RELEASE}"
_LEAVE_READY = text("DELETE FROM ready_slot WHERE vm_id = :id")
_NOT_ENDED = text("DELETE FROM claim_label WHERE claim_id = :id")
_LEAVE_PENDING = text("DELETE FROM claim_queue WHERE claim_id = :id")
_CLAIM = text("""
    INSERT INTO claim (id, pool_id, vm_id, state, request_hash, labels, path, lease_seconds, lease_expires_at, created_at, bound_at,
        shape, labelled)
    VALUES (:id, :pool_id, :vm_id, 'bound', '', :labels, :path, CAST(:seconds AS int),
        greatest(CAST(:expires_at AS timestamptz), now() + make_interval(secs => CAST(:seconds AS int))),
        coalesce(CAST(:bound_at AS timestamptz), now()), coalesce(CAST(:bound_at AS timestamptz), now()), :shape, false)
    ON CONFLICT (id) DO UPDATE SET state = 'bound', vm_id = excluded.vm_id, path = coalesce(excluded.path, claim.path),
        lease_seconds = excluded.lease_seconds, lease_expires_at = excluded.lease_expires_at, bound_at = excluded.bound_at,
        ended_at = NULL, pending_until = NULL, reason = NULL, labelled = false, label_due_at = now()
""").bindparams(bindparam("labels", type_=JSONB))
_VM = f"""
    INSERT INTO vm (id, pool_id, name, state, revision, uid, claim_id, created_at, asked_at, ready_at, claimed_at, member, reason)
    VALUES (:id, :pool_id, :name, CAST(:state AS text), '', :uid, :claim_id, coalesce(CAST(:made_at AS timestamptz), now()),
        coalesce(CAST(:made_at AS timestamptz), now()),
        CAST(:ready_at AS timestamptz), CAST(:ready_at AS timestamptz), :member, :reason)
    ON CONFLICT (id) DO UPDATE SET state = excluded.state, uid = excluded.uid, claim_id = excluded.claim_id,
        ready_at = coalesce(vm.ready_at, excluded.ready_at), claimed_at = excluded.claimed_at, ended_at = NULL, lost = false, member = excluded.member,
        reason = excluded.reason, {_CALM}
"""
_PUT_VM = text(_VM)
_NOTED = text("""
    INSERT INTO event (type, pool_id, vm_id, claim_id, data)
    VALUES (:type, :pool_id, :vm_id, :claim_id, jsonb_build_object('reason', CAST(:reason AS text)))
""")
_UID = text("UPDATE vm SET uid = :uid WHERE id = :id AND uid IS NULL")
_WHOLE_LEASES = text("""
    UPDATE claim SET lease_expires_at = greatest(lease_expires_at, now() + make_interval(secs => lease_seconds)) WHERE state = 'bound'
""")
_STRAY = text("""
    SELECT v.id FROM vm v WHERE v.state = 'claimed'
      AND NOT EXISTS (SELECT 1 FROM claim c WHERE c.id = v.claim_id AND c.state = 'bound' AND c.vm_id = v.id)
""")
_POOLS = text("""
    SELECT p.id, p.name, p.spec->>'default_lease_seconds' AS lease, o.pool_id IS NOT NULL AND o.deleted_at IS NULL AS backed
    FROM pool p LEFT JOIN vm_pool o ON o.pool_id = p.id WHERE p.deleted_at IS NULL
""")
_LIVE = text("SELECT id, state FROM vm WHERE ended_at IS NULL ORDER BY id")
_BOUND = text("SELECT id FROM claim WHERE state = 'bound' ORDER BY id")
_NO_MEMBERS = text("UPDATE vm SET member = false WHERE member")
_VM_POOLS = text("SELECT o.pool_id, p.name FROM vm_pool o JOIN pool p ON p.id = o.pool_id WHERE o.deleted_at IS NULL")
_NEW_VM_POOL = text(f"""
    UPDATE vm_pool SET name = :name, uid = NULL, replicas = NULL, generation = NULL, template = NULL, paused = false, adopted = false,
        round = 1, incident = NULL, attempts = 0, due_at = now(), {RELEASE} WHERE pool_id = :id
""")
_END_TAKES = text("""
    UPDATE snapshot_take SET state = 'failed', state_since = now(), ended_at = now(), reason = :reason, claim_id = NULL
    WHERE state NOT IN ('retired', 'failed')
""")
_SNAPSHOTS_DUE = text(f"UPDATE snapshot SET due_at = now(), attempts = 0, {RELEASE} WHERE deleted_at IS NULL")
_PRELOADS = text("SELECT id FROM preload WHERE deleted_at IS NULL")
_NEW_PRELOAD = text(f"""
    UPDATE preload SET id = :new_id, generation = 1, state = CASE WHEN deleting_at IS NULL THEN 'planned' ELSE state END, status = '{{}}',
        reason = NULL, ready_at = NULL, attempts = 0, due_at = now(), {RELEASE} WHERE id = :id
""")


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What a rebuilt claim needs of its pool. `backed`: a VirtualMachinePool makes its VMs."""

    id: UUID
    name: str
    lease_seconds: int
    backed: bool


@dataclass(frozen=True, slots=True)
class VmObject:
    """The object of a VM. `member`: a VirtualMachinePool of ours owns it."""

    id: UUID
    pool_id: UUID
    name: str
    uid: str
    made_at: datetime | None
    member: bool = False


async def pools(tx: Tx) -> list[PoolFacts]:
    return [PoolFacts(row.id, row.name, int(row.lease or 3600), row.backed is True) for row in await run(tx, _POOLS)]


async def put_claimed(tx: Tx, vm: VmObject, claim_id: UUID, record: ClaimRecord | None, *, lease_seconds: int) -> None:
    """The VM is claimed, and the claim bound to it, whatever the rows said before. Without a `record` the claim has a lease of
    `lease_seconds`.
    """
    bound_at = record.bound_at if record else None
    await run(tx, _LEAVE_READY, id=vm.id)
    await run(tx, _LEAVE_PENDING, id=claim_id)
    await run(tx, _NOT_ENDED, id=claim_id)
    await run(
        tx,
        _CLAIM,
        id=claim_id,
        pool_id=vm.pool_id,
        vm_id=vm.id,
        labels=dict(record.labels) if record else {},
        path=(record.path if record else None) or "pool",
        seconds=record.lease_seconds if record else lease_seconds,
        expires_at=record.lease_expires_at if record else None,
        bound_at=bound_at,
        shape=record.shape if record else None,
    )
    reason = "its claim was rebuilt from what it carries"
    await _put(tx, vm, VmState.CLAIMED, claim_id=claim_id, ready_at=bound_at or vm.made_at, reason=reason)
    noted = {"pool_id": vm.pool_id, "vm_id": vm.id, "claim_id": claim_id, "reason": "rebuilt from what its VM carries"}
    await run(tx, _NOTED, type="claim.bound", **noted)


async def put_releasing(tx: Tx, vm: VmObject, *, reason: str) -> None:
    """A row for an object that has none, so that it is removed."""
    await _put(tx, vm, VmState.RELEASING, claim_id=None, ready_at=None, reason=reason)
    await run(tx, _NOTED, type="vm.releasing", pool_id=vm.pool_id, vm_id=vm.id, claim_id=None, reason=reason)


async def write_uid(tx: Tx, vm_id: UUID, uid: str) -> None:
    """The object of a VM whose create was never answered, as far as its row knows."""
    await run(tx, _UID, id=vm_id, uid=uid)


async def give_whole_leases(tx: Tx) -> int:
    """Every bound claim has at least a whole lease from now on. Returns how many there are."""
    return (await run(tx, _WHOLE_LEASES)).rowcount


async def strays(tx: Tx) -> list[UUID]:
    """VMs that count as claimed by claims that have another VM, or none."""
    return list((await run(tx, _STRAY)).scalars())


async def live_vms(tx: Tx) -> dict[VmState, list[UUID]]:
    """The VMs that have not ended, by state."""
    found: dict[VmState, list[UUID]] = {}
    for row in await run(tx, _LIVE):
        found.setdefault(VmState(row.state), []).append(row.id)
    return found


async def bound_claims(tx: Tx) -> list[UUID]:
    return list((await run(tx, _BOUND)).scalars())


async def detach_all(tx: Tx) -> None:
    """No VM belongs to a VirtualMachinePool any more."""
    await run(tx, _NO_MEMBERS)


async def vm_pools(tx: Tx) -> dict[UUID, str]:
    """The name of the pool of each VirtualMachinePool."""
    return {row.pool_id: row.name for row in await run(tx, _VM_POOLS)}


async def begin_vm_pool(tx: Tx, pool_id: UUID, *, name: str) -> None:
    """The pool gets another VirtualMachinePool, of that name."""
    await run(tx, _NEW_VM_POOL, id=pool_id, name=name)


async def end_takes(tx: Tx, *, reason: str) -> None:
    """All snapshots are taken anew."""
    await run(tx, _END_TAKES, reason=reason)
    await run(tx, _SNAPSHOTS_DUE)


async def preload_ids(tx: Tx) -> list[UUID]:
    return list((await run(tx, _PRELOADS)).scalars())


async def begin_preload(tx: Tx, preload_id: UUID, *, new_id: UUID) -> None:
    """The preload makes its object anew. The id is in the name of the object."""
    await run(tx, _NEW_PRELOAD, id=preload_id, new_id=new_id)


async def _put(
    tx: Tx, vm: VmObject, state: VmState, *, claim_id: UUID | None, ready_at: datetime | None, reason: str
) -> None:
    await run(
        tx,
        _PUT_VM,
        id=vm.id,
        pool_id=vm.pool_id,
        name=vm.name,
        uid=vm.uid,
        member=vm.member,
        state=str(state),
        claim_id=claim_id,
        made_at=vm.made_at,
        ready_at=ready_at,
        reason=reason,
    )
