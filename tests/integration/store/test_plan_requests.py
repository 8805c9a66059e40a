"""Requests to plan: none is lost, none waits, and what is read does not grow with the number of pools."""

import asyncio
import json

import pytest
from sqlalchemy import text

from app.domain.states import VmState
from app.store import events
from app.store.claims.warm import WarmClaimStore
from app.store.pools import overlooked, planning
from app.store.pools import rows as pools
from app.store.pools.planning import Planned
from app.store.vms import rows as vms
from tests.support.patience import PATIENCE
from tests.support.query_plans import nodes
from tests.support.rows import execute, fetch, make_pool, make_vms, request, scalar

_POOLS = """
    WITH made AS (
        INSERT INTO pool (id, name, spec, vm_spec, revision)
        SELECT gen_random_uuid(), 'pool-' || n, CAST(:spec AS jsonb), '{}', 'r1' FROM generate_series(1, 1000) n RETURNING id)
    INSERT INTO pool_plan (pool_id, due_at) SELECT id, now() + interval '1 hour' FROM made
"""


@pytest.fixture(autouse=True)
async def reader(db):
    async with db.begin() as tx:
        await overlooked.begin(tx)
        await overlooked.begin(tx)


async def take(db):
    async with db.begin() as tx:
        return await planning.take(tx, await planning.due(tx, limit=500), limit=50)


async def ask(db, *pool_ids):
    async with db.begin() as tx:
        await pools.plan_soon(tx, *pool_ids)


async def calm(db):
    """Nothing is due, and all events so far have been read."""
    await execute(db, "DELETE FROM plan_request")
    await execute(db, "UPDATE pool_plan SET due_at = now() + interval '1 hour'")


async def read_history(db, **given):
    async with db.begin() as tx:
        return (await overlooked.request_changed(tx, **{"delay_seconds": 0, "limit": 100, **given})).pools


async def test_a_request_that_comes_while_the_pool_is_planned_has_it_planned_again(db):
    pool = await make_pool(db)
    await calm(db)
    await ask(db, pool.id)
    async with db.begin() as tx:
        assert await planning.take(tx, [pool.id], limit=1) == [pool.id]
        await asyncio.wait_for(ask(db, pool.id), PATIENCE)
        await planning.write(tx, {pool.id: Planned(3600, ())})
    assert await take(db) == [pool.id]
    assert await take(db) == []


async def test_a_plan_that_is_rolled_back_leaves_its_request(db):
    pool = await make_pool(db)
    await calm(db)
    await ask(db, pool.id)
    async with db.begin() as tx:
        await planning.take(tx, [pool.id], limit=1)
        await tx.rollback()
    assert await take(db) == [pool.id]


async def test_requests_for_a_pool_that_is_deleted_go_away(db):
    pool, other = await make_pool(db), await make_pool(db, "other")
    await calm(db)
    await ask(db, pool.id, other.id)
    await execute(db, "DELETE FROM pool_plan WHERE pool_id = :id", id=pool.id)
    assert await take(db) == [other.id]
    assert await fetch(db, "SELECT 1 FROM plan_request") == []


async def test_a_claim_whose_process_ended_before_it_asked_has_its_pool_planned(db):
    pool, other = await make_pool(db), await make_pool(db, "other")
    await make_vms(db, pool, 1)
    async with db.begin() as tx:
        await planning.write(tx, {pool.id: Planned(3600, ()), other.id: Planned(3600, ())})
    await calm(db)
    lane = WarmClaimStore(db.url)
    await lane.claim(pool.id, [request()])
    await lane.close()
    assert await read_history(db, delay_seconds=3600) == 0, "it is read once it is old enough"
    assert await read_history(db) == 1
    assert await take(db) == [pool.id]
    assert await read_history(db) == 0, "each event is read once"


async def test_a_pool_that_was_planned_since_its_last_event_is_left_alone(db):
    pool = await make_pool(db)
    await make_vms(db, pool, 1)
    async with db.begin() as tx:
        await planning.write(tx, {pool.id: Planned(3600, ())})
    assert await read_history(db) == 0


async def test_boots_alone_have_no_pool_planned(db):
    pool = await make_pool(db)
    async with db.begin() as tx:
        await planning.write(tx, {pool.id: Planned(3600, ())})
    await make_vms(db, pool, 1, VmState.BOOTING)
    assert await read_history(db) == 0
    async with db.begin() as tx:
        await events.record(tx, "pool.changed", pool_id=pool.id)
    assert await read_history(db) == 1


