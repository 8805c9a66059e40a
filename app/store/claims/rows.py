"""Claims: their queue, binding in order of arrival, leases, ends, and reads. The warm path is in `store.claims.warm`.

Rows are locked in one order everywhere, so that there are no deadlocks: a place in a queue, then the claim, then the VM.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from app.domain.states import ClaimState, check_claim_transition
from app.domain.templates import NO_MARKS, Marks
from app.store.claims import handovers
from app.store.database import Tx, any_row, first, run
from app.store.notices import notify_settled
from app.store.rows import CLAIM_COLUMNS, CLAIM_TABLES, ClaimRow, read_claim

_FROM = f"FROM {CLAIM_TABLES}"
_BY_ID = text(f"SELECT {CLAIM_COLUMNS} {_FROM} WHERE c.id = :id")
_SETTLED = text("SELECT id FROM claim WHERE id = ANY(CAST(:ids AS uuid[])) AND state <> 'pending'")
_INSERT_PENDING = text("""
    WITH made AS (
        INSERT INTO claim (id, pool_id, state, idem_key, request_hash, labels, lease_seconds, pending_until, reason,
            shape, choice, allowed, marks)
        VALUES (:id, :pool_id, 'pending', :key, :request_hash, :labels, :lease_seconds,
            now() + make_interval(secs => :seconds), :reason, :shape, :choice, CAST(:allowed AS text[]), :marks)
        ON CONFLICT (idem_key) WHERE idem_key IS NOT NULL DO NOTHING RETURNING id),
    queued AS (INSERT INTO claim_queue (pool_id, claim_id) SELECT :pool_id, id FROM made),
    noted AS (INSERT INTO event (type, pool_id, claim_id, data)
        SELECT 'claim.pending', :pool_id, id, jsonb_build_object('reason', CAST(:reason AS text)) FROM made)
    SELECT id FROM made
""").bindparams(
    bindparam("labels", type_=JSONB),
    bindparam("choice", type_=JSONB(none_as_null=True)),
    bindparam("marks", type_=JSONB(none_as_null=True)),
)
_BY_KEY = text("SELECT id FROM claim WHERE idem_key = :key")

# A waiting claim is locked by its row in claim_queue. Both queues are read in order, and rows locked by others are skipped.
_BIND = text("""
    WITH waiting AS MATERIALIZED (
        SELECT ctid AS tid, seq, claim_id FROM claim_queue WHERE pool_id = :pool_id
        ORDER BY seq LIMIT :limit FOR UPDATE SKIP LOCKED),
    locked AS MATERIALIZED (
        SELECT ctid AS tid, seq, vm_id FROM ready_slot
        WHERE pool_id = :pool_id AND (SELECT deleting_at IS NULL FROM pool WHERE id = :pool_id)
        ORDER BY seq LIMIT (SELECT count(*) FROM waiting) FOR UPDATE SKIP LOCKED),
    pairs AS MATERIALIZED (
        SELECT w.tid AS waiting_tid, w.claim_id, l.tid AS slot_tid, l.vm_id
        FROM (SELECT *, row_number() OVER (ORDER BY seq) AS n FROM waiting) w
        JOIN (SELECT *, row_number() OVER (ORDER BY seq) AS n FROM locked) l USING (n)),
    unwaited AS (DELETE FROM claim_queue WHERE ctid = ANY(ARRAY(SELECT waiting_tid FROM pairs))),
    unqueued AS (DELETE FROM ready_slot WHERE ctid = ANY(ARRAY(SELECT slot_tid FROM pairs))),
    bound AS (
        UPDATE claim SET state = 'bound', bound_at = now(), pending_until = NULL, labelled = false, label_due_at = now(),
            path = (SELECT CASE kind WHEN 'pool' THEN 'pool' ELSE path END FROM pool WHERE pool.id = :pool_id),
            vm_id = (SELECT pairs.vm_id FROM pairs WHERE pairs.claim_id = claim.id),
            lease_expires_at = now() + make_interval(secs => lease_seconds)
        WHERE id = ANY(ARRAY(SELECT claim_id FROM pairs)) RETURNING id, vm_id, path),
    taken AS (
        UPDATE vm SET state = 'claimed', state_since = now(), claimed_at = now(),
            claim_id = (SELECT pairs.claim_id FROM pairs WHERE pairs.vm_id = vm.id)
        WHERE id = ANY(ARRAY(SELECT vm_id FROM pairs))),
    noted AS (INSERT INTO event (type, pool_id, vm_id, claim_id, data)
        SELECT 'claim.bound', :pool_id, vm_id, id, jsonb_build_object('path', path) FROM bound)
    SELECT id FROM bound
