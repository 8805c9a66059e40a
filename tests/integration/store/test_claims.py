"""Claims that wait, their binding in order of arrival, their leases and their ends."""

import asyncio
from uuid import uuid4

import pytest

from app.domain.states import ClaimState, VmState
from app.errors import IllegalTransition
from app.store.claims import pages as claim_pages
from app.store.claims import rows as claims
from app.store.vms import rows as vms
from tests.support import store_invariants as invariants
from tests.support.claim_rows import bind, end, wait_for_vm
from tests.support.rows import blocked, event_types, execute, make_pool, make_vms, scalar, state_of


async def get(db, claim_id):
    async with db.begin() as tx:
        return await claims.get(tx, claim_id)


async def bound_claim(db, pool):
    """A claim that holds a VM, by way of the queue."""
    claim_id = await wait_for_vm(db, pool)
    await make_vms(db, pool, 1)
    assert await bind(db, pool) == [claim_id]
    return await get(db, claim_id)


async def test_those_that_wait_are_served_in_order_of_arrival(db):
    pool = await make_pool(db)
    first, second, third = [await wait_for_vm(db, pool) for _ in range(3)]
    ready = await make_vms(db, pool, 2)
    assert set(await bind(db, pool)) == {first, second}
    served = [await get(db, claim_id) for claim_id in (first, second)]
    assert [claim.vm_id for claim in served] == ready
    assert all(claim.state is ClaimState.BOUND and claim.path == "pool" for claim in served)
    assert (await get(db, third)).state is ClaimState.PENDING
    assert [await state_of(db, vm_id) for vm_id in ready] == [VmState.CLAIMED] * 2
    assert (await event_types(db))[-2:] == ["claim.bound", "claim.bound"]


async def test_binding_binds_no_more_than_the_limit_and_nothing_of_other_pools(db):
    web, batch = await make_pool(db, "web"), await make_pool(db, "batch")
    first = await wait_for_vm(db, web)
    await wait_for_vm(db, web)
    elsewhere = await wait_for_vm(db, batch)
    await make_vms(db, web, 3)
    assert await bind(db, web, limit=1) == [first]
    assert await bind(db, batch) == []
    assert (await get(db, elsewhere)).state is ClaimState.PENDING


async def test_a_pool_that_is_being_deleted_serves_nobody(db):
    pool = await make_pool(db)
    await wait_for_vm(db, pool)
    await make_vms(db, pool, 1)
    await execute(db, "UPDATE pool SET deleting_at = now()")
    assert await bind(db, pool) == []


async def test_a_key_has_one_claim(db):
    pool = await make_pool(db)
    first = await wait_for_vm(db, pool, key="k")
    assert await wait_for_vm(db, pool, key="k") == first
    assert await wait_for_vm(db, pool, key="other") != first
    assert await scalar(db, "SELECT count(*) FROM claim_queue") == 2


async def test_a_claim_that_failed_without_a_vm_gives_its_key_back(db):
    pool = await make_pool(db)
    first = await wait_for_vm(db, pool, key="k")
    await end(db, [first], ClaimState.FAILED, [ClaimState.PENDING])
    assert await wait_for_vm(db, pool, key="k") != first
    assert (await get(db, first)).state is ClaimState.FAILED


async def test_a_released_claim_keeps_its_key(db):
    pool = await make_pool(db)
    claim_id = await wait_for_vm(db, pool, key="k")
    await make_vms(db, pool, 1)
    await bind(db, pool)
    await end(db, [claim_id])
    assert await wait_for_vm(db, pool, key="k") == claim_id


async def test_the_end_gives_the_vm_to_release_and_happens_once(db):
    pool = await make_pool(db)
    held = await bound_claim(db, pool)
    waiting = await wait_for_vm(db, pool)
    ended = await end(db, [held.id, waiting, uuid4()])
    assert set(ended) == {(held.id, pool.id, held.vm_id), (waiting, pool.id, None)}
    assert await end(db, [held.id, waiting]) == []
    assert await end(db, []) == []
    assert await state_of(db, held.vm_id) is VmState.RELEASING
    assert (await get(db, held.id)).reason == "for the test"


async def test_an_end_from_another_state_is_no_end(db):
    pool = await make_pool(db)
    held = await bound_claim(db, pool)
    assert await end(db, [held.id], ClaimState.FAILED, [ClaimState.PENDING]) == []
    with pytest.raises(IllegalTransition):
        await end(db, [held.id], ClaimState.FAILED, [ClaimState.RELEASED])


async def test_a_lease_is_renewed_while_the_claim_is_bound(db):
    pool = await make_pool(db)
    held = await bound_claim(db, pool)
    async with db.begin() as tx:
        assert await claims.renew(tx, held.id, seconds=500)
    renewed = await get(db, held.id)
    assert (renewed.lease_expires_at - held.lease_expires_at).total_seconds() > 400
    assert renewed.lease_seconds == 500
    await end(db, [held.id])
    async with db.begin() as tx:
        assert not await claims.renew(tx, held.id, seconds=500)
        assert not await claims.renew(tx, uuid4(), seconds=500)


async def test_leases_that_are_over_are_found_oldest_first(db):
    pool = await make_pool(db)
    held = [await bound_claim(db, pool) for _ in range(3)]
    for number, claim in enumerate(held[:2]):
        query = "UPDATE claim SET lease_expires_at = now() - make_interval(secs => :n) WHERE id = :id"
        await execute(db, query, id=claim.id, n=number + 1)
    async with db.begin() as tx:
        assert await claims.expired_leases(tx, limit=10) == [held[1].id, held[0].id]
        assert await claims.expired_leases(tx, limit=1) == [held[1].id]


