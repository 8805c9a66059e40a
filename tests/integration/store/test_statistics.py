"""Figures of pools, counted and measured by the database."""

from datetime import timedelta
from uuid import uuid4

import pytest

from app.domain.health import PASSING
from app.domain.states import VmState
from app.domain.statistics import BootTimes, PoolCounts
from app.store.pools import rows as pools
from app.store.pools import statistics
from tests.support.claim_rows import bind, wait_for_vm
from tests.support.rows import execute, make_pool, make_vms, scalar


async def figures(db, pool):
    async with db.begin() as tx:
        return (await statistics.of_pools(tx, [pool.id]))[pool.id]


async def test_a_pool_with_nothing_has_figures_too(db):
    empty = await figures(db, await make_pool(db))
    assert (empty.counts, empty.boots, empty.refill_per_minute) == (PoolCounts(), BootTimes(), 0)


async def test_counts_are_by_state_and_by_pool(db):
    web, batch = await make_pool(db, "web"), await make_pool(db, "batch")
    await make_vms(db, web, 2, VmState.RELEASING)
    await make_vms(db, web, 1, VmState.BOOTING)
    await make_vms(db, web, 3)
    claims = [await wait_for_vm(db, web) for _ in range(2)]
    assert set(await bind(db, web)) == set(claims)
    await make_vms(db, batch, 4)
    await make_vms(db, web, 2, VmState.PLANNED)
    await wait_for_vm(db, batch)
    async with db.begin() as tx:
        found = await statistics.of_pools(tx, [web.id, batch.id])
    assert found[web.id].counts == PoolCounts(planned=2, booting=1, ready=1, claimed=2, releasing=2)
    assert found[web.id].counts.in_flight == 3
    assert found[batch.id].counts == PoolCounts(ready=4, waiting=1)


async def test_boots_are_measured_and_their_rate_is_of_the_last_minutes(db):
    pool = await make_pool(db)
    ids = await make_vms(db, pool, 5)
    for number, vm_id in enumerate(ids):
        await execute(db, "UPDATE vm SET boot_seconds = :s WHERE id = :id", s=10.0 * (number + 1), id=vm_id)
    await execute(db, "UPDATE vm SET ready_at = now() - interval '10 minutes' WHERE id = :id", id=ids[0])
    found = await figures(db, pool)
    assert found.boots.count == 5
    assert found.boots.p50 == pytest.approx(30)
    assert found.boots.p95 == pytest.approx(48)
    assert found.refill_per_minute == pytest.approx(4 / 5)


async def test_a_place_counts_those_before_it(db):
    pool = await make_pool(db)
    first, second = await wait_for_vm(db, pool), await wait_for_vm(db, pool)
    async with db.begin() as tx:
        places = [await statistics.place_in_queue(tx, pool.id, claim_id) for claim_id in (first, second, None, uuid4())]
    assert places == [1, 2, 3, 3]


async def test_what_is_on_its_way_is_told_oldest_first(db):
    pool = await make_pool(db)
    booting = await make_vms(db, pool, 2, VmState.BOOTING)
    await make_vms(db, pool, 1)
    await make_vms(db, pool, 1, VmState.PLANNED)
    await execute(db, "UPDATE vm SET asked_at = asked_at - interval '1 minute' WHERE id = :id", id=booting[1])
    async with db.begin() as tx:
        since = await statistics.in_flight_since(tx, pool.id)
    now = await scalar(db, "SELECT now()")
    assert len(since) == 3
    assert now - since[0] > timedelta(minutes=1)
    assert list(since) == sorted(since)


async def test_what_is_planned_for_a_paused_pool_is_not_on_its_way(db):
    pool = await make_pool(db)
    await make_vms(db, pool, 1, VmState.BOOTING)
    await make_vms(db, pool, 2, VmState.PLANNED)
    await execute(db, "UPDATE pool SET paused = true")
    async with db.begin() as tx:
        assert len(await statistics.in_flight_since(tx, pool.id)) == 1


async def test_what_is_to_be_replaced_is_counted_by_its_cause(db):
    pool, other = await make_pool(db), await make_pool(db, "other")
    claimed = await wait_for_vm(db, pool)
    await make_vms(db, pool, 1)
    assert await bind(db, pool) == [claimed]
    await make_vms(db, pool, 2)
    await make_vms(db, pool, 1, VmState.BOOTING)
    await make_vms(db, pool, 1, VmState.RELEASING)
    await make_vms(db, other, 1)
    assert (await figures(db, pool)).outdated == statistics.Outdated()
    async with db.begin() as tx:
        await pools.rotate(tx, pool.id)
    assert (await figures(db, pool)).outdated == statistics.Outdated(count=3, rotated=3)
    (young,) = await make_vms(db, pool, 1)
    await make_vms(db, pool, 2, VmState.PLANNED)
    assert (await figures(db, pool)).outdated == statistics.Outdated(count=3, rotated=3)
    await execute(db, "UPDATE vm SET revision = 'r0' WHERE id = :id", id=young)
    assert (await figures(db, pool)).outdated == statistics.Outdated(count=4, rotated=3)
    assert (await figures(db, other)).outdated == statistics.Outdated()


