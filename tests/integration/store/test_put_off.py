"""What is told of creates that are put off, from when on, and until when."""

import pytest

from app.domain.states import VmState
from app.store.pools import put_off, statistics
from tests.support.rows import execute, fetch, make_pool, make_vms, scalar


async def put(db, pool, reason="virt-api is down", least=2.0, most=15.0):
    async with db.begin() as tx:
        await put_off.write(tx, pool.id, reason=reason, least_seconds=least, most_seconds=most)


async def passed(db, pool):
    async with db.begin() as tx:
        return await put_off.end(tx, pool.id)


async def told(db, *pools):
    async with db.begin() as tx:
        found = await put_off.of_pools(tx, [pool.id for pool in pools])
        every = await put_off.of_all(tx)
    return {pool.name: found[pool.id].reason for pool in pools if pool.id in found}, every and every.reason


async def age(db, seconds):
    await execute(db, "UPDATE put_off SET since = since - make_interval(secs => :seconds)", seconds=seconds)


@pytest.fixture
async def pools(db):
    return [await make_pool(db, name) for name in ("web", "batch")]


async def test_a_pool_tells_it_at_once_and_the_others_once_no_create_has_succeeded_for_a_while(db, pools):
    assert await told(db, *pools) == ({}, None)
    await put(db, pools[0])
    assert await told(db, *pools) == ({"web": "virt-api is down"}, None)
    await age(db, 10)
    assert await told(db, *pools) == ({"web": "virt-api is down", "batch": "virt-api is down"}, "virt-api is down")
    await put(db, pools[1], "a quota")
    assert await told(db, *pools) == ({"web": "virt-api is down", "batch": "a quota"}, "a quota")


async def test_the_first_success_after_a_while_ends_it_for_all_pools(db, pools):
    for pool in pools:
        await put(db, pool)
    await age(db, 10)
    assert set(await passed(db, pools[0])) == {pool.id for pool in pools}
    assert await told(db, *pools) == ({}, None)
    assert await passed(db, pools[1]) is None


async def test_a_success_of_one_pool_says_nothing_of_another_whose_own_trouble_it_is(db, pools):
    await put(db, pools[0])
    await age(db, 10)
    assert await passed(db, pools[1]) == (pools[0].id,)
    await put(db, pools[0], "its quota")
    assert await passed(db, pools[1]) == ()
    assert await told(db, *pools) == ({"web": "its quota"}, None)


async def test_the_pause_grows_with_what_lasts(db, pools):
    pauses = []
    for seconds in (0, 2, 10, 100):
        await age(db, seconds)
        await put(db, pools[0])
        pauses.append(
            await scalar(db, "SELECT round(extract(epoch FROM until - now())) FROM put_off WHERE reason <> '' LIMIT 1")
        )
    assert pauses == [2, 2, 6, 15]


async def test_what_nobody_has_tried_again_is_not_told_any_more(db, pools):
    await put(db, pools[0])
    await age(db, 10)
    await execute(db, "UPDATE put_off SET until = now() - interval '2 minutes'")
    assert await told(db, *pools) == ({}, None)
    await put(db, pools[0])
    assert await told(db, *pools) == ({"web": "virt-api is down"}, None), "it began anew"
    await execute(db, "UPDATE put_off SET until = now() - interval '2 hours'")
    async with db.begin() as tx:
        await put_off.prune(tx)
    assert await fetch(db, "SELECT * FROM put_off") == []


async def test_vms_lose_their_trouble_when_it_has_passed_and_keep_any_other(db, pools):
    ids = await make_vms(db, pools[0], 3, VmState.PLANNED)
    await put(db, pools[0])
    for vm_id, health in zip(ids, (put_off.health_of("virt-api is down"), "its preload is not ready"), strict=False):
        await execute(db, "UPDATE vm SET health = :health WHERE id = :id", id=vm_id, health=health)
    assert await passed(db, pools[0]) == (pools[0].id,)
    found = [await scalar(db, "SELECT health FROM vm WHERE id = :id", id=vm_id) for vm_id in ids]
    assert found == [None, "its preload is not ready", None]


async def test_claims_that_wait_are_told_it_and_that_their_pool_is_stalled(db, pools):
    web, batch = pools
    await put(db, web)
    await execute(
        db,
        "UPDATE pool SET stalled_at = now(), consecutive_failures = 5, last_failure = 'no such image' WHERE id = :id",
        id=batch.id,
    )
    async with db.begin() as tx:
        why = await statistics.why_waiting_for(tx, [web.id, batch.id])
    assert why[web.id].startswith("no VM can be created since ")
    assert why[web.id].endswith(": virt-api is down")
    assert why[batch.id] == "5 failures in a row: no such image"
