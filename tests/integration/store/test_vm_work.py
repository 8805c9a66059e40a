"""VMs as work: taken under a lease, written back only while it holds, and taken over once it has run out."""

import asyncio
from uuid import uuid4

import pytest

from app.domain.states import VmState
from app.store.claims.warm import WarmClaimStore
from app.store.vms import rows as vms
from app.store.vms import work
from tests.support.rows import execute, fetch, make_pool, make_vms, request, scalar, state_of


async def acquire_creates(db, *, token=None, limit=10, rate=1e6):
    async with db.begin() as tx:
        return await work.acquire_creates(tx, token=token or uuid4(), limit=limit, seconds=30, rate=rate)


async def acquire_removals(db, *, token=None, limit=10):
    async with db.begin() as tx:
        return await work.acquire_removals(tx, token=token or uuid4(), limit=limit, seconds=30)


async def acquire_labels(db, *, limit=10):
    async with db.begin() as tx:
        return await work.acquire_labels(tx, limit=limit, seconds=30)


async def holds(db, item, token):
    async with db.begin() as tx:
        return await work.LEASES.holds(tx, item.id, token=token)


async def run_out(db):
    await execute(db, "UPDATE vm SET lease_expires_at = now() - interval '1 s' WHERE lease_expires_at IS NOT NULL")


async def test_a_planned_vm_is_taken_once_with_all_that_a_create_needs(db):
    pool = await make_pool(db, boot_timeout_seconds=90)
    ids = await make_vms(db, pool, 2, VmState.PLANNED)
    token = uuid4()
    taken = await acquire_creates(db, token=token)
    assert {item.id for item in taken} == set(ids)
    first = taken[0]
    assert (first.pool, first.vm_spec, first.revision, first.boot_timeout_seconds, first.attempts) == (
        "web",
        pool.vm_spec,
        "r1",
        90,
        1,
    )
    assert await acquire_creates(db) == []
    assert await holds(db, first, token)
    assert not await holds(db, first, uuid4())
    async with db.begin() as tx:
        await vms.move(tx, [first.id], VmState.BOOTING, sources=[VmState.CREATING], deadline_seconds=60)
    assert not await holds(db, first, token), "a change of state ends the lease"


async def test_many_workers_share_the_work(db):
    pool = await make_pool(db)
    ids = await make_vms(db, pool, 30, VmState.PLANNED)
    shares = await asyncio.gather(*(acquire_creates(db, limit=5) for _ in range(8)))
    taken = [item.id for share in shares for item in share]
    assert len(taken) == len(set(taken))
    rest = await acquire_creates(db, limit=30)
    assert set(taken) | {item.id for item in rest} == set(ids)


async def test_the_urgent_go_first_then_the_oldest(db):
    calm, low = await make_pool(db, "calm"), await make_pool(db, "low")
    old = await make_vms(db, calm, 2, VmState.PLANNED)
    urgent = await make_vms(db, low, 1, VmState.PLANNED)
    await execute(db, "UPDATE vm SET urgent = true WHERE id = :id", id=urgent[0])
    order = [(await acquire_creates(db, limit=1))[0].id for _ in range(3)]
    assert order == [*urgent, *old]


async def test_a_create_that_a_dead_worker_left_is_taken_over(db):
    pool = await make_pool(db)
    await make_vms(db, pool, 1, VmState.PLANNED)
    dead = uuid4()
    (first,) = await acquire_creates(db, token=dead)
    await run_out(db)
    (again,) = await acquire_creates(db)
    assert (again.name, again.attempts) == (first.name, 2)
    assert not await holds(db, first, dead)
    assert await scalar(db, "SELECT count(*) FROM event WHERE type = 'vm.creating'") == 1


async def test_what_was_never_asked_for_is_made_from_the_newest_template(db):
    pool = await make_pool(db)
    asked, fresh = await make_vms(db, pool, 2, VmState.PLANNED)
    (first,) = await acquire_creates(db, limit=1)
    assert first.id == asked
    await execute(db, "UPDATE pool SET revision = 'r2'")
    await run_out(db)
    await acquire_creates(db)
    rows = await fetch(db, "SELECT id, revision FROM vm")
    assert {row["id"]: row["revision"] for row in rows} == {asked: "r1", fresh: "r2"}


@pytest.mark.parametrize("change", ["paused = true", "deleting_at = now()"])
async def test_nothing_is_begun_for_a_pool_that_is_paused_or_being_deleted(db, change):
    pool = await make_pool(db)
    await make_vms(db, pool, 1, VmState.CREATING)
    await make_vms(db, pool, 1, VmState.PLANNED)
    await execute(db, f"UPDATE pool SET {change}")
    assert await acquire_creates(db) == []
    await run_out(db)
    assert len(await acquire_creates(db)) == 1, "what was begun is finished"