async def ailing(db, *pools):
    async with db.begin() as tx:
        found = await statistics.ailments(tx, [pool.id for pool in pools])
    return {pool.name: str(found[pool.id]) for pool in pools if pool.id in found}


async def ail(db, vm_ids, health, *, seconds=60):
    query = (
        "UPDATE vm SET health = :health, unhealthy_since = now() - make_interval(secs => :seconds) WHERE id = ANY(:ids)"
    )
    await execute(db, query, health=health, seconds=seconds, ids=list(vm_ids))


async def test_a_pool_tells_what_most_of_its_vms_on_their_way_suffer_from(db):
    web, batch, well = [await make_pool(db, name) for name in ("web", "batch", "well")]
    ids = await make_vms(db, web, 5, VmState.BOOTING)
    await ail(db, ids[:2], "ErrorUnschedulable: 0/3 nodes are available")
    await ail(db, ids[2:3], "ErrImagePull: no such image")
    await ail(db, ids[3:], 'ImagePullBackOff: Back-off pulling image "x"')
    await ail(db, await make_vms(db, batch, 2, VmState.BOOTING), "import: 404 Not Found")
    await make_vms(db, well, 2, VmState.BOOTING)
    assert await ailing(db, web, batch, well) == {
        "web": "3 of 5 VMs: ErrImagePull: no such image",
        "batch": "2 of 2 VMs: import: 404 Not Found",
    }


async def test_what_passes_at_once_does_not_count_and_a_refused_create_does(db):
    pool = await make_pool(db)
    (booting,) = await make_vms(db, pool, 1, VmState.BOOTING)
    await ail(db, [booting], "ErrorUnschedulable: wait", seconds=0)
    assert await ailing(db, pool) == {}
    await ail(db, [booting], "ErrorUnschedulable: wait", seconds=statistics.SETTLED_SECONDS + 1)
    assert await ailing(db, pool) == {"web": "1 of 1 VM: ErrorUnschedulable: wait"}
    (planned,) = await make_vms(db, pool, 1, VmState.PLANNED)
    await execute(db, "UPDATE vm SET health = NULL WHERE id = :id", id=booting)
    await execute(db, "UPDATE vm SET health = 'the cluster is away' WHERE id = :id", id=planned)
    assert await ailing(db, pool) == {"web": "1 of 2 VMs: the cluster is away"}


@pytest.mark.parametrize("problem", PASSING)
async def test_what_every_boot_passes_through_counts_only_after_a_while(db, problem):
    pool = await make_pool(db)
    (booting,) = await make_vms(db, pool, 1, VmState.BOOTING)
    await ail(db, [booting], problem, seconds=statistics.SETTLED_SECONDS + 1)
    assert await ailing(db, pool) == {}
    await ail(db, [booting], problem, seconds=statistics.PASSING_SECONDS + 1)
    assert await ailing(db, pool) == {"web": f"1 of 1 VM: {problem}"}


async def test_ready_claimed_and_ended_vms_say_nothing_of_those_on_their_way(db):
    pool = await make_pool(db)
    await ail(db, [*await make_vms(db, pool, 2), *await make_vms(db, pool, 2, VmState.RELEASING)], "it is paused")
    await make_vms(db, pool, 1, VmState.BOOTING)
    assert await ailing(db, pool) == {}
    assert (await figures(db, pool)).ailing is None


async def test_claims_that_wait_are_told_notes_ailments_and_the_last_failure(db):
    pool, other = await make_pool(db), await make_pool(db, "other")
    await ail(db, await make_vms(db, pool, 1, VmState.BOOTING), "ErrImagePull: no such image")
    await execute(db, "UPDATE pool_plan SET notes = '[\"backing off\"]'")
    await execute(db, "UPDATE pool SET last_failure = 'not ready', consecutive_failures = (name = 'web')::int")
    async with db.begin() as tx:
        told = await statistics.why_waiting_for(tx, [pool.id, other.id])
    assert told[pool.id] == "backing off; 1 of 1 VM: ErrImagePull: no such image; last failure: not ready"
    assert told[other.id] == "backing off"