async def test_warm_claims_are_listed_by_pool_whether_a_worker_has_read_of_them_or_not(db):
    pool, other = await make_pool(db), await make_pool(db, "other")
    for each in (pool, other):
        await make_vms(db, each, 4)
    lane = WarmClaimStore(db.url)

    async def bound(*, kind=None, pool="web", **given):
        async with db.begin() as tx:
            found = await events.page(tx, **{"after": events.Cursor(), "limit": 100, **given}, pool=pool, kind=kind)
            back = await events.page_back(tx, before=None, limit=100, pool=pool, kind=kind)
        if not given:
            assert [event.cursor for event in back] == [event.cursor for event in reversed(found)]
        assert [event.cursor for event in found] == sorted(event.cursor for event in found)
        return [event for event in found if event.type == "claim.bound"]

    for count in range(1, 4):
        await lane.claim(pool.id, [request()])
        await lane.claim(other.id, [request()])
        for read in (False, True):
            if read:
                await read_history(db)
            assert len(await bound()) == len(await bound(kind="claim")) == len(await bound(pool="other")) == count
            assert await bound(kind="vm") == []
            assert await scalar(db, "SELECT count(*) FROM bound_event") == 2 * (count if read else count - 1)
    await lane.close()
    first, second, third = await bound()
    assert await bound(after=first.cursor) == [second, third]
    assert await bound(after=third.cursor) == []
    async with db.begin() as tx:
        assert await events.page_back(tx, before=second.cursor, limit=1, pool="web", kind="claim") == [first]


async def test_what_pools_start_from_has_them_planned_when_it_changes(db):
    pool = await make_pool(db)
    await execute(db, "UPDATE pool SET path = 'snapshot', source = 'golden'")
    async with db.begin() as tx:
        await planning.write(tx, {pool.id: Planned(3600, ())})
    async with db.begin() as tx:
        await events.record(tx, "snapshot.ready", snapshot="golden")
        await events.record(tx, "preload.ready", preload="other")
    assert await read_history(db) == 1
    assert await scalar(db, "SELECT pool_id FROM plan_request") == pool.id


async def test_pools_with_ready_vms_on_a_node_are_planned_for_it(db):
    pool = await make_pool(db)
    await make_vms(db, pool, 2)
    await make_vms(db, await make_pool(db, "booting"), 1, VmState.BOOTING)
    await calm(db)
    async with db.begin() as tx:
        await overlooked.request_on_nodes(tx, ["node-1", "node-2"])
    assert [row["pool_id"] for row in await fetch(db, "SELECT pool_id FROM plan_request")] == [pool.id]


async def test_when_all_are_to_be_planned_they_are_due_within_the_time_given(db):
    pool, soon = await make_pool(db), await make_pool(db, "soon")
    await execute(db, "UPDATE pool_plan SET due_at = now() + interval '1 hour' WHERE pool_id = :id", id=pool.id)
    await execute(db, "UPDATE pool_plan SET due_at = now() WHERE pool_id = :id", id=soon.id)
    async with db.begin() as tx:
        await overlooked.spread(tx, seconds=10)
    rows = await fetch(db, "SELECT pool_id, due_at - now() AS rest FROM pool_plan")
    rest = {row["pool_id"]: row["rest"].total_seconds() for row in rows}
    assert rest[soon.id] <= 0
    assert rest[pool.id] <= 10


class TestOneOfAThousandPools:
    @pytest.fixture
    async def changed(self, db):
        """The one pool that is to be planned."""
        pool = await make_pool(db)
        await execute(db, _POOLS, spec=json.dumps(pool.spec.model_dump(mode="json")))
        await make_vms(db, pool, 2)
        await calm(db)
        await ask(db, pool.id)
        await execute(db, "ANALYZE pool")
        await execute(db, "ANALYZE pool_plan")
        return pool

    async def explain(self, db, query, **params):
        """The plan that was executed, by the names of tables: how many rows were read of each, and how."""
        explain = text(f"EXPLAIN (ANALYZE, FORMAT JSON, TIMING off, SUMMARY off) {query.text}")
        async with db.begin() as tx:
            (plan,) = (await tx.execute(explain, params)).scalar_one()
            await tx.rollback()
        return [node for node in nodes(plan["Plan"]) if "Relation Name" in node and "Scan" in node["Node Type"]]

    async def test_planning_it_reads_no_other_pool(self, db, changed):
        found = await self.explain(db, planning._DUE, limit=500)
        found += await self.explain(db, planning._LOCK, ids=[changed.id], limit=50)
        found += await self.explain(db, pools._BY_IDS, ids=[changed.id])
        given = {"revisions": ["r1"], "rotated": [None], "drains": [False], "since_ids": [changed.id], "sizes": [3]}
        given |= {"since": [changed.refilled_at], "last_places": vms.LAST_PLACES}
        found += await self.explain(db, planning._SNAPSHOTS, ids=[changed.id], **given)
        read = [node["Actual Rows"] * node["Actual Loops"] + node.get("Rows Removed by Filter", 0) for node in found]
        assert max(read) <= 2, found
        of_pools = [node for node in found if node["Relation Name"] in {"pool", "pool_plan"}]
        assert {node["Relation Name"] for node in of_pools} == {"pool", "pool_plan"}
        assert not [node for node in of_pools if node["Node Type"] == "Seq Scan"], of_pools

    async def test_nothing_is_due_once_it_is_planned(self, db, changed):
        assert await take(db) == [changed.id]
        async with db.begin() as tx:
            assert await planning.due(tx, limit=500) == []


async def test_looking_for_overlooked_changes_writes_nothing_while_nothing_happens(db):
    await make_pool(db)
    await read_history(db)
    before = await scalar(db, "SELECT xmax::text FROM event_reader")
    for _ in range(2):
        assert await read_history(db) == 0
    assert await scalar(db, "SELECT xmax::text FROM event_reader") == before
