"""What the planner reads: the pools that are due, the most urgent first, and one pool at one moment."""

import asyncio
from datetime import timedelta

from app.domain.states import ClaimState, VmState
from app.ids import lowest_id_at, new_id
from app.store.claims import rows as claims
from app.store.claims.warm import WarmClaimStore
from app.store.pools import planning
from app.store.pools import rows as pools
from app.store.vms import rows as vms
from tests.support.claim_rows import end, wait_for_vm
from tests.support.rows import execute, make_pool, make_vms, request, scalar


async def snapshot(db, pool):
    async with db.begin() as tx:
        fresh = await pools.get_by_id(tx, pool.id)
        assert fresh is not None
        found = await planning.snapshots(tx, {fresh.id: fresh}, {})
    return found[fresh.id].pool


async def claim(db, pool, count=1):
    lane = WarmClaimStore(db.url)
    outcomes = await lane.claim(pool.id, [request() for _ in range(count)])
    await lane.close()
    return [outcome.claim.id for outcome in outcomes if outcome is not None]


async def test_a_pool_with_nothing_is_a_snapshot_with_nothing(db):
    pool = await make_pool(db, size=7, min_available=2, max_vms=9, max_ready_age_seconds=60, max_concurrent_creates=4)
    found = await snapshot(db, pool)
    assert (found.ready, found.in_flight, found.claimed, found.leaving, found.waiting, found.drained) == (
        (),
        (),
        0,
        0,
        0,
        0,
    )
    assert (found.size, found.min_available, found.max_vms, found.max_concurrent_creates) == (7, 2, 9, 4)
    assert found.max_ready_age == timedelta(minutes=1)
    assert (found.paused, found.deleting, found.stalled) == (False, False, False)


async def test_every_state_counts_where_it_belongs(db):
    pool = await make_pool(db)
    ready = await make_vms(db, pool, 3)
    booting = await make_vms(db, pool, 1, VmState.BOOTING)
    creating = await make_vms(db, pool, 1, VmState.CREATING)
    await make_vms(db, pool, 2, VmState.RELEASING)
    await make_vms_lost(db, pool)
    planned = await make_vms(db, pool, 1, VmState.PLANNED)
    await make_vms(db, await make_pool(db, "other"), 1, VmState.PLANNED)
    await claim(db, pool)
    await wait_for_vm(db, pool)
    await execute(db, "UPDATE vm SET revision = 'r0' WHERE id = ANY(:ids)", ids=[ready[1], booting[0]])
    found = await snapshot(db, pool)
    assert {(vm.id, vm.current) for vm in found.ready} == {(ready[1], False), (ready[2], True)}
    assert {(vm.id, vm.current, vm.asked, vm.leased) for vm in found.in_flight} == {
        (booting[0], False, True, False),
        (creating[0], True, True, True),
        (planned[0], True, False, False),
    }
    assert (found.claimed, found.leaving, found.waiting) == (1, 2, 1)


async def make_vms_lost(db, pool):
    ids = await make_vms(db, pool, 1, VmState.BOOTING)
    async with db.begin() as tx:
        return await vms.move(tx, ids, VmState.LOST, sources=[VmState.BOOTING])


async def test_the_planner_reads_the_flags_of_the_pool(db):
    pool = await make_pool(db)
    await execute(db, "UPDATE pool SET paused = true, deleting_at = now(), stalled_at = now(), backoff_until = now()")
    found = await snapshot(db, pool)
    assert found.paused
    assert found.deleting
    assert found.stalled
    assert found.backoff_until is not None


async def test_claims_since_the_last_refill_drain_a_pool_that_does_not_refill(db):
    pool = await make_pool(db, auto_replenish=False)
    await make_vms(db, pool, 3)
    held = await claim(db, pool, 2)
    await end(db, held[:1])
    assert (await snapshot(db, pool)).drained == 2, "also those that are over"
    async with db.begin() as tx:
        await pools.replenish(tx, pool.id)
    assert (await snapshot(db, pool)).drained == 0
    await claim(db, pool)
    assert (await snapshot(db, pool)).drained == 1