""")
_POOLS_WAITING = text("SELECT DISTINCT pool_id FROM claim_queue")

_LOCK_PLACES = text(
    "SELECT claim_id FROM claim_queue WHERE claim_id = ANY(CAST(:ids AS uuid[])) ORDER BY pool_id, seq FOR UPDATE"
)
_END = text("""
    WITH ending AS (
        SELECT id, pool_id, vm_id, state FROM claim
        WHERE id = ANY(CAST(:ids AS uuid[])) AND state = ANY(CAST(:sources AS text[])) ORDER BY id FOR UPDATE),
    ended AS (
        UPDATE claim SET state = :target, ended_at = now(), reason = :reason, pending_until = NULL,
            idem_key = CASE WHEN :target = 'failed' AND vm_id IS NULL THEN NULL ELSE idem_key END
        WHERE id = ANY(ARRAY(SELECT id FROM ending))),
    noted AS (INSERT INTO event (type, pool_id, vm_id, claim_id, data)
        SELECT 'claim.' || :target, pool_id, vm_id, id,
            jsonb_build_object('from', state, 'reason', CAST(:reason AS text)) FROM ending)
    SELECT id, pool_id, vm_id FROM ending
""")

_LEAVE_QUEUE = text("DELETE FROM claim_queue WHERE claim_id = ANY(CAST(:ids AS uuid[]))")
_QUEUED_AGAIN = text("SELECT 1 FROM claim_queue WHERE claim_id = ANY(CAST(:ids AS uuid[])) LIMIT 1")

_RENEW = text("""
    WITH renewed AS (
        UPDATE claim SET lease_expires_at = now() + make_interval(secs => :seconds), lease_seconds = :seconds,
            labelled = labelled AND lease_seconds >= :seconds, label_due_at = now()
        WHERE id = :id AND state = 'bound' RETURNING id, pool_id, vm_id, lease_expires_at),
    noted AS (INSERT INTO event (type, pool_id, vm_id, claim_id, data)
        SELECT 'claim.renewed', pool_id, vm_id, id, jsonb_build_object('lease_expires_at', lease_expires_at) FROM renewed)
    SELECT id FROM renewed
""")
_KEEP_PLACE = text("""
    UPDATE claim SET pending_until = least(
        now() + make_interval(secs => :seconds), (choice->>'deadline_at')::timestamptz)
    WHERE id = :id AND state = 'pending' AND (CAST(:expected AS timestamptz) IS NULL OR pending_until = :expected)
    RETURNING pending_until
""")

_EXPIRED_LEASES = text("""
    SELECT id FROM claim WHERE state = 'bound' AND lease_expires_at < now()
    ORDER BY lease_expires_at LIMIT :limit FOR UPDATE SKIP LOCKED
""")
_EXPIRED_PLACES = text("""
    SELECT c.id FROM claim_queue q JOIN claim c ON c.id = q.claim_id WHERE c.pending_until < now()
    ORDER BY q.seq LIMIT :limit FOR UPDATE OF q, c SKIP LOCKED