async def test_a_lease_that_is_renewed_at_the_moment_of_its_end_goes_on(db):
    """The renewal came first, and was not committed when the leases were looked through."""
    pool = await make_pool(db)
    held = await bound_claim(db, pool)
    await execute(db, "UPDATE claim SET lease_expires_at = now() - interval '1 second'")

    async def reap():
        async with db.begin() as tx:
            over = await claims.expired_leases(tx, limit=10)
            return await claims.end(tx, over, ClaimState.EXPIRED, sources=[ClaimState.BOUND], reason="over")

    async with db.begin() as tx:
        assert await claims.renew(tx, held.id, seconds=500)
        reaping = asyncio.create_task(reap())
        await asyncio.wait([reaping, asyncio.ensure_future(blocked(db))], return_when=asyncio.FIRST_COMPLETED)
    assert await reaping == []
    assert (await get(db, held.id)).state is ClaimState.BOUND


async def test_a_lease_that_was_found_over_is_not_renewed_any_more(db):
    pool = await make_pool(db)
    held = await bound_claim(db, pool)
    await execute(db, "UPDATE claim SET lease_expires_at = now() - interval '1 second'")

    async def renew():
        async with db.begin() as tx:
            return await claims.renew(tx, held.id, seconds=500)

    async with db.begin() as tx:
        over = await claims.expired_leases(tx, limit=10)
        renewing = asyncio.create_task(renew())
        await blocked(db)
        await claims.end(tx, over, ClaimState.EXPIRED, sources=[ClaimState.BOUND], reason="over")
        await vms.release(tx, [held.vm_id], sources=[VmState.CLAIMED], reason="over")
    assert not await renewing


async def test_those_that_waited_too_long_are_found_unless_they_held_their_place(db):
    pool = await make_pool(db)
    late, held, young = await wait_for_vm(db, pool), await wait_for_vm(db, pool), await wait_for_vm(db, pool)
    query = "UPDATE claim SET pending_until = now() - interval '1 second' WHERE id = ANY(:ids)"
    await execute(db, query, ids=[late, held])
    async with db.begin() as holding:
        await claims.keep_place(holding, held, seconds=100)
        async with db.begin() as tx:
            assert await claims.expired_places(tx, limit=10) == [late], "one that is being held is passed over"
    async with db.begin() as tx:
        assert await claims.expired_places(tx, limit=10) == [late]
        assert await claims.pools_with_pending(tx) == [pool.id]
        assert set(await claims.pending_of_pool(tx, pool.id)) == {late, held, young}


async def test_a_claim_whose_vm_died_waits_before_all_others(db):
    pool = await make_pool(db)
    held = await bound_claim(db, pool)
    other = await wait_for_vm(db, pool)
    async with db.begin() as tx:
        assert await claims.has_vm(tx, held.id, held.vm_id)
        assert not await claims.requeue(tx, held.id, vm_id=uuid4(), reason="dead", pending_seconds=60)
        assert await claims.requeue(tx, held.id, vm_id=held.vm_id, reason="dead", pending_seconds=60)
        await vms.move(tx, [held.vm_id], VmState.FAILED, sources=[VmState.CLAIMED], reason="dead")
        assert not await claims.has_vm(tx, held.id, held.vm_id)
    waiting = await get(db, held.id)
    assert (waiting.state, waiting.vm_id, waiting.bound_at) == (ClaimState.PENDING, None, None)
    (replaced,) = waiting.replacements
    assert (replaced["vm_id"], replaced["reason"]) == (str(held.vm_id), "dead")
    fresh = await make_vms(db, pool, 1)
    assert await bind(db, pool) == [held.id]
    assert (await get(db, held.id)).vm_id == fresh[0]
    assert (await get(db, other)).state is ClaimState.PENDING


async def test_a_release_at_the_moment_of_a_replacement_leaves_no_place_behind(db):
    """The place is new when the release has already looked: without a second look, a released claim would get a VM."""
    pool = await make_pool(db)
    held = await bound_claim(db, pool)
    async with db.begin() as tx:
        assert await claims.requeue(tx, held.id, vm_id=held.vm_id, reason="dead", pending_seconds=60)
        await vms.move(tx, [held.vm_id], VmState.FAILED, sources=[VmState.CLAIMED], reason="dead")
        releasing = asyncio.create_task(end(db, [held.id]))
        await blocked(db)
    assert await releasing == [(held.id, pool.id, None)]
    await invariants.check(db)
    await make_vms(db, pool, 1)
    assert await bind(db, pool) == []
    assert (await get(db, held.id)).state is ClaimState.RELEASED


async def test_pages_are_the_newest_first_and_filtered(db):
    web, batch = await make_pool(db, "web"), await make_pool(db, "batch")
    first = await wait_for_vm(db, web, labels={"job": "1", "who": "me"})
    second = await wait_for_vm(db, batch, labels={"job": "2"})
    third = await wait_for_vm(db, web)
    await end(db, [third])
    async with db.begin() as tx:
        assert [c.id for c in await claim_pages.page(tx, after=None, limit=10)] == [third, second, first]
        assert [c.id for c in await claim_pages.page(tx, after=third, limit=1)] == [second]
        assert [c.id for c in await claim_pages.page(tx, after=None, limit=9, pool="web")] == [third, first]
        assert [c.id for c in await claim_pages.page(tx, after=None, limit=9, state=ClaimState.PENDING)] == [
            second,
            first,
        ]
        assert [c.id for c in await claim_pages.page(tx, after=None, limit=9, label=("job", "1"))] == [first]
        assert set(await claims.settled(tx, [first, second, third, uuid4()])) == {third}
        assert await claims.get(tx, uuid4()) is None
        assert await claims.bound_of_pool(tx, web.id) == []
