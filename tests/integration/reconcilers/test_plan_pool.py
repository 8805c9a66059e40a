"""Planning a pool: intent written once, and carried out in rows."""

import asyncio

from sqlalchemy import event

from app.domain.states import VmState
from app.reconcilers.pools import planner as planner_module
from app.reconcilers.pools.planner import PoolPlanner, plan_due_pools
from app.store.pools import rows as pools
from tests.support.rows import (
    event_types,
    eventually,
    execute,
    fetch,
    make_pool,
    make_ready,
    make_vms,
    scalar,
    state_of,
)


async def look(db):
    await execute(db, "UPDATE pool_plan SET due_at = now()")
    return await plan_due_pools(db, every_seconds=60)


async def count(db, state):
    return await scalar(db, "SELECT count(*) FROM vm WHERE state = :s", s=state)


async def test_an_empty_pool_is_planned_full_and_not_planned_twice(db):
    pool = await make_pool(db, size=3)
    for _ in range(3):
        assert await look(db) == [pool.id]
    assert await count(db, "planned") == 3
    names = [row["name"] for row in await fetch(db, "SELECT name FROM vm")]
    assert len(set(names)) == 3
    assert all(name.startswith("web-") for name in names)


async def test_many_planners_at_once_create_no_more(db):
    await make_pool(db, size=4)

    async def plan():
        for _ in range(4):
            await look(db)

    await asyncio.gather(*(plan() for _ in range(6)))
    assert await count(db, "planned") == 4


async def test_nothing_is_due_again_before_its_time(db):
    pool = await make_pool(db)
    assert await plan_due_pools(db, every_seconds=60) == [pool.id]
    assert await plan_due_pools(db, every_seconds=60) == []


async def test_a_smaller_size_lets_the_oldest_go_and_keeps_the_floor(db):
    pool = await make_pool(db, size=3, min_available=0)
    ready = await make_vms(db, pool, 3)
    query = "UPDATE pool SET spec = spec || CAST(:change AS jsonb)"
    await execute(db, query, change='{"size": 1, "min_available": 1}')
    await look(db)
    assert await count(db, "releasing") == 2
    assert await scalar(db, "SELECT count(*) FROM ready_slot") == 1
    assert await state_of(db, ready[2]) is VmState.READY


async def test_what_is_not_wanted_any_more_is_cancelled(db):
    pool = await make_pool(db, size=3)
    (booting,) = await make_vms(db, pool, 1, VmState.BOOTING)
    (creating,) = await make_vms(db, pool, 1, VmState.CREATING)
    (planned,) = await make_vms(db, pool, 1, VmState.PLANNED)
    await execute(db, "UPDATE pool SET spec = spec || '{\"size\": 0}'")
    await look(db)
    assert await state_of(db, planned) is VmState.DELETED
    assert await state_of(db, booting) is VmState.RELEASING
    assert await state_of(db, creating) is VmState.CREATING, "a worker is at it"


async def test_a_new_template_rotates_with_its_surge(db):
    pool = await make_pool(db, size=4)
    old = await make_vms(db, pool, 4)
    await execute(db, "UPDATE pool SET revision = 'r2'")
    await look(db)
    assert await count(db, "planned") == 1
    assert await count(db, "ready") == len(old)
    assert await scalar(db, "SELECT revision FROM vm WHERE state = 'planned'") == "r2"


async def test_a_rotation_and_a_new_template_replace_each_vm_once(db):
    pool = await make_pool(db, size=2)
    old = await make_vms(db, pool, 2)
    async with db.begin() as tx:
        await pools.rotate(tx, pool.id)
    await look(db)
    assert await count(db, "planned") == 1
    await execute(db, "UPDATE pool SET revision = 'r2'")
    for _ in range(4):
        for row in await fetch(db, "SELECT id FROM vm WHERE state = 'planned'"):
            await execute(
                db, "UPDATE vm SET state = 'booting', asked_at = now(), revision = 'r2' WHERE id = :id", id=row["id"]
            )
            await make_ready(db, [row["id"]])
        await look(db)
    assert [await state_of(db, vm_id) for vm_id in old] == [VmState.RELEASING] * 2
    assert await scalar(db, "SELECT count(*) FROM vm") == 4
    assert await scalar(db, "SELECT count(*) FROM vm WHERE state = 'ready' AND revision = 'r2'") == 2
    assert "from before a rotation" in await scalar(db, "SELECT reason FROM vm WHERE state = 'releasing' LIMIT 1")


