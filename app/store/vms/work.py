"""VMs as work: taken by workers under a lease (token and expiry), written back only while the token still holds.

The cluster is called between the two, outside any transaction. A worker that dies in between loses its lease in time, and
the next one asks the cluster again under the same name.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.paths import StartPath
from app.domain.states import VmState
from app.domain.templates import VmSpec

_FILL = text("""
    INSERT INTO bucket (name, tokens) VALUES (:name, :burst) ON CONFLICT (name) DO UPDATE
    SET tokens = least(:burst, bucket.tokens + :rate * extract(epoch FROM now() - bucket.filled_at)), filled_at = now()
    RETURNING tokens
""")
_SPEND = text("UPDATE bucket SET tokens = tokens - :spent WHERE name = :name")

# Nothing is begun for a pool that is paused or being deleted; what was begun is finished. The VMs of a VirtualMachinePool are
# made by the cluster.
_TAKE_CREATES = text("""
    WITH due AS (
        SELECT v.id, v.asked_at IS NULL AS first FROM vm v JOIN pool p ON p.id = v.pool_id
        WHERE v.work = 'create' AND v.due_at <= now() AND coalesce(p.spec->>'backing', 'VirtualMachine') = 'VirtualMachine'
          AND CASE v.state
            WHEN 'planned' THEN NOT p.paused AND p.deleting_at IS NULL ELSE v.lease_expires_at < now() END
        ORDER BY v.urgent DESC, v.created_at, v.id LIMIT :limit FOR UPDATE OF v SKIP LOCKED),
    taken AS (
        UPDATE vm SET state = 'creating', state_since = CASE WHEN vm.state = 'creating' THEN vm.state_since ELSE now() END,
            asked_at = coalesce(asked_at, now()), attempts = attempts + 1,
            revision = CASE WHEN asked_at IS NULL THEN p.revision ELSE vm.revision END,
            shape = CASE WHEN asked_at IS NULL THEN p.shape ELSE vm.shape END,
            path = CASE WHEN asked_at IS NULL THEN p.path ELSE vm.path END,
            source = CASE WHEN asked_at IS NULL THEN p.source ELSE vm.source END,
            whole = CASE WHEN asked_at IS NULL THEN p.path <> 'snapshot' ELSE vm.whole END,
            lease_token = :token, lease_expires_at = now() + make_interval(secs => :seconds)
        FROM due, pool p WHERE vm.id = due.id AND p.id = vm.pool_id
        RETURNING vm.id, vm.pool_id, vm.name, vm.uid, vm.claim_id, vm.attempts, vm.path, vm.source, vm.asked_at, due.first),
    noted AS (INSERT INTO event (type, pool_id, vm_id) SELECT 'vm.creating', pool_id, id FROM taken WHERE attempts = 1)
    SELECT t.*, p.name AS pool, p.vm_spec, p.revision, (p.spec->>'boot_timeout_seconds')::float AS boot_timeout
    FROM taken t JOIN pool p ON p.id = t.pool_id ORDER BY t.id
""")

# A VM that a VirtualMachinePool owns is detached first, which is other work.
_TAKE_REMOVALS = text("""
    WITH due AS (
        SELECT id FROM vm
        WHERE work = 'remove' AND NOT member AND due_at <= now() AND (lease_expires_at IS NULL OR lease_expires_at < now())
        ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED),
    taken AS (
        UPDATE vm SET attempts = attempts + 1, lease_token = :token, lease_expires_at = now() + make_interval(secs => :seconds)
        FROM due WHERE vm.id = due.id
        RETURNING vm.id, vm.pool_id, vm.name, vm.uid, vm.claim_id, vm.attempts, vm.state)
    SELECT * FROM taken ORDER BY id
""")

# A VM that a VirtualMachinePool owns is labelled as it is detached; its claim is due at once where somebody else detaches it.
# What is taken is not due again for as long as a lease: whoever dies over it is followed by another.
_TAKE_UNLABELLED = text("""
    WITH due AS (
        SELECT id FROM claim WHERE state = 'bound' AND NOT labelled AND label_due_at <= now()
          AND NOT EXISTS (SELECT 1 FROM vm v WHERE v.id = claim.vm_id AND v.member)
        ORDER BY label_due_at LIMIT :limit FOR UPDATE SKIP LOCKED),
    taken AS (
        UPDATE claim SET label_attempts = label_attempts + 1, label_due_at = now() + make_interval(secs => :seconds)
        FROM due WHERE claim.id = due.id
        RETURNING claim.id, claim.vm_id, claim.label_attempts, claim.labels ->> 'name' AS called)
    SELECT t.id AS claim_id, v.id AS vm_id, v.name, v.uid, t.label_attempts AS attempts, t.called
    FROM taken t JOIN vm v ON v.id = t.vm_id WHERE v.uid IS NOT NULL ORDER BY t.id