async def test_a_pool_that_refills_is_never_drained(db):
    pool = await make_pool(db)
    await make_vms(db, pool, 1)
    await claim(db, pool)
    assert (await snapshot(db, pool)).drained == 0


async def test_a_vm_that_was_replaced_under_its_claim_stays_drained_while_the_claim_waits(db):
    """Else two VMs would be made for one that died: one for the claim that waits, one for the size."""
    pool = await make_pool(db, auto_replenish=False, size=1)
    (vm_id,) = await make_vms(db, pool, 1)
    (claim_id,) = await claim(db, pool)
    async with db.begin() as tx:
        assert await claims.requeue(tx, claim_id, vm_id=vm_id, reason="dead", pending_seconds=60)
        await vms.move(tx, [vm_id], VmState.FAILED, sources=[VmState.CLAIMED], reason="dead")
    found = await snapshot(db, pool)
    assert (found.drained, found.waiting) == (1, 1)
    await make_vms(db, pool, 1)
    async with db.begin() as tx:
        assert await claims.bind_pending(tx, pool.id) == [claim_id]
    assert (await snapshot(db, pool)).drained == 2, "the second VM is used up as well"
    async with db.begin() as tx:
        await pools.replenish(tx, pool.id)
    assert (await snapshot(db, pool)).drained == 0


async def test_a_snapshot_is_of_one_moment(db):
    """A VM that is claimed while the planner reads counts once: as ready, or as claimed and drained."""
    pool = await make_pool(db, auto_replenish=False, size=60)
    await make_vms(db, pool, 60)
    done = asyncio.Event()

    async def keep_claiming():
        lane = WarmClaimStore(db.url)
        for _ in range(60):
            await lane.claim(pool.id, [request()])
        await lane.close()
        done.set()

    claiming = asyncio.create_task(keep_claiming())
    while not done.is_set():
        found = await snapshot(db, pool)
        assert len(found.ready) + found.claimed == 60
        assert found.drained == found.claimed
    await claiming


async def test_pools_below_their_floor_are_planned_first(db):
    calm = await make_pool(db, "calm", min_available=0)
    full = await make_pool(db, "full", min_available=2)
    await make_vms(db, full, 2)
    low = await make_pool(db, "low", min_available=2)
    await make_vms(db, low, 1)
    async with db.begin() as tx:
        assert await planning.take(tx, await planning.due(tx, limit=10), limit=2) == [low.id, calm.id]


async def test_a_pool_that_another_plans_is_passed_over(db):
    pool = await make_pool(db)
    async with db.begin() as mine, db.begin() as theirs:
        assert await planning.take(mine, [pool.id], limit=10) == [pool.id]
        assert await planning.take(theirs, [pool.id], limit=10) == []


async def test_a_claim_that_nobody_shall_serve_any_more_waits_for_nothing(db):
    pool = await make_pool(db)
    claim_id = await wait_for_vm(db, pool)
    assert (await snapshot(db, pool)).waiting == 1
    await end(db, [claim_id], ClaimState.FAILED, [ClaimState.PENDING])
    assert (await snapshot(db, pool)).waiting == 0


async def test_ids_of_a_moment_bound_the_claims_of_that_moment(db):
    now = await scalar(db, "SELECT now()")
    assert lowest_id_at(now - timedelta(seconds=5)) < new_id() < lowest_id_at(now + timedelta(seconds=5))


async def test_after_a_rotation_what_the_cluster_was_asked_for_before_is_not_current(db):
    pool = await make_pool(db)
    old = await make_vms(db, pool, 1)
    booting = await make_vms(db, pool, 1, VmState.BOOTING)
    async with db.begin() as tx:
        await pools.rotate(tx, pool.id)
    new = await make_vms(db, pool, 1)
    never_asked = await make_vms(db, pool, 1, VmState.PLANNED)
    found = await snapshot(db, pool)
    assert {(vm.id, vm.current) for vm in found.ready} == {(old[0], False), (new[0], True)}
    assert {(vm.id, vm.current) for vm in found.in_flight} == {(booting[0], False), (never_asked[0], True)}
