"""A database as large as an installation gets: ended claims, VMs and events of 1,000 pools, made by SQL as the service would have."""

from collections.abc import Callable

from app.domain.pools import PoolSpec
from bench.rig import connected

_BLOCK = 100_000
_POOLS = """
WITH made AS (
    INSERT INTO pool (id, name, spec, vm_spec, revision, shape)
    SELECT uuidv7(), 'pool-' || n, $2::jsonb, '{}', 'r', 'shape-' || n % 100 FROM generate_series(0, $1::int - 1) n RETURNING id)
INSERT INTO pool_plan (pool_id, due_at) SELECT id, now() + interval '1 hour' FROM made
"""
_LIVE = """
WITH made AS (
    INSERT INTO vm (id, pool_id, name, state, revision, uid, vmi_uid, node, addresses, asked_at, ready_at, boot_seconds, shape, path)
    SELECT uuidv7(), p.id, 'live-' || gen_random_uuid(), 'ready', 'r', gen_random_uuid(), gen_random_uuid(), 'node-1',
        ARRAY['10.0.0.1'], now(), now(), 30, p.shape, 'cold'
    FROM pool p, generate_series(1, $1::int) RETURNING id, pool_id, name, node, addresses, ready_at, boot_seconds)
INSERT INTO ready_slot (pool_id, seq, vm_id, name, node, addresses, ready_at, boot_seconds)
SELECT pool_id, nextval('ready_seq'), id, name, node, addresses, ready_at, boot_seconds FROM made ORDER BY id
"""
# Half of them have labels, one in a hundred failed, one in ten described its VM; the oldest hundredth is of one team. $4: days ago.
_HISTORY = """
WITH pools AS (SELECT array_agg(id ORDER BY name) AS ids FROM pool WHERE name LIKE 'pool-%'),
made AS (
    INSERT INTO vm (id, pool_id, name, state, revision, asked_at, ready_at, ended_at, boot_seconds, path, shape, lost, claim_id)
    SELECT lpad(to_hex($3::bigint + n), 32, '0')::uuid, ids[1 + n % cardinality(ids)], 'vm-' || $3::bigint + n,
        CASE WHEN n % 100 = 0 THEN 'lost' ELSE 'deleted' END, 'r', at, at, at, 30 + n % 10, 'cold', 'shape-' || n % 100, n % 100 = 0,
        lpad(to_hex($3::bigint + n), 32, '0')::uuid
    FROM pools, generate_series($1::int, $2::int - 1) n,
        LATERAL (SELECT now() - make_interval(days => $4::int) + n * interval '1 millisecond' AS at) t RETURNING id, pool_id),
claimed AS (
    INSERT INTO claim (id, pool_id, vm_id, state, lease_seconds, labels, path, shape, bound_at, created_at, ended_at, reason)
    SELECT lpad(to_hex($3::bigint + n), 32, '0')::uuid, ids[1 + n % cardinality(ids)], lpad(to_hex($3::bigint + n), 32, '0')::uuid,
        CASE WHEN n % 100 = 0 THEN 'failed' WHEN n % 3 = 0 THEN 'expired' ELSE 'released' END, 3600,
        CASE WHEN n % 2 = 0 THEN '{}'::jsonb ELSE jsonb_build_object('job', 'ci-' || n, 'team', CASE WHEN n < $5::int THEN 'old' ELSE 'web' END) END,
        'pool', CASE WHEN n % 10 = 0 THEN 'shape-' || n % 100 END, at, at, at, 'the client released it'
    FROM pools, generate_series($1::int, $2::int - 1) n,
        LATERAL (SELECT now() - make_interval(days => $4::int) + n * interval '1 millisecond' AS at) t)
INSERT INTO event (type, pool_id, vm_id, claim_id, at)
SELECT type, pool_id, id, id, now() - make_interval(days => $4::int)
FROM made, unnest(ARRAY['vm.ready', 'claim.bound', 'claim.released', 'vm.deleted']) type
"""
_LABELS = """
INSERT INTO claim_label (claim_id, label, pool_id, shape, state)
SELECT c.id, l.key || '=' || l.value, c.pool_id, c.shape, c.state FROM claim c CROSS JOIN jsonb_each_text(c.labels) l
WHERE c.ended_at IS NOT NULL ON CONFLICT DO NOTHING
"""


# As a worker has left them that has read the history.
_BOUND = """
INSERT INTO bound_event (pool_id, xid, id) SELECT pool_id, xid, id FROM event WHERE type = 'claim.bound' ON CONFLICT DO NOTHING
"""
_READ = """
INSERT INTO event_reader (name, xid, id) SELECT 'plan', xid, id FROM event ORDER BY xid DESC, id DESC LIMIT 1
ON CONFLICT (name) DO UPDATE SET xid = excluded.xid, id = excluded.id
"""


async def make_pools(url: str, count: int, *, live: int) -> None:
    """Pools of `live` ready VMs each."""
    spec = PoolSpec(size=live, template={"image": "none"}).model_dump_json()
    async with connected(url) as connection:
        await connection.execute(_POOLS, count, spec)
        await connection.execute(_LIVE, live)


async def make_history(url: str, count: int, say: Callable[[str], None], *, days: int = 1, first: int = 0) -> None:
    """`count` claims that ended `days` ago, with as many VMs and four times as many events."""
    async with connected(url) as connection:
        for start in range(0, count, _BLOCK):
            await connection.execute(_HISTORY, start, min(count, start + _BLOCK), first, days, count // 100)
            say(f"  {min(count, start + _BLOCK):,} claims, VMs and their events")
        await connection.execute(_LABELS)
        await connection.execute(_BOUND)
        await connection.execute(_READ)
        for table in ("vm", "claim", "claim_label", "event", "bound_event", "pool", "pool_plan", "ready_slot"):
            await connection.execute(f"VACUUM ANALYZE {table}")
        await connection.execute("CHECKPOINT")
