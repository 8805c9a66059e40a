"""Pool rows: written, listed, ended; and their failures."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from app.domain.failures import FailureVerdict
from app.domain.states import VmState
from app.ids import new_id
from app.store.pools import planning
from app.store.pools import rows as pools
from app.store.pools.planning import Planned
from app.store.vms import rows as vms
from tests.support.claim_rows import wait_for_vm
from tests.support.patience import PATIENCE
from tests.support.rows import blocked, execute, make_pool, make_vms, scalar, spec


async def take(tx):
    """The pools that are due, locked."""
    return await planning.take(tx, await planning.due(tx, limit=10), limit=10)


async def get(db, pool_id):
    async with db.begin() as tx:
        return await pools.get_by_id(tx, pool_id)


async def test_a_pool_is_what_was_written_and_due_at_once(db):
    pool = await make_pool(db, size=5, min_available=2)
    assert (pool.name, pool.spec.size, pool.spec.min_available, pool.generation) == ("web", 5, 2, 1)
    async with db.begin() as tx:
        assert await pools.get(tx, "web") == pool
        assert await pools.get(tx, "web", lock=True) == pool
        assert await pools.get(tx, "nobody") is None
        assert await pools.get_by_id(tx, uuid4()) is None
        assert await take(tx) == [pool.id]


async def test_a_name_is_taken_once(db):
    await make_pool(db)
    async with db.begin() as tx:
        assert not await pools.insert(
            tx, pool_id=new_id(), name="web", spec=spec(), vm_spec={}, revision="r9", shape="s9"
        )


async def test_pages_are_by_name(db):
    for name in ("b", "a", "c"):
        await make_pool(db, name)
    async with db.begin() as tx:
        assert [p.name for p in await pools.page(tx, after="", limit=2)] == ["a", "b"]
        assert [p.name for p in await pools.page(tx, after="b", limit=2)] == ["c"]


async def fail(db, pool, *, stalled=False):
    async with db.begin() as tx:
        now = await scalar(db, "SELECT now()")
        verdict = FailureVerdict(True, 2, backoff_until=now + timedelta(minutes=1), stalled=stalled)
        await pools.write_failure(tx, pool.id, verdict, reason="no image")


async def test_an_edit_closes_the_breaker_and_counts_up(db):
    pool = await make_pool(db)
    await fail(db, pool, stalled=True)
    async with db.begin() as tx:
        await pools.replace(tx, pool.id, spec=spec(size=9), vm_spec={"n": 2}, revision="r2", shape="s2")
    edited = await get(db, pool.id)
    assert (edited.spec.size, edited.revision, edited.generation, edited.vm_spec) == (9, "r2", 2, {"n": 2})
    assert (edited.consecutive_failures, edited.stalled_at, edited.backoff_until) == (0, None, None)
    assert edited.last_failure == "no image"


@pytest.mark.parametrize(
    ("change", "revision", "refills"),
    [
        ({"size": 4}, "r1", True),
        ({}, "r2", True),
        ({"auto_replenish": False}, "r1", True),
        ({"max_lease_seconds": 90_000}, "r1", False),
    ],
)
async def test_an_edit_of_the_size_the_template_or_the_refilling_fills_the_pool_anew(db, change, revision, refills):
    """Claims from before drain nothing: a pool that stops to refill keeps what it has."""
    pool = await make_pool(db)
    async with db.begin() as tx:
        await pools.replace(tx, pool.id, spec=spec(**change), vm_spec={}, revision=revision, shape="s1")
    assert ((await get(db, pool.id)).refilled_at > pool.refilled_at) is refills


async def test_failures_are_counted_under_a_lock_and_forgiven(db):
    pool, calm = await make_pool(db), await make_pool(db, "calm")
    async with db.begin() as tx:
        assert await pools.lock_failures(tx, pool.id) == (0, None)
    await fail(db, pool)
    async with db.begin() as tx:
        consecutive, counted_at = await pools.lock_failures(tx, pool.id)
        assert consecutive == 2
        assert counted_at is not None
        assert await pools.forgive(tx, [pool.id, calm.id]) == [pool.id]
        assert await pools.forgive(tx, [pool.id, calm.id]) == []
    forgiven = await get(db, pool.id)
    assert (forgiven.consecutive_failures, forgiven.backoff_until) == (0, None)
    assert forgiven.last_failure_at == counted_at, "what failed before is still not counted again"


async def test_the_breaker_opens_once(db):
    pool = await make_pool(db)
    await fail(db, pool, stalled=True)
    stalled_at = (await get(db, pool.id)).stalled_at
    await fail(db, pool, stalled=True)
    assert (await get(db, pool.id)).stalled_at == stalled_at
    await fail(db, pool)
    assert (await get(db, pool.id)).stalled_at == stalled_at


async def test_a_pause_changes_something_once(db):
    pool = await make_pool(db)
    async with db.begin() as tx:
        assert await pools.set_paused(tx, pool.id, paused=True)
        assert not await pools.set_paused(tx, pool.id, paused=True)
        assert await pools.set_paused(tx, pool.id, paused=False)


async def test_replenish_moves_the_time_from_which_claims_drain(db):
    pool = await make_pool(db)
    async with db.begin() as tx:
        await pools.replenish(tx, pool.id)
    assert (await get(db, pool.id)).refilled_at > pool.refilled_at


async def end_delete(db, pool):
    async with db.begin() as tx:
        return await pools.end_delete(tx, pool.id)


async def test_a_pool_is_gone_once_nothing_of_it_is_left(db):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1, VmState.RELEASING)
    claim_id = await wait_for_vm(db, pool)
    assert not await end_delete(db, pool), "nobody asked for it"
    async with db.begin() as tx:
        assert await pools.begin_delete(tx, pool.id)
        assert not await pools.begin_delete(tx, pool.id)
    assert not await end_delete(db, pool), "a VM is left"
    async with db.begin() as tx:
        await vms.move(tx, [vm_id], VmState.DELETED, sources=[VmState.RELEASING])
    assert not await end_delete(db, pool), "a claim waits"
    await execute(db, "DELETE FROM claim_queue")
    await execute(db, "UPDATE claim SET state = 'failed', ended_at = now() WHERE id = :id", id=claim_id)
    assert await end_delete(db, pool)
    assert not await end_delete(db, pool)
    async with db.begin() as tx:
        assert await pools.get(tx, "web") is None
        assert await take(tx) == []
    again = await make_pool(db)
    assert again.id != pool.id


async def test_deleted_pools_are_dropped_when_nothing_points_at_them(db):
    pool, young = await make_pool(db), await make_pool(db, "young")
    kept = await make_pool(db, "kept")
    await make_vms(db, kept, 1)
    await execute(db, "UPDATE pool SET deleted_at = now() - interval '2 hours' WHERE name <> 'young'")
    await execute(db, "UPDATE pool SET deleted_at = now() WHERE name = 'young'")
    async with db.begin() as tx:
        assert await pools.prune(tx, seconds=3600) == 1
        assert await pools.get_by_id(tx, pool.id) is None
        assert await pools.get_by_id(tx, young.id) is not None
        assert await pools.get_by_id(tx, kept.id) is not None


async def test_a_pool_becomes_due(db):
    pool = await make_pool(db)
    async with db.begin() as tx:
        await planning.write(tx, {pool.id: Planned(100, ("waiting",))})
    async with db.begin() as tx:
        assert await take(tx) == []
        await pools.plan_soon(tx, pool.id)
        assert (await planning.last_plan(tx, pool.id)).notes == ("waiting",)
        assert (await planning.last_plan(tx, uuid4())).notes == ()
    async with db.begin() as tx:
        assert await take(tx) == [pool.id]


async def test_who_gives_up_a_vm_does_not_wait_for_a_planner_that_waits_for_the_vm(db):
    """The planner has the pool and wants a booting VM, whoever gives that VM up has it and wants the pool planned."""
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1, VmState.BOOTING)

    async def cancel():
        async with db.begin() as tx:
            assert await take(tx) == [pool.id]
            await vms.release(tx, [vm_id], sources=[VmState.BOOTING], reason="no use for it")
            await planning.write(tx, {pool.id: Planned(100, ())})

    async with db.begin() as tx:
        await vms.move(tx, [vm_id], VmState.FAILED, sources=[VmState.BOOTING], reason="it crashed")
        await execute(db, "UPDATE pool_plan SET due_at = now()")  # after the time at which this transaction began
        planner = asyncio.create_task(cancel())
        await blocked(db)
        await asyncio.wait_for(pools.plan_soon(tx, pool.id), PATIENCE)
    await planner
    assert await scalar(db, "SELECT state FROM vm") == "failed"
