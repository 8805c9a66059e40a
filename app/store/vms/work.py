"""VMs as work for reconcilers: to be created, to be removed, and to be labelled with their claim.

A VM's row is leased (see `store.leases`) while the cluster is called, and written only while the lease holds. The worker after
one that died calls the cluster again under the same name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from app.domain.ownership import ClaimRecord
from app.domain.paths import StartPath
from app.domain.templates import Marks, VmSpec
from app.store.database import Tx, any_row, first, mappings, run
from app.store.leases import ACQUIRE, IS_FREE, RELEASE, RowLeases

LEASES = RowLeases("vm", among="work IS NOT NULL")

# Asked first: nothing is to be created nearly always, and then nothing need be written.
_ANY_CREATE = text("SELECT 1 FROM vm WHERE work = 'create' AND due_at <= now() LIMIT 1")
_FILL = text("""
    INSERT INTO bucket (name, tokens) VALUES (:name, :burst) ON CONFLICT (name) DO UPDATE
    SET tokens = least(:burst, bucket.tokens + :rate * extract(epoch FROM now() - bucket.filled_at)), filled_at = now()
    RETURNING tokens
""")
_SPEND = text("UPDATE bucket SET tokens = tokens - :spent WHERE name = :name")

# A pool that is paused or being deleted begins no new VM, but one that was begun is finished. The cluster itself makes the VMs
# of a VirtualMachinePool. While creates of a pool are put off, none of it is tried.
_ACQUIRE_CREATES = text(f"""
    WITH due AS (
        SELECT v.id, v.asked_at IS NULL AS first FROM vm v JOIN pool p ON p.id = v.pool_id
        WHERE v.work = 'create' AND v.due_at <= now() AND coalesce(p.spec->>'backing', 'VirtualMachine') = 'VirtualMachine'
          AND CASE v.state
            WHEN 'planned' THEN NOT p.paused AND p.deleting_at IS NULL ELSE v.lease_expires_at < now() END
          AND NOT EXISTS (SELECT 1 FROM put_off o WHERE o.pool_id = v.pool_id AND o.until > now())
        ORDER BY v.urgent DESC, v.created_at, v.id LIMIT :limit FOR UPDATE OF v SKIP LOCKED),
    taken AS (
        UPDATE vm SET state = 'creating', state_since = CASE WHEN vm.state = 'creating' THEN vm.state_since ELSE now() END,
            asked_at = coalesce(asked_at, now()), attempts = attempts + 1,
            revision = CASE WHEN asked_at IS NULL THEN p.revision ELSE vm.revision END,
            shape = CASE WHEN asked_at IS NULL THEN p.shape ELSE vm.shape END,
            path = CASE WHEN asked_at IS NULL THEN p.path ELSE vm.path END,
            source = CASE WHEN asked_at IS NULL THEN p.source ELSE vm.source END,
            whole = CASE WHEN asked_at IS NULL THEN p.path NOT IN ('memory', 'snapshot') ELSE vm.whole END,
            {ACQUIRE}
        FROM due, pool p WHERE vm.id = due.id AND p.id = vm.pool_id
        RETURNING vm.id, vm.pool_id, vm.name, vm.attempts, vm.path, vm.source, vm.asked_at, due.first),
    noted AS (INSERT INTO event (type, pool_id, vm_id) SELECT 'vm.creating', pool_id, id FROM taken WHERE attempts = 1)
    SELECT t.*, p.name AS pool, p.kind = 'on_demand' AS on_demand, p.vm_spec, p.revision, (p.spec->>'boot_timeout_seconds')::float AS boot_timeout_seconds,
        coalesce((p.spec->'guest'->>'release_seconds')::int, 0) AS release_seconds
    FROM taken t JOIN pool p ON p.id = t.pool_id ORDER BY t.id