""")

# The claim goes to the front of the queue, with the lowest sequence number. It met its deadline, which no longer applies.
_REQUEUE = text("""
    WITH again AS (
        UPDATE claim SET state = 'pending', vm_id = NULL, bound_at = NULL, lease_expires_at = NULL, reason = :reason,
            pending_until = now() + make_interval(secs => :seconds), choice = jsonb_set(choice, '{deadline_at}', 'null'),
            replacements = replacements || jsonb_build_array(jsonb_build_object(
                'vm_id', vm_id, 'reason', CAST(:reason AS text), 'at', now()))
        WHERE id = :id AND state = 'bound' AND vm_id = :vm_id RETURNING id, pool_id),
    queued AS (
        INSERT INTO claim_queue (pool_id, seq, claim_id)
        SELECT pool_id, least(0, (SELECT min(seq) FROM claim_queue q WHERE q.pool_id = again.pool_id)) - 1, id FROM again),
    unhanded AS (UPDATE handover SET state = 'pending', taken_at = NULL WHERE state = 'taken' AND claim_id IN (SELECT id FROM again)),
    noted AS (INSERT INTO event (type, pool_id, vm_id, claim_id, data)
        SELECT 'claim.pending', pool_id, :vm_id, id, jsonb_build_object('from', 'bound', 'reason', CAST(:reason AS text)) FROM again)
    SELECT id FROM again
""")

_HAS_VM = text("SELECT id FROM claim WHERE id = :id AND state = 'bound' AND vm_id = :vm_id FOR UPDATE")

_PENDING_OF_POOL = text("""
    SELECT q.claim_id FROM claim_queue q JOIN claim c ON c.id = q.claim_id WHERE q.pool_id = :pool_id AND c.allowed IS NULL
""")
_BOUND_OF_POOL = text("SELECT id FROM claim WHERE state = 'bound' AND pool_id = :pool_id")


@dataclass(frozen=True, slots=True)
class StoredChoice:
    """What a claim that describes its VM keeps: the shape, the paths that it allows, and `choice`, the one that was chosen; and the
    marks that its VM gets.
    """

    shape: str
    choice: dict[str, Any]
    allowed: tuple[str, ...]
    marks: Marks = NO_MARKS


async def get(tx: Tx, claim_id: UUID) -> ClaimRow | None:
    row = await first(tx, _BY_ID, id=claim_id)
    return read_claim(row) if row else None


async def settled(tx: Tx, claim_ids: Sequence[UUID]) -> list[UUID]:
    """Those of the claims that are no longer pending."""
    return [row.id for row in await run(tx, _SETTLED, ids=list(claim_ids))]


async def insert_pending(
    tx: Tx,
    *,
    claim_id: UUID,
    pool_id: UUID,
    key: str | None,
    request_hash: str,
    labels: dict[str, str],
    lease_seconds: int,
    pending_seconds: float,
    reason: str,
    choice: StoredChoice | None = None,
) -> UUID:
    """Adds a claim to the end of its pool's queue. Returns its id, or that of the claim that has its key already."""
    if await any_row(
        tx,
        _INSERT_PENDING,
        id=claim_id,
        pool_id=pool_id,
        key=key,
        request_hash=request_hash,
        labels=labels,
        lease_seconds=lease_seconds,
        seconds=pending_seconds,
        reason=reason,
        shape=choice.shape if choice else None,
        choice=choice.choice if choice else None,
        allowed=list(choice.allowed) if choice else None,
        marks=choice.marks.as_json() if choice else None,
    ):
        return claim_id
    known = await by_key(tx, key) if key is not None else None
    return known if known is not None else claim_id


async def by_key(tx: Tx, key: str) -> UUID | None:
    """The claim that an idempotency key belongs to."""
    known: UUID | None = (await run(tx, _BY_KEY, key=key)).scalar()
    return known


async def bind_pending(tx: Tx, pool_id: UUID, *, limit: int = 500) -> list[UUID]:
    """Binds waiting claims to ready VMs, both in order. Returns the claims that were bound."""
    bound = [row.id for row in await run(tx, _BIND, pool_id=pool_id, limit=limit)]
    if bound:
        await handovers.follow_bound(tx, bound)
    return bound


async def pools_with_pending(tx: Tx) -> list[UUID]:
    return [row.pool_id for row in await run(tx, _POOLS_WAITING)]


