"""Deleting history: each batch begins where the last one ended, and reads what it deletes, also under a generic plan."""

from datetime import timedelta

import pytest
from sqlalchemy import text

from app.store import history
from app.store.events import Cursor
from tests.support.query_plans import nodes
from tests.support.rows import execute, make_pool, scalar

ROWS = 20_000
_CLAIMS = f"""
    INSERT INTO claim (id, pool_id, state, lease_seconds, ended_at)
    SELECT gen_random_uuid(), :pool, 'released', 60, now() - n * interval '1 minute' FROM generate_series(1, {ROWS}) n
"""
_VMS = f"""
    INSERT INTO vm (id, pool_id, name, state, revision, ended_at)
    SELECT gen_random_uuid(), :pool, 'vm-' || n, 'deleted', 'r1', now() - n * interval '1 minute' FROM generate_series(1, {ROWS}) n
"""
_EVENTS = f"""
    INSERT INTO event (xid, type, at)
    SELECT (3 + n / 50)::text::xid8, 'vm.ready', now() - ({ROWS} - n) * interval '1 minute' FROM generate_series(1, {ROWS}) n
"""
_HOUR = 3600.0


async def run(db, prune, **given):
    async with db.begin() as tx:
        assert await history.begin(tx)
        return await prune(tx, **{"seconds": _HOUR, "limit": 10, **given})


async def explain(db, query, params):
    """What the statement reads and deletes under a generic plan; nothing of it stays."""
    async with db.begin() as tx:
        await tx.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
        await history.begin(tx)
        given = {name: value for name, (value, _) in params.items()}
        sql = query.text
        for number, (name, (_, kind)) in enumerate(params.items(), 1):
            sql = sql.replace(f":{name}", f"${number}::{kind}")
        await tx.exec_driver_sql(f"PREPARE pruning AS {sql}")
        values = ", ".join(f"'{value}'" for value in given.values())
        (plan,) = (
            await tx.exec_driver_sql(
                f"EXPLAIN (ANALYZE, FORMAT JSON, TIMING off, SUMMARY off) EXECUTE pruning({values})"
            )
        ).scalar_one()
        await tx.exec_driver_sql("DEALLOCATE pruning")
        await tx.rollback()
    return [node for node in nodes(plan["Plan"]) if "Relation Name" in node and "Scan" in node["Node Type"]]


@pytest.mark.parametrize("table", ["claim", "vm"])
async def test_a_batch_of_ended_rows_walks_the_index_from_where_the_last_ended(db, table):
    pool = await make_pool(db)
    await execute(db, {"claim": _CLAIMS, "vm": _VMS}[table], pool=pool.id)
    await execute(db, f"ANALYZE {table}")
    query, prune = {"claim": (history._CLAIMS, history.prune_claims), "vm": (history._VMS, history.prune_vms)}[table]
    first = await run(db, prune)
    assert first.count == 10
    assert first.position == await scalar(db, f"SELECT min(ended_at) FROM {table}") - timedelta(minutes=1)
    params = {"since": (first.position, "timestamptz"), "seconds": (_HOUR, "float"), "limit": (10, "int")}
    read = await explain(db, query, params)
    found = [node for node in read if node["Relation Name"] == table]
    assert {node["Node Type"] for node in found} == {"Tid Scan", "Index Scan"}
    assert {node.get("Index Name") for node in found} == {None, f"{table}_ended_idx"}
    assert all("Index" in node["Node Type"] for node in read if node not in found)  # what else goes with each row
    assert max(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in found) <= 10


async def test_a_batch_of_events_walks_the_index_from_where_the_last_ended(db):
    await execute(db, _EVENTS)
    await execute(db, "ANALYZE event")
    first = await run(db, history.prune_events)
    assert (first.count, first.position.xid) == (10, 3)
    params = {"xid": (first.position.xid, "text"), "id": (first.position.id, "bigint")}
    params |= {"limit": (10, "int"), "seconds": (_HOUR, "float")}
    found = await explain(db, history._EVENTS, params)
    assert {node["Node Type"] for node in found} == {"Tid Scan", "Index Scan"}
    assert max(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in found) <= 10


async def test_events_go_the_oldest_first_up_to_the_first_that_is_young(db):
    await execute(db, _EVENTS)
    done = await run(db, history.prune_events, limit=2 * ROWS)
    assert done.count == pytest.approx(ROWS - 60, abs=2)
    assert await scalar(db, "SELECT count(*) FROM event WHERE at < now() - interval '61 minutes'") == 0
    assert (await run(db, history.prune_events, position=done.position)).count == 0
    assert (await run(db, history.prune_events, position=Cursor())).count == 0