""")

_HOLDS = text(
    "SELECT id FROM vm WHERE id = :id AND lease_token = :token AND state = ANY(CAST(:states AS text[])) FOR UPDATE"
)

_BEGIN_BOOT = text("UPDATE vm SET uid = :uid WHERE id = :id")
_LABELLED = text("UPDATE claim SET labelled = true, label_attempts = 0 WHERE id = :claim_id AND vm_id = :vm_id")
_LABEL_LATER = text(
    "UPDATE claim SET label_due_at = now() + make_interval(secs => :seconds) WHERE id = :claim_id AND vm_id = :vm_id"
)
_DEFER = text("""
    UPDATE vm SET due_at = now() + make_interval(secs => :seconds), lease_token = NULL, lease_expires_at = NULL,
        health = coalesce(:why, health)
    WHERE id = :id AND lease_token = :token
""")
_PUT_OFF = text("""
    UPDATE vm SET state = 'planned', state_since = now(), due_at = now() + make_interval(secs => :seconds),
        lease_token = NULL, lease_expires_at = NULL, health = :why, asked_at = CASE WHEN :unasked THEN NULL ELSE asked_at END
    WHERE id = :id AND lease_token = :token AND state = 'creating'
""")
_START_COLD = text("""
    UPDATE vm SET path = 'cold', source = NULL, whole = true WHERE id = :id AND lease_token = :token AND state = 'creating'
""")
_SOURCE_READY = text("""
    UPDATE vm SET due_at = now() WHERE id = ANY(ARRAY(
        SELECT v.id FROM vm v JOIN pool p ON p.id = v.pool_id
        WHERE v.work = 'create' AND v.state = 'planned' AND v.due_at > now() AND p.path = :path AND p.source = :source
        ORDER BY v.id FOR UPDATE OF v SKIP LOCKED))