async def end(
    tx: Tx, claim_ids: Sequence[UUID], target: ClaimState, *, sources: Sequence[ClaimState], reason: str
) -> list[tuple[UUID, UUID, UUID | None]]:
    """Ends those of the claims that are in one of `sources`. Returns (claim, pool, VM to release) of each.

    A claim that fails before it has a VM frees its idempotency key, so that a retry makes a new claim.
    """
    for source in sources:
        check_claim_transition(source, target)
    if not claim_ids:
        return []
    while True:
        async with tx.begin_nested() as attempt:
            # The queue before the claim, as binding does it.
            places = {row.claim_id for row in await run(tx, _LOCK_PLACES, ids=list(claim_ids))}
            ended = [
                (row.id, row.pool_id, row.vm_id)
                for row in await run(
                    tx, _END, ids=list(claim_ids), sources=[str(s) for s in sources], target=str(target), reason=reason
                )
            ]
            ids = [claim_id for claim_id, _, _ in ended]
            await run(tx, _LEAVE_QUEUE, ids=list(places.intersection(ids)))
            # A claim that was requeued while this transaction waited for its row has a place that was not locked here.
            # Whoever locks that place waits for the claim, so deleting it now could deadlock: start again.
            if not await any_row(tx, _QUEUED_AGAIN, ids=ids):
                break
            await attempt.rollback()
    return ended


async def fail_pending(tx: Tx, claim_ids: Sequence[UUID], *, reason: str) -> list[UUID]:
    """Those of the claims that are pending fail, and whoever waits for them is told. Returns their pools."""
    ended = await end(tx, claim_ids, ClaimState.FAILED, sources=[ClaimState.PENDING], reason=reason)
    await notify_settled(tx, [claim_id for claim_id, _, _ in ended])
    return [pool_id for _, pool_id, _ in ended]


async def renew(tx: Tx, claim_id: UUID, *, seconds: int) -> bool:
    """False where the claim is not bound."""
    return await any_row(tx, _RENEW, id=claim_id, seconds=seconds)


async def keep_place(tx: Tx, claim_id: UUID, *, seconds: float, expires_at: datetime | None = None) -> datetime | None:
    """Has the place of a pending claim expire in `seconds`, and returns when that is. None: nothing was changed.

    With `expires_at` only where the place still expires then, and no other request has changed that.
    """
    until: datetime | None = (await run(tx, _KEEP_PLACE, id=claim_id, seconds=seconds, expected=expires_at)).scalar()
    return until


async def expired_leases(tx: Tx, *, limit: int) -> list[UUID]:
    """Bound claims whose lease has expired, locked until `tx` ends. One that is being renewed is skipped."""
    return [row.id for row in await run(tx, _EXPIRED_LEASES, limit=limit)]


async def expired_places(tx: Tx, *, limit: int) -> list[UUID]:
    """Pending claims whose place has expired, locked with it until `tx` ends. One that is being kept or bound is skipped."""
    return [row.id for row in await run(tx, _EXPIRED_PLACES, limit=limit)]


async def requeue(tx: Tx, claim_id: UUID, *, vm_id: UUID, reason: str, pending_seconds: float) -> bool:
    """Puts a bound claim whose VM died back to the front of the queue; False where it is no longer bound to that VM."""
    return await any_row(tx, _REQUEUE, id=claim_id, vm_id=vm_id, reason=reason, seconds=pending_seconds)


async def has_vm(tx: Tx, claim_id: UUID, vm_id: UUID) -> bool:
    """Whether the claim is bound to that VM; its row is locked until `tx` ends."""
    return await any_row(tx, _HAS_VM, id=claim_id, vm_id=vm_id)


async def pending_of_pool(tx: Tx, pool_id: UUID) -> list[UUID]:
    """Pending claims that name the pool. One that describes its VM is moved to another path instead (`store.claims.described`)."""
    return [row.claim_id for row in await run(tx, _PENDING_OF_POOL, pool_id=pool_id)]


async def bound_of_pool(tx: Tx, pool_id: UUID) -> list[UUID]:
    return [row.id for row in await run(tx, _BOUND_OF_POOL, pool_id=pool_id)]
