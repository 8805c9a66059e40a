"""The claim statement's plan on a big table: it begins at the hint, and never reads a table whole."""

import json

import pytest

from app.store.claims.warm import WarmClaimStore, _Idle
from tests.support.query_plans import ROWS, nodes
from tests.support.rows import execute, make_pool, request

_BIG = {"ready_slot", "vm", "claim"}


class Eavesdropper:
    """Stands in for the lane's connection, to learn what it would be asked."""

    def __init__(self):
        self.asked = []

    def is_closed(self):
        return False

    def get_server_pid(self):
        return 1

    async def fetch(self, *asked):
        self.asked.append(asked)
        return []


async def explain(lane, pool, requests, *, hint):
    """The generic plan of the statement that the lane sends for these requests, and what it did; nothing of it stays."""
    ear = Eavesdropper()
    lane._hints[pool.id] = hint
    lane._idle.get_nowait()
    lane._idle.put_nowait(_Idle(ear, lane._generation))
    await lane.claim(pool.id, requests)
    lane._idle.get_nowait()
    lane._idle.put_nowait(None)
    ((query, *arguments),) = ear.asked
    connection = await lane._connect()
    try:
        statement = await connection.prepare(query)
        kinds = [kind.name for kind in statement.get_parameters()]
        await connection.execute(f"PREPARE claim_plan({', '.join(kinds)}) AS {query}")
        values = ", ".join(_literal(value, kind) for value, kind in zip(arguments, kinds, strict=True))
        await connection.execute("BEGIN")
        (text,) = await connection.fetchrow(
            f"EXPLAIN (FORMAT JSON, ANALYZE, TIMING off, SUMMARY off) EXECUTE claim_plan({values})"
        )
    finally:
        connection.terminate()
    return list(nodes(json.loads(text)[0]["Plan"]))


def _literal(value, kind):
    if isinstance(value, list):
        inner = ", ".join("NULL" if one is None else f"'{one}'" for one in value)
        return f"ARRAY[{inner}]::{kind}"
    return f"'{value}'::{kind}"


@pytest.mark.parametrize("keyed", [True, False])
async def test_the_plan_walks_indexes_from_the_hint(big, keyed):
    db, pool = big
    lane = WarmClaimStore(db.url)
    await lane.lower_hints([pool.id])
    hint = lane._hints[pool.id] + ROWS // 2
    for count in (1, 64):
        plan = await explain(lane, pool, [request(f"new-{n}" if keyed else None) for n in range(count)], hint=hint)
        reads = [node for node in plan if node.get("Relation Name") in _BIG and "Scan" in node["Node Type"]]
        assert reads
        assert not [node for node in reads if node["Node Type"] == "Seq Scan"], reads
        slots = [node for node in reads if node.get("Index Name") == "ready_slot_pkey"]
        assert slots
        assert "seq >= " in slots[0]["Index Cond"]
        assert max(node["Actual Rows"] * node["Actual Loops"] for node in reads) <= count
        assert {node.get("Index Name") for node in plan} >= {"ready_slot_pkey", "vm_pkey"}
        assert not keyed or "claim_idem_key_key" in {node.get("Index Name") for node in plan}
        sorts = [node for node in plan if node["Node Type"] in {"Sort", "Incremental Sort"}]
        assert all(node["Actual Rows"] <= count for node in sorts), "only the requests themselves may be sorted"
    await lane.close()


@pytest.mark.parametrize("key", ["k", None])
async def test_a_plan_made_while_the_tables_were_empty_walks_indexes_too(db, key):
    """A lane prepares its statement once, often on a young database; what it plans then it keeps."""
    pool = await make_pool(db)
    await execute(db, "ANALYZE")
    lane = WarmClaimStore(db.url)
    plan = await explain(lane, pool, [request(key)], hint=0)
    await lane.close()
    assert not [n for n in plan if n["Node Type"] == "Seq Scan" and n["Relation Name"] in _BIG]
