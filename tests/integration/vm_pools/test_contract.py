"""What a pool promises, over both backings, on a dev cluster over HTTP."""

import asyncio

from app.services.claims.lifecycle import release_claim
from app.services.pools.service import delete_pool, pause_pool, replenish_pool, resume_pool
from tests.support.rows import eventually, execute, scalar
from tests.support.vm_pool_world import OTHER_TEMPLATE


async def test_it_fills_is_claimed_from_refills_and_takes_back(world):
    await world.put(size=3, min_available=1)
    await world.agrees(ready=3)
    claim_id, uid = await world.claim()
    await world.agrees(ready=3, claimed=1)
    await world.keeps_the_taken()
    del world.taken[uid]
    await release_claim(world.db, claim_id)
    await world.agrees(ready=3)
    assert uid not in await world.objects()


async def test_a_lease_that_ends_takes_its_vm_with_it(world):
    await world.put(size=1, default_lease_seconds=1)
    await world.agrees(ready=1)
    _, uid = await world.claim(lease=1)
    await world.agrees(ready=1)

    async def gone():
        return uid not in await world.objects()

    await eventually(gone)


async def test_it_shrinks_and_grows_without_touching_what_is_claimed(world):
    await world.put(size=4)
    await world.agrees(ready=4)
    await world.claim()
    await world.put(size=1)
    await world.agrees(ready=1, claimed=1)
    await world.put(size=3)
    await world.agrees(ready=3, claimed=1)
    await world.keeps_the_taken()


async def test_a_new_template_rotates_it_above_the_floor(world):
    await world.put(size=3, min_available=2)
    await world.agrees(ready=3)
    await world.claim()
    await world.agrees(ready=3, claimed=1)
    edited = await world.put(size=3, min_available=2, template=OTHER_TEMPLATE)

    async def rotated():
        assert await scalar(world.db, "SELECT count(*) FROM ready_slot") >= 2
        query = "SELECT count(*) FROM vm WHERE state = 'ready' AND revision = :r"
        return await scalar(world.db, query, r=edited.revision) == 3

    await eventually(rotated)
    await world.agrees(ready=3, claimed=1)
    sizes = {
        vm["spec"]["template"]["spec"]["domain"]["memory"]["guest"]
        for uid, vm in (await world.objects()).items()
        if uid not in world.taken
    }
    assert sizes == {"256Mi"}
    await world.keeps_the_taken()


async def test_vms_that_have_waited_too_long_are_replaced(world):
    await world.put(size=2, max_ready_age_seconds=60)
    await world.agrees(ready=2)
    old = set(await world.objects())
    await execute(world.db, "UPDATE vm SET ready_at = now() - interval '2 minutes'")

    async def replaced():
        return not old & set(await world.objects())

    await eventually(replaced)
    await world.agrees(ready=2)


async def test_paused_it_is_claimed_from_and_makes_nothing(world):
    await world.put(size=2)
    await world.agrees(ready=2)
    before = set(await world.objects())
    await pause_pool(world.db, "web")
    await world.claim()
    await world.agrees(ready=1, claimed=1)
    assert set(await world.objects()) == before
    await resume_pool(world.db, "web")
    await world.agrees(ready=2, claimed=1)


async def test_deleted_it_keeps_what_is_claimed_until_it_is_released(world):
    await world.put(size=3)
    await world.agrees(ready=3)
    claim_id, uid = await world.claim()
    await world.agrees(ready=3, claimed=1)
    await delete_pool(world.db, "web", force=False)
    await world.agrees(claimed=1)
    await world.keeps_the_taken()
    await release_claim(world.db, claim_id)
    await world.is_gone()
    assert uid not in await world.objects()


async def test_deleted_by_force_it_goes_whole(world):
    await world.put(size=2)
    await world.agrees(ready=2)
    await world.claim()
    await delete_pool(world.db, "web", force=True)
    await world.is_gone()
    await world.has_no_objects()


async def test_guests_that_never_boot_stall_it(world):
    world.cluster.faults.order(kind="boot-fails", name="web-*")
    await world.put(size=1, boot_timeout_seconds=5)

    async def stalled():
        return await scalar(world.db, "SELECT stalled_at FROM pool")

    await eventually(stalled)
    world.cluster.faults.lift_all()
    await resume_pool(world.db, "web")
    await world.agrees(ready=1)


async def test_without_refilling_it_drains_until_it_is_told(world):
    await world.put(size=2, auto_replenish=False)
    await world.agrees(ready=2)
    await world.claim()
    await world.claim()
    await world.agrees(claimed=2)
    await replenish_pool(world.db, "web")
    await world.agrees(ready=2, claimed=2)
    await world.keeps_the_taken()


async def test_max_vms_counts_what_is_claimed(world):
    await world.put(size=2, max_vms=3)
    await world.agrees(ready=2)
    await world.claim()
    second, uid = await world.claim()
    await world.agrees(ready=1, claimed=2)
    assert len(await world.objects()) == 3
    del world.taken[uid]
    await release_claim(world.db, second)
    await world.agrees(ready=2, claimed=1)


async def test_a_claim_that_waits_gets_the_vm_that_is_made_for_it(world):
    await world.put(size=0)
    claim_id, _ = await world.claim(wait=20)
    assert await scalar(world.db, "SELECT state FROM claim WHERE id = :id", id=claim_id) == "bound"
    await world.agrees(claimed=1)


async def test_many_claims_at_once_take_each_a_vm_of_their_own(world):
    await world.put(size=4, max_concurrent_creates=4)
    await world.agrees(ready=4)
    taken = await asyncio.gather(*(world.claim() for _ in range(8)))
    assert len({uid for _, uid in taken}) == 8
    await world.agrees(ready=4, claimed=8)
    await world.keeps_the_taken()


async def test_claims_against_shrinking_lose_nothing(world):
    await world.put(size=6)
    await world.agrees(ready=6)
    results = await asyncio.gather(*(world.claim() for _ in range(3)), world.put(size=1))
    assert len({uid for _, uid in results[:3]}) == 3
    await world.agrees(ready=1, claimed=3)
    await world.keeps_the_taken()


async def test_claims_against_a_rotation_lose_nothing(world):
    await world.put(size=4)
    await world.agrees(ready=4)
    await asyncio.gather(*(world.claim() for _ in range(3)), world.put(size=4, template=OTHER_TEMPLATE))
    await world.agrees(ready=4, claimed=3)
    await world.keeps_the_taken()


async def test_claims_against_a_delete_are_kept_or_refused(world):
    await world.put(size=4)
    await world.agrees(ready=4)
    got = await asyncio.gather(
        *(world.claim(wait=0) for _ in range(3)), delete_pool(world.db, "web", force=False), return_exceptions=True
    )
    bound = [each for each in got[:3] if not isinstance(each, BaseException)]
    if bound:
        await world.agrees(claimed=len(bound))
        await world.keeps_the_taken()
    for claim_id, _ in bound:
        await release_claim(world.db, claim_id)
    await world.is_gone()
    await world.has_no_objects()