""")

# A VM that a VirtualMachinePool owns must be detached first: the reconciler of VirtualMachinePools does that.
_ACQUIRE_REMOVALS = text(f"""
    WITH due AS (
        SELECT id FROM vm
        WHERE work = 'remove' AND NOT member AND due_at <= now() AND {IS_FREE}
        ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED),
    taken AS (
        UPDATE vm SET attempts = attempts + 1, {ACQUIRE}
        FROM due WHERE vm.id = due.id
        RETURNING vm.id, vm.pool_id, vm.name, vm.uid, vm.attempts)
    SELECT t.*, g.identity_uid, g.vm_id IS NOT NULL AS has_identity
    FROM taken t LEFT JOIN guest g ON g.vm_id = t.id AND NOT g.identity_gone ORDER BY t.id
""")

# A VM that a VirtualMachinePool owns gets its label as it is detached. A claim has no lease columns: what is acquired is not due
# again for as long as a lease would last.
_ACQUIRE_LABELS = text("""
    WITH due AS (
        SELECT id FROM claim WHERE state = 'bound' AND NOT labelled AND label_due_at <= now()
          AND NOT EXISTS (SELECT 1 FROM vm v WHERE v.id = claim.vm_id AND v.member)
        ORDER BY label_due_at LIMIT :limit FOR UPDATE SKIP LOCKED),
    taken AS (
        UPDATE claim SET label_attempts = label_attempts + 1, label_due_at = now() + make_interval(secs => :seconds)
        FROM due WHERE claim.id = due.id
        RETURNING claim.id, claim.vm_id, claim.label_attempts, claim.labels, claim.marks, claim.lease_seconds, claim.lease_expires_at,
            claim.bound_at, claim.path, claim.shape)
    SELECT t.id AS claim_id, v.id AS vm_id, v.name, v.uid, v.vmi_uid AS instance, t.label_attempts AS attempts, t.labels AS given,
        t.marks, t.lease_seconds, t.lease_expires_at, t.bound_at, t.path, t.shape
    FROM taken t JOIN vm v ON v.id = t.vm_id WHERE v.uid IS NOT NULL ORDER BY t.id
""")

_WRITE_UID = text("UPDATE vm SET uid = :uid WHERE id = :id")
_LABELLED = text("""
    UPDATE claim SET labelled = true, label_attempts = 0
    WHERE id = :claim_id AND vm_id = :vm_id AND marks IS NOT DISTINCT FROM :marks AND lease_seconds <= :lease_seconds
""").bindparams(bindparam("marks", type_=JSONB(none_as_null=True)))
_LABEL_AGAIN = text("""
    UPDATE claim SET labelled = false, label_due_at = now()
    WHERE id = ANY(ARRAY(SELECT claim_id FROM vm WHERE id = ANY(CAST(:ids AS uuid[])) AND state = 'claimed')) AND state = 'bound'
""")
_LABEL_LATER = text(
    "UPDATE claim SET label_due_at = now() + make_interval(secs => :seconds) WHERE id = :claim_id AND vm_id = :vm_id"
)
_RETRY_REMOVAL = text(f"""
    UPDATE vm SET due_at = now() + make_interval(secs => :seconds), {RELEASE}, health = :reason
    WHERE id = :id AND lease_token = :token
""")
_RETRY_CREATE = text(f"""
    UPDATE vm SET state = 'planned', state_since = now(), due_at = now() + make_interval(secs => :seconds), {RELEASE},
        health = :reason, asked_at = CASE WHEN :unasked THEN NULL ELSE asked_at END
    WHERE id = :id AND lease_token = :token AND state = 'creating'
""")
_WRITE_PATH = text("UPDATE vm SET path = :path WHERE id = :id AND lease_token = :token AND state = 'creating'")
_START_COLD = text("""
    UPDATE vm SET path = 'cold', source = NULL, whole = true WHERE id = :id AND lease_token = :token AND state = 'creating'