async def test_a_rotation_keeps_the_floor_and_waits_while_the_pool_is_paused(db):
    pool = await make_pool(db, size=2, min_available=2)
    await make_vms(db, pool, 2)
    async with db.begin() as tx:
        await pools.set_paused(tx, pool.id, paused=True)
        await pools.rotate(tx, pool.id)
    await look(db)
    assert await count(db, "planned") == 0
    async with db.begin() as tx:
        await pools.set_paused(tx, pool.id, paused=False)
    await look(db)
    assert (await count(db, "planned"), await count(db, "ready")) == (1, 2)


async def test_below_the_floor_creates_are_urgent_until_it_is_reached(db):
    await make_pool(db, size=2, min_available=1)
    await look(db)
    assert await scalar(db, "SELECT count(*) FROM vm WHERE urgent") == 2
    await execute(db, "UPDATE pool SET spec = spec || '{\"size\": 3}'")
    planned = await fetch(db, "SELECT id FROM vm")
    await execute(db, "UPDATE vm SET state = 'booting', asked_at = now() WHERE id = :id", id=planned[0]["id"])
    await make_ready(db, [planned[0]["id"]])
    await look(db)
    assert await scalar(db, "SELECT count(*) FROM vm WHERE urgent AND state = 'planned'") == 0


async def test_what_the_plan_waits_for_is_kept_in_words(db):
    await make_pool(db, size=3, max_concurrent_creates=1)
    await look(db)
    await look(db)
    notes = await scalar(db, "SELECT notes FROM pool_plan")
    assert notes == ["1 VM on the way; max_concurrent_creates is 1"]
    assert await event_types(db) == ["vm.planned"]


async def test_a_planned_vm_that_the_cluster_was_asked_for_is_removed_and_not_forgotten(db):
    """A create whose answer was lost is planned again: cancelled now, its object may be there."""
    pool = await make_pool(db, size=0)
    asked, never = await make_vms(db, pool, 2, VmState.PLANNED)
    await execute(db, "UPDATE vm SET asked_at = now() WHERE id = :id", id=asked)
    await plan_due_pools(db, every_seconds=1)
    assert await state_of(db, asked) is VmState.RELEASING
    assert await state_of(db, never) is VmState.DELETED


async def plan_counted(db):
    """How many statements planning everything that is due takes."""
    await execute(db, "UPDATE pool_plan SET due_at = now()")
    asked = []
    engine = db._engine.sync_engine

    def note(connection, cursor, statement, *rest):
        asked.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        planned = await plan_due_pools(db, every_seconds=60)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return len(planned), len(asked)


async def test_many_pools_are_planned_in_as_many_statements_as_two(db):
    for number in range(2):
        await make_pool(db, f"pool-{number}", size=1)
    few, statements = await plan_counted(db)
    for number in range(2, 22):
        await make_pool(db, f"pool-{number}", size=1)
    assert (few, statements) == (2, statements)
    assert await plan_counted(db) == (22, statements)
    assert await count(db, "planned") == 22


async def test_a_pool_that_replaces_vms_does_not_keep_others_from_being_planned(db):
    shrunk = await make_pool(db, "shrunk", size=2, min_available=0)
    await make_vms(db, shrunk, 2)
    await make_pool(db, "new", size=1)
    await execute(db, "UPDATE pool SET spec = spec || '{\"size\": 1}' WHERE name = 'shrunk'")
    assert len(await plan_due_pools(db, every_seconds=60)) == 2
    assert (await count(db, "releasing"), await count(db, "planned")) == (1, 1)
    assert await plan_due_pools(db, every_seconds=60) == []


async def test_a_planner_finds_what_nobody_asked_it_to_plan(db):
    pool = await make_pool(db, size=1)
    planner = PoolPlanner(db, every_seconds=3600, clock=iter(range(0, 1000, 10)).__next__)
    await planner.step()
    await execute(db, "UPDATE event SET at = at - interval '1 minute'")
    await execute(db, "UPDATE pool SET spec = spec || '{\"size\": 2}'")
    await execute(db, "UPDATE pool_plan SET planned_at = now() - interval '1 hour'")
    query = "INSERT INTO event (type, pool_id, at) VALUES ('pool.changed', :id, now() - interval '1 minute')"
    await execute(db, query, id=pool.id)

    async def planned():
        await planner.step()
        return await count(db, "planned") == 2

    await eventually(planned)


async def test_a_planner_that_has_much_history_to_read_goes_on_at_once(db, monkeypatch):
    monkeypatch.setattr(planner_module, "_EVENTS", 5)
    pool = await make_pool(db, size=1)
    query = "INSERT INTO event (type, pool_id, at) SELECT 'claim.bound', :id, now() - interval '1 day' FROM generate_series(1, 12)"
    await execute(db, query, id=pool.id)
    planner = PoolPlanner(db, every_seconds=3600)

    async def read():
        await planner.step()
        return await scalar(db, "SELECT count(*) FROM bound_event") == 12

    assert await planner.step(), "there is more"
    await eventually(read)
