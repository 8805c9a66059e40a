"""VM rows: their changes of state, each with its event and its place in the queue of ready VMs, and reads.

A change that takes a VM out of the queue locks its place in the queue first, as a claim does: the same order, so no deadlock.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text

from app.domain.states import VmState, check_vm_transition
from app.store.database import Tx, first, run
from app.store.rows import VM_COLUMNS, VmRow, read_vm

LAST_PLACES = 2**62
"""Places in the queue of ready VMs from here on stand behind all others, also behind those that are yet to come."""

_PLAN = text("""
    WITH made AS (
        INSERT INTO vm (id, pool_id, name, revision, urgent)
        SELECT id, pool_id, name, revision, urgent FROM unnest(CAST(:ids AS uuid[]), CAST(:pool_ids AS uuid[]),
            CAST(:names AS text[]), CAST(:revisions AS text[]), CAST(:urgent AS bool[])) AS n(id, pool_id, name, revision, urgent)
        RETURNING id, pool_id, revision)
    INSERT INTO event (type, pool_id, vm_id, data)
    SELECT 'vm.planned', pool_id, id, jsonb_build_object('revision', revision) FROM made
""")

_URGE = text("""
    UPDATE vm SET urgent = NOT urgent WHERE id = ANY(ARRAY(
        SELECT vm.id FROM unnest(CAST(:pool_ids AS uuid[]), CAST(:urgent AS bool[])) AS n(pool_id, urgent)
        JOIN vm ON vm.pool_id = n.pool_id
        WHERE vm.ended_at IS NULL AND vm.state = 'planned' AND vm.urgent <> n.urgent ORDER BY vm.id FOR UPDATE OF vm))
""")

# `moving` locks the rows in one order, so that two transactions that move the same VMs cannot deadlock.
_MOVE = """
    WITH moving AS (
        SELECT id, state FROM vm WHERE id = ANY(CAST(:ids AS uuid[])) AND state = ANY(CAST(:sources AS text[]))
        ORDER BY id FOR UPDATE),
    moved AS (
        UPDATE vm SET state = CAST(:target AS text), state_since = now(), reason = coalesce(:reason, vm.reason),
            ended_at = CASE WHEN :target IN ('deleted', 'lost') THEN now() ELSE vm.ended_at END, lost = (:target = 'lost'),
            due_at = now(){kept}, attempts = 0, lease_token = NULL, lease_expires_at = NULL,
            {more}
        FROM moving WHERE vm.id = moving.id
        RETURNING vm.id, vm.pool_id, vm.claim_id, vm.name, vm.node, vm.addresses, vm.boot_seconds, moving.state AS source),
    {also}
    noted AS (
        INSERT INTO event (type, pool_id, vm_id, claim_id, data)
        SELECT 'vm.' || :target, pool_id, id, claim_id,
            jsonb_strip_nulls(jsonb_build_object('from', source, 'reason', CAST(:reason AS text))) FROM moved)
    SELECT id FROM moved
"""

_LEAVE_QUEUE = text("DELETE FROM ready_slot WHERE vm_id = ANY(CAST(:ids AS uuid[])) RETURNING vm_id")

_TAKE_BACK = text("""
    DELETE FROM ready_slot WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM ready_slot WHERE vm_id = ANY(CAST(:ids AS uuid[])) FOR UPDATE SKIP LOCKED)) RETURNING vm_id
""")

# Whoever is claiming a VM at this moment keeps it. Sequence numbers are positive, so places of both kinds never meet.
_PUT = text("""
    UPDATE ready_slot SET seq = nextval('ready_seq') + :places WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM ready_slot WHERE vm_id = ANY(CAST(:ids AS uuid[])) ORDER BY pool_id, seq FOR UPDATE SKIP LOCKED))