""")
_SOURCE_READY = text("""
    UPDATE vm SET due_at = now() WHERE id = ANY(ARRAY(
        SELECT v.id FROM vm v JOIN pool p ON p.id = v.pool_id
        WHERE v.work = 'create' AND v.state = 'planned' AND v.due_at > now() AND p.path = ANY(CAST(:paths AS text[])) AND p.source = :source
        ORDER BY v.id FOR UPDATE OF v SKIP LOCKED))
""")
_TAKE = text("""
    INSERT INTO exclusive_use AS u (key, vm_id) VALUES (:key, :id)
    ON CONFLICT (key) DO UPDATE SET vm_id = EXCLUDED.vm_id
    WHERE u.vm_id = EXCLUDED.vm_id OR EXISTS (SELECT 1 FROM vm WHERE vm.id = u.vm_id AND vm.ended_at IS NOT NULL)
    RETURNING key
""")
_HOLDER = text("SELECT vm.name FROM exclusive_use u JOIN vm ON vm.id = u.vm_id WHERE u.key = :key")
_CHECK_REMOVAL = text(
    f"UPDATE vm SET due_at = now() + make_interval(secs => :seconds), {RELEASE}, health = NULL WHERE id = :id"
)


@dataclass(frozen=True, slots=True)
class VmWork:
    """One VM that this worker may call the cluster for until its lease ends. `attempts` includes this one."""

    id: UUID
    pool_id: UUID
    name: str
    attempts: int


@dataclass(frozen=True, slots=True)
class LabelWork:
    """One claim whose VM is to carry its id. `attempts` includes this one. `given`: the claim's labels. `instance`: the UID of what
    runs the VM, if it is known. `marks`: those of the template that the claim describes. `record`: what it can be rebuilt from.
    """

    claim_id: UUID
    vm_id: UUID
    name: str
    uid: str
    attempts: int
    given: Mapping[str, str]
    record: ClaimRecord
    instance: str | None = None
    marks: Marks | None = None


@dataclass(frozen=True, slots=True)
class CreateWork(VmWork):
    """`path` and `source` say what the VM starts from. `asked_at`: when the cluster was first asked for it; `first`: that is now."""

    asked_at: datetime
    first: bool
    pool: str
    on_demand: bool
    path: StartPath
    source: str | None
    vm_spec: VmSpec
    revision: str
    boot_timeout_seconds: float
    release_seconds: int = 0


@dataclass(frozen=True, slots=True)
class RemoveWork(VmWork):
    """`uid`: of its object; None: the cluster never answered. `identity_uid`: likewise of its identity, if it has one."""

    uid: str | None
    has_identity: bool = False
    identity_uid: str | None = None


async def any_create(tx: Tx) -> bool:
    """Whether a VM may be due to be created."""
    return await any_row(tx, _ANY_CREATE)


async def acquire_creates(tx: Tx, *, token: UUID, limit: int, seconds: float, rate: float) -> list[CreateWork]:
    """Planned VMs that are due, urgent ones first, and creates whose lease expired. At most `rate` a second, over all replicas."""
    burst = max(1.0, rate)
    tokens: float = (await run(tx, _FILL, name="creates", rate=rate, burst=burst)).scalar_one()
    allowed = min(limit, int(tokens))
    if allowed <= 0:
        return []
    rows = await mappings(tx, _ACQUIRE_CREATES, token=token, limit=allowed, seconds=seconds)
    if rows:
        await run(tx, _SPEND, name="creates", spent=len(rows))
    return [CreateWork(**{**row, "path": StartPath(row["path"])}) for row in rows]


async def acquire_removals(tx: Tx, *, token: UUID, limit: int, seconds: float) -> list[RemoveWork]:
    """VMs whose object must be removed from the cluster."""
    rows = await mappings(tx, _ACQUIRE_REMOVALS, token=token, limit=limit, seconds=seconds)
    return [RemoveWork(**row) for row in rows]


async def acquire_labels(tx: Tx, *, limit: int, seconds: float) -> list[LabelWork]:
    """Bound claims whose VM does not carry their id in the cluster yet. They are not due again for `seconds`."""
    rows = await mappings(tx, _ACQUIRE_LABELS, limit=limit, seconds=seconds)
    return [_label_work(dict(row)) for row in rows]


async def take_exclusive(tx: Tx, vm_id: UUID, key: str) -> str | None:
    """Gives something that exists once to the VM, until the VM has left the cluster. None: it has it now; otherwise the name of
    the VM that has it.
    """
    if await first(tx, _TAKE, key=key, id=vm_id) is not None:
        return None
    holder = await first(tx, _HOLDER, key=key)
    return str(holder.name) if holder is not None else "another VM"


async def write_uid(tx: Tx, vm_id: UUID, uid: str) -> None:
    await run(tx, _WRITE_UID, id=vm_id, uid=uid)


async def mark_labelled(tx: Tx, item: LabelWork) -> None:
    """Changes nothing if the claim has another VM by now, or other marks, or a longer lease."""
    marks = item.marks.as_json() if item.marks is not None else None
    seconds = item.record.lease_seconds
    await run(tx, _LABELLED, claim_id=item.claim_id, vm_id=item.vm_id, marks=marks, lease_seconds=seconds)


async def label_later(tx: Tx, claim_id: UUID, vm_id: UUID, *, seconds: float) -> None:
    await run(tx, _LABEL_LATER, claim_id=claim_id, vm_id=vm_id, seconds=seconds)


async def label_again(tx: Tx, vm_ids: Sequence[UUID]) -> None:
    """Those of the VMs that are claimed lack what their claims could be rebuilt from."""
    await run(tx, _LABEL_AGAIN, ids=list(vm_ids))


async def retry_create(tx: Tx, vm_id: UUID, *, token: UUID, seconds: float, reason: str, unasked: bool = False) -> None:
    """The VM is planned again and due after `seconds`; its attempts keep counting. `unasked`: the cluster was never asked for
    it, so that its boot has not begun.
    """
    await run(tx, _RETRY_CREATE, id=vm_id, token=token, seconds=seconds, reason=reason, unasked=unasked)


async def retry_removal(tx: Tx, vm_id: UUID, *, token: UUID, seconds: float, reason: str) -> None:
    """The VM is due again after `seconds`."""
    await run(tx, _RETRY_REMOVAL, id=vm_id, token=token, seconds=seconds, reason=reason)


async def check_removal(tx: Tx, vm_id: UUID, *, seconds: float) -> None:
    """The cluster was asked to remove the VM, so that what kept it from that has passed. It is looked at again after `seconds` if
    the informer has not seen it go by then.
    """
    await run(tx, _CHECK_REMOVAL, id=vm_id, seconds=seconds)


async def start_cold(tx: Tx, vm_id: UUID, *, token: UUID) -> None:
    """The source of the VM was deleted: it starts from its template alone, and counts as a cold start."""
    await run(tx, _START_COLD, id=vm_id, token=token)


async def write_path(tx: Tx, vm_id: UUID, path: StartPath, *, token: UUID) -> None:
    """The snapshot of the VM's pool was deleted and taken again, with memory or without: the VM starts on another path than planned."""
    await run(tx, _WRITE_PATH, id=vm_id, path=str(path), token=token)


async def source_is_ready(tx: Tx, *, paths: Sequence[StartPath], source: str) -> None:
    """Planned VMs that wait for this snapshot or preload are due at once."""
    await run(tx, _SOURCE_READY, paths=[str(path) for path in paths], source=source)


def _label_work(row: dict[str, Any]) -> LabelWork:
    marks = row.pop("marks")
    of_record = {name: row.pop(name) for name in ("lease_seconds", "lease_expires_at", "bound_at", "path", "shape")}
    record = ClaimRecord(**of_record, labels=row["given"])
    return LabelWork(**row, record=record, marks=Marks(**marks) if marks is not None else None)
