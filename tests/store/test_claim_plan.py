"""The claim statement's plan on a big table: it begins at the hint, and never reads a table whole."""

import json

import pytest

from app.store import claim_lane
from app.store.claim_lane import ClaimLane
from tests.store.scenes import execute, make_pool, request

ROWS = 50_000
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


@pytest.fixture
async def big_pool(db):
    pool = await make_pool(db)
    await execute(db, _FILL, pool=pool.id)
    await execute(db, _CLAIMS, pool=pool.id)
    await execute(db, "ANALYZE")
    return pool


async def explain(lane, pool, requests, *, hint):
    """The plan of the statement as the lane prepares it, and what it did; nothing of it stays."""
    connection = await lane._connect()
    try:
        async with connection.transaction():
            types = "uuid, bigint, uuid[], text[], text[], int[], text[]"
            await connection.execute(f"PREPARE claim_plan({types}) AS {claim_lane._CLAIM}")
            values = ", ".join(
                [
                    f"'{pool.id}'",
                    str(hint),
                    _array([str(one.claim_id) for one in requests], "uuid"),
                    _array([one.key for one in requests], "text"),
                    _array([one.request_hash for one in requests], "text"),
                    _array([one.lease_seconds for one in requests], "int"),
                    _array([one.labels for one in requests], "text"),
                ]
            )
            (text,) = await connection.fetchrow(
                f"EXPLAIN (FORMAT JSON, ANALYZE, TIMING off, SUMMARY off) EXECUTE claim_plan({values})"
            )
            await connection.execute("ROLLBACK")
    finally:
        connection.terminate()
    return list(nodes(json.loads(text)[0]["Plan"]))


def _array(values, kind):
    return f"ARRAY[{', '.join('NULL' if value is None else repr(value) for value in values)}]::{kind}[]"


@pytest.mark.parametrize("count", [1, 64])
async def test_the_plan_walks_indexes_from_the_hint(db, big_pool, count):
    lane = ClaimLane(db.url)
    await lane.lower_hints([big_pool.id])
    hint = lane._hints[big_pool.id] + ROWS // 2
    plan = await explain(lane, big_pool, [request(f"new-{n}") for n in range(count)], hint=hint)
    await lane.close()

    big = ("ready_slot", "vm", "claim")
    reads = [node for node in plan if node.get("Relation Name") in big and "Scan" in node["Node Type"]]
    assert reads
    assert not [node for node in reads if node["Node Type"] == "Seq Scan"], reads
    slots = [node for node in reads if node.get("Index Name") == "ready_slot_pkey"]
    assert slots
    assert "seq >= " in slots[0]["Index Cond"]
    assert max(node["Actual Rows"] * node["Actual Loops"] for node in reads) <= count
    assert {node.get("Index Name") for node in plan} >= {"ready_slot_pkey", "claim_idem_key_key", "vm_pkey"}
    sorts = [node for node in plan if node["Node Type"] in {"Sort", "Incremental Sort"}]
    assert all(node["Actual Rows"] <= count for node in sorts), "only the requests themselves may be sorted"


async def test_a_plan_made_while_the_tables_were_empty_walks_indexes_too(db):
    """A lane prepares its statement once, often on a young database; what it plans then it keeps."""
    pool = await make_pool(db)
    await execute(db, "ANALYZE")
    lane = ClaimLane(db.url)
    plan = await explain(lane, pool, [request("k")], hint=0)
    await lane.close()
    assert not [n for n in plan if n["Node Type"] == "Seq Scan" and n["Relation Name"] in {"ready_slot", "vm", "claim"}]