""")

_COUNT_READY = text("SELECT count(*) FROM ready_slot WHERE pool_id = :pool_id")

_BY_ID = text(f"SELECT {VM_COLUMNS} FROM vm v JOIN pool p ON p.id = v.pool_id WHERE v.id = ANY(CAST(:ids AS uuid[]))")

# What a change to a state does to deadline and health. In most states a VM has neither.
_QUEUED = """queued AS (
        INSERT INTO ready_slot (pool_id, seq, vm_id, name, node, addresses, ready_at, boot_seconds)
        SELECT pool_id, nextval('ready_seq'), id, name, node, addresses, now(), boot_seconds FROM moved ORDER BY id),"""
_CALM = "deadline_at = NULL, unhealthy_since = NULL"
_MORE = {
    VmState.BOOTING: "deadline_at = now() + make_interval(secs => :deadline), health = NULL, unhealthy_since = CASE WHEN moving.state = 'ready' THEN now() END",
    VmState.READY: (
        f"{_CALM}, ready_at = now(), health = NULL,"
        " boot_seconds = coalesce(vm.boot_seconds, extract(epoch FROM now() - vm.asked_at))"
    ),
}

# A guest that took something over gets a moment to end it. Its row is only looked for where the VM was claimed.
_KEPT = """ + make_interval(secs => coalesce(CASE WHEN moving.state = 'claimed' THEN (
                SELECT g.release_seconds FROM guest g WHERE g.vm_id = moving.id AND g.claim_id = vm.claim_id AND g.conflict IS NULL) END, 0))"""
_MOVES = {
    target: text(
        _MOVE.format(
            more=_MORE.get(target, _CALM),
            also=_QUEUED if target is VmState.READY else "",
            kept=_KEPT if target is VmState.RELEASING else "",
        )
    )
    for target in VmState
}


@dataclass(frozen=True, slots=True)
class PlannedVm:
    """A VM that is to be created, and its name in the cluster. `urgent`: its pool is below its floor."""

    id: UUID
    pool_id: UUID
    name: str
    revision: str
    urgent: bool = False


async def plan(tx: Tx, planned: Sequence[PlannedVm]) -> None:
    """Inserts VMs in state `planned`."""
    await run(
        tx,
        _PLAN,
        ids=[vm.id for vm in planned],
        pool_ids=[vm.pool_id for vm in planned],
        names=[vm.name for vm in planned],
        revisions=[vm.revision for vm in planned],
        urgent=[vm.urgent for vm in planned],
    )


async def urge(tx: Tx, pools: Mapping[UUID, bool]) -> None:
    """Marks the planned VMs of each pool as urgent, or not: urgent ones are created first."""
    if pools:
        await run(tx, _URGE, pool_ids=list(pools), urgent=list(pools.values()))


async def move(
    tx: Tx,
    ids: Iterable[UUID],
    target: VmState,
    *,
    sources: Iterable[VmState],
    reason: str | None = None,
    deadline_seconds: float | None = None,
) -> list[UUID]:
    """Moves those of `ids` that are in one of `sources` and returns them. Other VMs are not changed. A lease on a VM ends.

    A `ready` VM leaves the queue, and a VM that becomes `ready` enters it at its end. A VM that is moved to `booting` fails
    after `deadline_seconds`. Raises IllegalTransition if the transition is not allowed.
    """
    wanted = list(ids)
    states = list(sources)
    for source in states:
        check_vm_transition(source, target)
    if not wanted:
        return []
    if VmState.READY in states:
        left = {row.vm_id for row in await run(tx, _LEAVE_QUEUE, ids=wanted)}
        if states == [VmState.READY]:
            wanted = [vm_id for vm_id in wanted if vm_id in left]
    return await _move(tx, wanted, target, states, reason=reason, deadline_seconds=deadline_seconds)


async def take_from_queue(tx: Tx, pool_id: UUID, ids: Sequence[UUID], *, floor: int) -> list[UUID]:
    """Takes ready VMs out of the queue to remove them, in the order given, and leaves at least `floor` in it.

    A VM that a claim is taking at this moment is skipped. The caller moves the returned VMs to `releasing`.
    """
    if not ids:
        return []
    ready: int = (await run(tx, _COUNT_READY, pool_id=pool_id)).scalar_one()
    allowed = list(ids)[: max(0, ready - floor)]
    return [row.vm_id for row in await run(tx, _TAKE_BACK, ids=allowed)]


async def put_last(tx: Tx, ids: Sequence[UUID]) -> None:
    """These ready VMs are claimed after all others of their pool, until `put_back`. One that is being claimed is left alone."""
    if ids:
        await run(tx, _PUT, ids=list(ids), places=LAST_PLACES)


async def put_back(tx: Tx, ids: Sequence[UUID]) -> None:
    """These ready VMs are claimed in turn again, after those that are there now."""
    if ids:
        await run(tx, _PUT, ids=list(ids), places=0)


async def leave_ready(tx: Tx, ids: Sequence[UUID], *, reason: str) -> list[UUID]:
    """Moves VMs from `ready` to `releasing` whose places in the queue the caller has deleted."""
    return await _move(tx, list(ids), VmState.RELEASING, [VmState.READY], reason=reason, deadline_seconds=None)


async def release(tx: Tx, ids: Iterable[UUID], *, sources: Iterable[VmState], reason: str | None) -> list[UUID]:
    """Moves VMs to `releasing`. `reason` None keeps the reason of the row."""
    return await move(tx, ids, VmState.RELEASING, sources=sources, reason=reason)


async def get(tx: Tx, vm_id: UUID) -> VmRow | None:
    row = await first(tx, _BY_ID, ids=[vm_id])
    return read_vm(row) if row else None


async def _move(
    tx: Tx,
    ids: Sequence[UUID],
    target: VmState,
    sources: Sequence[VmState],
    *,
    reason: str | None,
    deadline_seconds: float | None,
) -> list[UUID]:
    params = {"ids": list(ids), "sources": [str(s) for s in sources], "target": str(target), "reason": reason}
    if target is VmState.BOOTING:
        params["deadline"] = deadline_seconds
    return [row.id for row in await run(tx, _MOVES[target], **params)]