""")
_LOOK_AGAIN = text(
    "UPDATE vm SET due_at = now() + make_interval(secs => :seconds), lease_token = NULL, lease_expires_at = NULL WHERE id = :id"
)
_HAND_BACK = text(
    "UPDATE vm SET lease_expires_at = now(), due_at = now() WHERE work IS NOT NULL AND lease_token = :token"
)


@dataclass(frozen=True, slots=True)
class VmWork:
    """One VM that this worker may call the cluster for, until its lease ends. `attempts` counts this one."""

    id: UUID
    pool_id: UUID
    name: str
    uid: str | None
    claim_id: UUID | None
    attempts: int


@dataclass(frozen=True, slots=True)
class LabelWork:
    """One claim whose VM is to carry its id. `attempts` counts this one. `called`: its label `name`, which people know it by."""

    claim_id: UUID
    vm_id: UUID
    name: str
    uid: str
    attempts: int
    called: str | None = None


@dataclass(frozen=True, slots=True)
class CreateWork(VmWork):
    """`path` and `source` say what it starts from. `asked_at`: when the cluster was asked for it first; `first`: that is now."""

    asked_at: datetime
    first: bool
    pool: str
    path: StartPath
    source: str | None
    vm_spec: VmSpec
    revision: str
    boot_timeout_seconds: float


@dataclass(frozen=True, slots=True)
class RemoveWork(VmWork):
    state: VmState


async def take_creates(
    tx: AsyncConnection, *, token: UUID, limit: int, seconds: float, rate: float
) -> list[CreateWork]:
    """Planned VMs that are due, the urgent first, and creates that a dead worker left; at most the global `rate` a second."""
    burst = max(1.0, rate)
    tokens: float = (await tx.execute(_FILL, {"name": "creates", "rate": rate, "burst": burst})).scalar_one()
    allowed = min(limit, int(tokens))
    if allowed <= 0:
        return []
    rows = (await tx.execute(_TAKE_CREATES, {"token": token, "limit": allowed, "seconds": seconds})).mappings().all()
    if rows:
        await tx.execute(_SPEND, {"name": "creates", "spent": len(rows)})
    return [
        CreateWork(
            id=r["id"],
            pool_id=r["pool_id"],
            name=r["name"],
            uid=r["uid"],
            claim_id=r["claim_id"],
            attempts=r["attempts"],
            asked_at=r["asked_at"],
            first=r["first"],
            pool=r["pool"],
            path=StartPath(r["path"]),
            source=r["source"],
            vm_spec=r["vm_spec"],
            revision=r["revision"],
            boot_timeout_seconds=r["boot_timeout"],
        )
        for r in rows
    ]


async def take_removals(tx: AsyncConnection, *, token: UUID, limit: int, seconds: float) -> list[RemoveWork]:
    """VMs whose object is to go from the cluster, and is not known to have gone."""
    params = {"token": token, "limit": limit, "seconds": seconds}
    rows = (await tx.execute(_TAKE_REMOVALS, params)).mappings()
    return [RemoveWork(**{**row, "state": VmState(row["state"])}) for row in rows]


async def take_unlabelled(tx: AsyncConnection, *, limit: int, seconds: float) -> list[LabelWork]:
    """Bound claims whose VM does not carry their id in the cluster yet; not due again for `seconds`."""
    rows = (await tx.execute(_TAKE_UNLABELLED, {"limit": limit, "seconds": seconds})).mappings()
    return [LabelWork(**row) for row in rows]


async def holds(tx: AsyncConnection, vm_id: UUID, *, token: UUID, states: Iterable[VmState]) -> bool:
    """Whether the work is still ours and in one of `states`; the row is then locked until `tx` ends."""
    params = {"id": vm_id, "token": token, "states": [str(s) for s in states]}
    return (await tx.execute(_HOLDS, params)).first() is not None


async def write_uid(tx: AsyncConnection, vm_id: UUID, uid: str) -> None:
    await tx.execute(_BEGIN_BOOT, {"id": vm_id, "uid": uid})


async def mark_labelled(tx: AsyncConnection, item: LabelWork) -> None:
    """Nothing happens where the claim holds another VM by now."""
    await tx.execute(_LABELLED, {"claim_id": item.claim_id, "vm_id": item.vm_id})


async def label_later(tx: AsyncConnection, item: LabelWork, *, seconds: float) -> None:
    await tx.execute(_LABEL_LATER, {"claim_id": item.claim_id, "vm_id": item.vm_id, "seconds": seconds})


async def defer(tx: AsyncConnection, vm_id: UUID, *, token: UUID, seconds: float, why: str | None = None) -> None:
    """Gives the work back, to be looked at again after `seconds`."""
    await tx.execute(_DEFER, {"id": vm_id, "token": token, "seconds": seconds, "why": why})


async def put_off_create(
    tx: AsyncConnection, vm_id: UUID, *, token: UUID, seconds: float, why: str, unasked: bool = False
) -> None:
    """A create that could not be is planned again, due after `seconds`; its attempts go on counting.

    `unasked`: the cluster has never heard of it, so that its boot has not begun either.
    """
    params = {"id": vm_id, "token": token, "seconds": seconds, "why": why, "unasked": unasked}
    await tx.execute(_PUT_OFF, params)


async def start_cold(tx: AsyncConnection, vm_id: UUID, *, token: UUID) -> None:
    """What the VM was to start from is no more: it starts from its template alone, and counts as such."""
    await tx.execute(_START_COLD, {"id": vm_id, "token": token})


async def source_is_ready(tx: AsyncConnection, *, path: StartPath, source: str) -> None:
    """Planned VMs that waited for that snapshot or preload are due at once."""
    await tx.execute(_SOURCE_READY, {"path": str(path), "source": source})


async def look_again(tx: AsyncConnection, vm_id: UUID, *, seconds: float) -> None:
    """The caller, who holds the row, wants it taken again after `seconds`."""
    await tx.execute(_LOOK_AGAIN, {"id": vm_id, "seconds": seconds})


async def hand_back(tx: AsyncConnection, *, token: UUID) -> None:
    """Gives back all that a stopping worker still holds, to be taken at once by another."""
    await tx.execute(_HAND_BACK, {"token": token})
