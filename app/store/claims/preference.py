"""The claim of a preferred warm VM, in two short statements of one transaction: a look at the head of the queue of ready VMs,
and the claim of the best of those that nobody else is claiming.

Its cost does not grow with the pool or its history: it looks at a fixed number of ready VMs and of the latest claims. It is
only for claims with a preference; all others are combined (`store.claims.warm`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text

from app.domain.claims import NewClaim, WarmClaim
from app.domain.placement import WarmPlace
from app.store.database import Tx
from app.store.vms.rows import LAST_PLACES

LOOKED_AT = 64
"""How many ready VMs, and how many of the pool's latest claims, are looked at."""

# For this transaction alone. A plan made while the tables were small would go on scanning them.
_WALK_INDEXES = text(
    "SELECT set_config('enable_seqscan', 'off', true), set_config('plan_cache_mode', 'force_custom_plan', true)"
)
_HEAD = text("""
    SELECT seq, node FROM ready_slot WHERE pool_id = :pool_id AND seq >= :from_seq AND seq < :last_places ORDER BY seq LIMIT :limit
""")
_HEARD = text("""
    SELECT s.seq FROM (
        SELECT seq, vm_id FROM ready_slot WHERE pool_id = :pool_id AND seq >= :from_seq ORDER BY seq LIMIT :limit) s
    JOIN guest g ON g.vm_id = s.vm_id WHERE g.conflict IS NULL ORDER BY g.hello_at IS NULL, s.seq
""")
_ZONES = text("SELECT name, zone FROM node WHERE name = ANY(CAST(:names AS text[]))")
_LATEST = text("""
    SELECT v.node, count(*) AS n FROM vm v WHERE v.id = ANY(ARRAY(
        SELECT vm_id FROM (
            SELECT vm_id, state FROM claim WHERE pool_id = :pool_id ORDER BY id DESC LIMIT :limit) latest
        WHERE state = 'bound'))
      AND v.node IS NOT NULL GROUP BY v.node
""")

# As in `store.claims.warm`: whoever locks the row in ready_slot has the VM, and rows locked by others are skipped.
_TAKE = text("""
WITH locked AS MATERIALIZED (
    SELECT ctid AS tid, vm_id, name, node, addresses, ready_at, boot_seconds FROM ready_slot
    WHERE pool_id = :pool_id AND seq = ANY(CAST(:seqs AS bigint[]))
      AND (SELECT deleting_at IS NULL FROM pool WHERE id = :pool_id)
    ORDER BY array_position(CAST(:seqs AS bigint[]), seq) LIMIT 1 FOR UPDATE SKIP LOCKED),
made AS (
    INSERT INTO claim (id, pool_id, vm_id, state, idem_key, request_hash, labels, path, lease_seconds, lease_expires_at, bound_at)
    SELECT :claim_id, :pool_id, vm_id, 'bound', CAST(:key AS text), CAST(:hash AS text), CAST(:labels AS jsonb), 'pool',
        CAST(:lease AS int), now() + make_interval(secs => CAST(:lease AS int)), now() FROM locked
    ON CONFLICT (idem_key) WHERE idem_key IS NOT NULL DO NOTHING
    RETURNING vm_id),
unqueued AS (DELETE FROM ready_slot WHERE ctid = ANY(ARRAY(SELECT tid FROM locked JOIN made USING (vm_id)))),
taken AS (
    UPDATE vm SET state = 'claimed', state_since = now(), claimed_at = now(), claim_id = :claim_id
    WHERE id = ANY(ARRAY(SELECT vm_id FROM made))),
noted AS (INSERT INTO event (type, pool_id, vm_id, claim_id, data)
    SELECT 'claim.bound', :pool_id, vm_id, :claim_id, '{"path": "pool"}'::jsonb FROM made)
SELECT l.vm_id, l.name, l.node, l.addresses, l.ready_at, l.boot_seconds, now() AS created_at, m.vm_id IS NOT NULL AS made
FROM locked l LEFT JOIN made m USING (vm_id)
""")


@dataclass(frozen=True, slots=True)
class KeyTaken:
    """Another claim has the idempotency key; nothing was taken."""


async def head(tx: Tx, pool_id: UUID, *, from_seq: int) -> list[WarmPlace]:
    """The head of the pool's queue of ready VMs, from a sequence number on, with their nodes' zones, without those that stand
    behind all others: nobody prefers these. From then on the transaction's statements use indexes only.
    """
    await tx.execute(_WALK_INDEXES)
    rows = (
        await tx.execute(
            _HEAD, {"pool_id": pool_id, "from_seq": from_seq, "last_places": LAST_PLACES, "limit": LOOKED_AT}
        )
    ).all()
    names = sorted({row.node for row in rows if row.node is not None})
    zones = {row.name: row.zone for row in await tx.execute(_ZONES, {"names": names})}
    return [WarmPlace(row.seq, row.node, zones.get(row.node)) for row in rows]


async def heard(tx: Tx, pool_id: UUID, *, from_seq: int) -> list[int]:
    """Of the head of the queue those whose guests have a channel, those that have said hello first. Likewise with indexes only."""
    await tx.execute(_WALK_INDEXES)
    rows = await tx.execute(_HEARD, {"pool_id": pool_id, "from_seq": from_seq, "limit": LOOKED_AT})
    return [row.seq for row in rows]


async def latest_by_node(tx: Tx, pool_id: UUID) -> Mapping[str, int]:
    """How many VMs of the pool's latest claims are on each node, counting bound claims only."""
    rows = await tx.execute(_LATEST, {"pool_id": pool_id, "limit": LOOKED_AT})
    return {row.node: row.n for row in rows}


async def take(tx: Tx, pool_id: UUID, claim: NewClaim, seqs: Sequence[int]) -> WarmClaim | KeyTaken | None:
    """Claims the first of these ready VMs that nobody else is claiming; None: all of them are gone."""
    params = {
        "pool_id": pool_id,
        "seqs": list(seqs),
        "claim_id": claim.id,
        "key": claim.request.key,
        "hash": claim.request.request_hash,
        "labels": json.dumps(claim.request.labels),
        "lease": claim.lease_seconds,
    }
    row = (await tx.execute(_TAKE, params)).first()
    if row is None:
        return None
    return WarmClaim(claim, *row[:7]) if row.made else KeyTaken()
