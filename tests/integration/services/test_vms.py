"""Discarding single VMs: those that nobody has claimed, and no other."""

import asyncio
from uuid import uuid4

import pytest

from app.domain.states import VmState
from app.errors import Conflict, VmClaimed, VmNotFound
from app.reconcilers.pools.planner import plan_due_pools
from app.services.vms.service import discard_vm
from app.store.claims.warm import WarmClaimStore
from app.store.vms import rows as vms
from tests.support.claim_rows import bind, wait_for_vm
from tests.support.rows import execute, fetch, make_pool, make_vms, request, scalar, state_of


@pytest.mark.parametrize("state", [VmState.READY, VmState.BOOTING])
async def test_a_discarded_vm_leaves_below_the_floor_and_is_replaced(db, state):
    pool = await make_pool(db, size=1, min_available=1)
    (vm_id,) = await make_vms(db, pool, 1, state)
    await plan_due_pools(db, every_seconds=60)
    assert (await discard_vm(db, vm_id)).state is VmState.RELEASING
    assert await scalar(db, "SELECT count(*) FROM ready_slot") == 0
    (event,) = await fetch(db, "SELECT data FROM event WHERE type = 'vm.releasing'")
    assert event["data"] == {"from": str(state), "reason": "discarded by DELETE /v1/vms"}
    assert await plan_due_pools(db, every_seconds=60) == [pool.id], "it is due at once"
    assert await scalar(db, "SELECT count(*) FROM vm WHERE state = 'planned'") == 1


async def test_a_paused_pool_replaces_a_discarded_vm_when_it_is_resumed(db):
    pool = await make_pool(db, size=1)
    (vm_id,) = await make_vms(db, pool, 1)
    await execute(db, "UPDATE pool SET paused = true")
    await discard_vm(db, vm_id)
    await plan_due_pools(db, every_seconds=60)
    assert await scalar(db, "SELECT count(*) FROM vm WHERE state = 'planned'") == 0


async def test_a_vm_that_is_leaving_or_has_ended_stays_as_it_is(db):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1)
    first = await discard_vm(db, vm_id)
    assert await discard_vm(db, vm_id) == first
    async with db.begin() as tx:
        await vms.move(tx, [vm_id], VmState.DELETED, sources=[VmState.RELEASING])
    assert (await discard_vm(db, vm_id)).state is VmState.DELETED
    assert await scalar(db, "SELECT count(*) FROM event WHERE type = 'vm.releasing'") == 1


async def test_a_claimed_vm_is_kept_and_its_claim_is_named(db):
    pool = await make_pool(db)
    claim_id = await wait_for_vm(db, pool)
    (vm_id,) = await make_vms(db, pool, 1)
    assert await bind(db, pool) == [claim_id]
    with pytest.raises(VmClaimed, match=rf"release the claim: DELETE /v1/claims/{claim_id}$"):
        await discard_vm(db, vm_id)
    assert await state_of(db, vm_id) is VmState.CLAIMED


@pytest.mark.parametrize("state", [VmState.PLANNED, VmState.CREATING])
async def test_a_vm_that_is_not_in_the_cluster_yet_is_kept(db, state):
    (vm_id,) = await make_vms(db, await make_pool(db), 1, state)
    with pytest.raises(Conflict, match=f"is {state}, and there is nothing to discard"):
        await discard_vm(db, vm_id)
    assert await state_of(db, vm_id) is state


async def test_a_vm_that_does_not_exist(db):
    with pytest.raises(VmNotFound):
        await discard_vm(db, uuid4())


async def test_of_a_claim_and_a_discard_at_the_same_moment_one_gets_the_vm(db):
    count = 12
    pool = await make_pool(db, size=count)
    ids = await make_vms(db, pool, count)
    lane = WarmClaimStore(db.url)

    async def discard(vm_id):
        try:
            return (await discard_vm(db, vm_id)).id
        except VmClaimed:
            return None

    discards = [asyncio.create_task(discard(vm_id)) for vm_id in reversed(ids)]
    claims = [asyncio.create_task(lane.claim(pool.id, [request()], from_start=True)) for _ in range(count)]
    discarded = {vm_id for vm_id in await asyncio.gather(*discards) if vm_id is not None}
    outcomes = [outcome for found in await asyncio.gather(*claims) for outcome in found if outcome is not None]
    await lane.close()
    claimed = {outcome.vm_id for outcome in outcomes}
    assert discarded | claimed == set(ids)
    assert not discarded & claimed
    assert {vm_id for vm_id in ids if await state_of(db, vm_id) is VmState.RELEASING} == discarded
    assert {vm_id for vm_id in ids if await state_of(db, vm_id) is VmState.CLAIMED} == claimed