async def test_the_rate_bounds_all_workers_together(db):
    pool = await make_pool(db)
    await make_vms(db, pool, 30, VmState.PLANNED)
    await execute(db, "INSERT INTO bucket (name, tokens) VALUES ('creates', 0)")
    await execute(db, "UPDATE bucket SET filled_at = now() - interval '500 ms'")
    shares = await asyncio.gather(*(acquire_creates(db, limit=10, rate=8) for _ in range(4)))
    assert sum(len(share) for share in shares) in {4, 5}
    await execute(db, "UPDATE bucket SET filled_at = now() - interval '1 hour'")
    burst = await acquire_creates(db, limit=30, rate=8)
    assert len(burst) == 8, "an hour of rest is a burst of one second"
    await execute(db, "UPDATE bucket SET filled_at = now() - interval '1 hour'")
    assert len(await acquire_creates(db, limit=30, rate=0.5)) == 1, "a rate below one a second still makes one"


async def test_a_create_that_is_put_off_is_planned_again_and_due_later(db):
    pool = await make_pool(db)
    await make_vms(db, pool, 1, VmState.PLANNED)
    token = uuid4()
    (item,) = await acquire_creates(db, token=token)
    async with db.begin() as tx:
        await work.retry_create(tx, item.id, token=uuid4(), seconds=60, reason="not mine")
    assert await state_of(db, item.id) is VmState.CREATING
    async with db.begin() as tx:
        await work.retry_create(tx, item.id, token=token, seconds=60, reason="the cluster is unavailable")
    assert await state_of(db, item.id) is VmState.PLANNED
    assert await scalar(db, "SELECT health FROM vm") == "the cluster is unavailable"
    assert await acquire_creates(db) == []
    await execute(db, "UPDATE vm SET due_at = now()")
    (again,) = await acquire_creates(db)
    assert again.attempts == 2


async def test_removals_are_taken_of_failed_and_releasing_vms(db):
    pool = await make_pool(db)
    (releasing,) = await make_vms(db, pool, 1, VmState.RELEASING)
    (failed,) = await make_vms(db, pool, 1, VmState.BOOTING)
    await make_vms(db, pool, 1)
    async with db.begin() as tx:
        await vms.move(tx, [failed], VmState.FAILED, sources=[VmState.BOOTING], reason="crashed")
    taken = await acquire_removals(db)
    assert {(item.id, item.uid) for item in taken} == {(releasing, f"uid-{releasing}"), (failed, f"uid-{failed}")}
    assert await acquire_removals(db) == []
    await run_out(db)
    assert {item.attempts for item in await acquire_removals(db)} == {2}


async def test_a_removal_that_is_put_off_or_looked_at_again_is_due_later(db):
    pool = await make_pool(db)
    await make_vms(db, pool, 2, VmState.RELEASING)
    token = uuid4()
    first, second = await acquire_removals(db, token=token)
    async with db.begin() as tx:
        await work.retry_removal(tx, first.id, token=uuid4(), seconds=0, reason="not mine")
        await work.retry_removal(tx, first.id, token=token, seconds=60, reason="the cluster is unavailable")
        await work.check_removal(tx, second.id, seconds=60)
    assert await acquire_removals(db) == []
    assert await scalar(db, "SELECT health FROM vm WHERE id = :id", id=first.id) == "the cluster is unavailable"
    await execute(db, "UPDATE vm SET due_at = now()")
    assert len(await acquire_removals(db)) == 2


async def test_what_is_released_is_acquired_at_once(db):
    pool = await make_pool(db)
    await make_vms(db, pool, 1, VmState.RELEASING)
    await make_vms(db, pool, 1, VmState.PLANNED)
    mine, theirs = uuid4(), uuid4()
    await acquire_removals(db, token=mine)
    await acquire_creates(db, token=mine)
    async with db.begin() as tx:
        await work.LEASES.release(tx, token=theirs)
    assert await acquire_removals(db) == []
    async with db.begin() as tx:
        await work.LEASES.release(tx, token=mine)
    assert len(await acquire_removals(db)) == 1
    assert len(await acquire_creates(db)) == 1


async def claim(db, pool):
    lane = WarmClaimStore(db.url)
    (outcome,) = await lane.claim(pool.id, [request()])
    await lane.close()
    assert outcome is not None
    return outcome


async def test_a_claim_is_labelled_once_and_tried_again_until_it_is(db):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1)
    assert await acquire_labels(db) == []
    bound = await claim(db, pool)
    (item,) = await acquire_labels(db)
    assert (item.claim_id, item.vm_id, item.uid, item.attempts) == (bound.claim.id, vm_id, f"uid-{vm_id}", 1)
    assert item.name == bound.vm_name
    assert await acquire_labels(db) == [], "another is at it"
    async with db.begin() as tx:
        await work.label_later(tx, item.claim_id, item.vm_id, seconds=0)
    (item,) = await acquire_labels(db)
    assert item.attempts == 2
    async with db.begin() as tx:
        await work.mark_labelled(tx, item)
        await work.label_later(tx, item.claim_id, item.vm_id, seconds=0)
    assert await acquire_labels(db) == []


async def test_the_uid_is_written(db):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1, VmState.CREATING)
    async with db.begin() as tx:
        await work.write_uid(tx, vm_id, "abc")
    assert await scalar(db, "SELECT uid FROM vm") == "abc"
