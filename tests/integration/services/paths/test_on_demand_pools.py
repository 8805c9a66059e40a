"""Hidden pools: one for the same VMs made in the same way, shown nowhere, gone once nobody needs them."""

import asyncio

import pytest

from app.domain.observation import WarmWhen
from app.domain.pools import StartFrom
from app.ids import new_id
from app.lifecycle.on_demand_pools import ensure_on_demand_pool, on_demand_spec, retire_idle_pools
from app.store import events
from app.store.claims import pages as claim_pages
from app.store.claims import rows as claims
from app.store.pools import rows as pools
from app.store.vms import pages as vm_pages
from tests.support import store_invariants as invariants
from tests.support.claim_services import stays_connected
from tests.support.described_claims import TEMPLATE
from tests.support.rows import blocked, execute, scalar

OTHER = {"image": "registry.example/other:1"}


async def ensure(db, process, template=TEMPLATE, **given):
    async with db.begin() as tx:
        return await ensure_on_demand_pool(tx, process.template(template), on_demand_spec(template, **given))


async def retire(db):
    return await retire_idle_pools(db, idle_seconds=0)


async def deleted(db, pool):
    return await scalar(db, "SELECT deleted_at IS NOT NULL FROM pool WHERE id = :id", id=pool.id)


async def test_the_same_wish_has_the_same_pool_and_another_its_own(db, process):
    first = await ensure(db, process)
    assert first == await ensure(db, process)
    assert (first.kind, first.spec.size, first.shape) == ("on_demand", 0, process.shape())
    others = [
        await ensure(db, process, OTHER),
        await ensure(db, process, start_from=StartFrom(snapshot="a")),
        await ensure(db, process, start_from=StartFrom(snapshot="b")),
        await ensure(db, process, start_from=StartFrom(preload="a")),
        await ensure(db, process, warm_when=WarmWhen.READY),
    ]
    assert len({first.id, *(each.id for each in others)}) == 6
    assert all("." in each.name and len(each.name) <= 63 for each in (first, *others))


async def test_many_at_the_same_moment_make_one(db, process):
    made = await asyncio.gather(*(ensure(db, process) for _ in range(8)))
    assert len({each.id for each in made}) == 1


async def test_an_on_demand_pool_is_not_listed(db, process):
    answer = await process.claim()
    pool = await scalar(db, "SELECT name FROM pool")
    await process.serve()
    async with db.begin() as tx:
        assert await pools.page(tx, after="", limit=10) == []
        assert await vm_pages.page(tx, after=None, limit=10, pool=pool, state=None, ended=True) == []
        assert await claim_pages.page(tx, after=None, limit=10, pool=pool) == []
        assert await events.page(tx, after=events.Cursor(), limit=100, pool=pool) == []
        (vm,) = await vm_pages.page(tx, after=None, limit=10, pool=None, state=None, ended=False)
        (claim,) = await claim_pages.page(tx, after=None, limit=10, shape=process.shape())
        told = await events.of_vm(tx, vm.id)
    assert claim.id == answer.claim.id
    assert vm.pool_kind == claim.pool_kind == "on_demand"
    assert told
    assert {event.pool for event in told} == {None}


async def test_one_that_nobody_needs_goes_and_comes_again(db, process):
    pool = await ensure(db, process)
    assert not await retire(db)
    assert await deleted(db, pool)
    assert await scalar(db, "SELECT count(*) FROM pool_plan") == 0
    assert (await ensure(db, process)).id != pool.id


@pytest.mark.parametrize("stage", ["waits", "is planned", "has its VM"])
async def test_an_on_demand_pool_with_a_claim_is_kept(db, process, stage):
    answer = await process.claim()
    if stage != "waits":
        await process.plan()
    if stage == "has its VM":
        await process.create()
        await process.boot()
    await execute(db, "UPDATE claim SET created_at = now() - interval '1 day'")
    await retire(db)
    assert await scalar(db, "SELECT deleted_at IS NULL FROM pool WHERE id = :id", id=answer.claim.pool_id)


async def test_one_that_was_used_lately_stays_though_it_is_idle(db, process):
    answer = await process.claim()
    await process.claim_service.queue.look(answer.claim.id, 0, stays_connected)
    await execute(db, "DELETE FROM claim_queue")
    await execute(db, "UPDATE claim SET state = 'failed', ended_at = now()")
    await execute(db, "UPDATE pool SET created_at = now() - interval '1 day'")
    await retire_idle_pools(db, idle_seconds=3600)
    assert await scalar(db, "SELECT deleted_at IS NULL FROM pool")
    await retire_idle_pools(db, idle_seconds=0)
    assert await scalar(db, "SELECT deleted_at IS NOT NULL FROM pool")


async def test_a_claim_that_is_just_put_into_it_keeps_it(db, process):
    """Whoever puts a claim in holds the row: the one that retires passes over it, and afterwards sees the claim."""
    pool = await ensure(db, process)
    async with db.begin() as tx:
        held = await ensure_on_demand_pool(tx, process.template(), on_demand_spec(TEMPLATE))
        assert held.id == pool.id
        await retire(db)
        await claims.insert_pending(
            tx,
            claim_id=new_id(),
            pool_id=pool.id,
            key=None,
            request_hash="",
            labels={},
            lease_seconds=60,
            pending_seconds=60,
            reason="for the test",
        )
    await retire(db)
    assert not await deleted(db, pool)


async def test_who_comes_while_it_goes_gets_a_new_one(db, process):
    pool = await ensure(db, process)
    async with db.begin() as tx:
        await tx.exec_driver_sql("UPDATE pool SET deleting_at = now(), deleted_at = now()")
        coming = asyncio.create_task(ensure(db, process))
        await blocked(db)
    assert (await coming).id != pool.id
    await execute(db, "DELETE FROM pool_plan WHERE pool_id = :id", id=pool.id)
    await invariants.check(db)


async def test_pools_of_users_are_never_retired(db, process):
    pool = await process.make_pool(size=0)
    await retire(db)
    assert not await deleted(db, pool)
