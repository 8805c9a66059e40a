"""Tables that are large enough for Postgres to use their indexes, and the nodes of a query plan."""

from app.store.database import Database
from tests.support.rows import execute, make_pool

ROWS = 20_000
_FILL = f"""
    WITH made AS (
        INSERT INTO vm (id, pool_id, name, state, revision, uid, ready_at, boot_seconds)
        SELECT gen_random_uuid(), :pool, 'vm-' || n, 'ready', 'r1', 'uid-' || n, now(), 1 FROM generate_series(1, {ROWS}) n
        RETURNING id, pool_id, name)
    INSERT INTO ready_slot (pool_id, seq, vm_id, name, addresses, ready_at)
    SELECT pool_id, nextval('ready_seq'), id, name, '{{}}', now() FROM made
"""
_CLAIMS = f"""
    INSERT INTO claim (id, pool_id, state, idem_key, lease_seconds, ended_at)
    SELECT gen_random_uuid(), :pool, 'released', 'old-' || n, 60, now() FROM generate_series(1, {ROWS}) n
"""


def nodes(plan):
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


async def fill(database: Database):
    """A pool with `ROWS` ready VMs and as many claims that have ended."""
    pool = await make_pool(database)
    await execute(database, _FILL, pool=pool.id)
    await execute(database, _CLAIMS, pool=pool.id)
    await execute(database, "ANALYZE")
    return pool
