"""Writing pools: the cluster is asked first, and what it refuses is stored nowhere."""

import asyncio

import pytest

from app.domain.states import ClaimState, VmState
from app.errors import (
    ClusterUnavailable,
    Conflict,
    PoolBeingDeleted,
    PoolNotFound,
    PreconditionFailed,
    TemplateRefused,
)
from app.reconcilers.pools.planner import plan_due_pools
from app.services.pools.service import (
    delete_pool,
    edit_pool,
    pause_pool,
    put_pool,
    replenish_pool,
    resume_pool,
    rotate_pool,
)
from app.services.writes import IfMatch, WriteOutcome
from app.store.claims import pages as claim_pages
from app.store.claims import rows as claims
from app.store.pools import rows as pools
from app.store.vms import rows as vms
from tests.support.claim_rows import bind, wait_for_vm
from tests.support.rows import event_types, execute, fetch, make_vms, scalar, spec, state_of


async def put(db, gateway, name="web", **given):
    return await put_pool(db, gateway, name, spec(**given))


async def test_a_pool_is_checked_and_made(db, gateway):
    written = await put(db, gateway, size=2)
    assert written.outcome is WriteOutcome.CREATED
    assert (written.pool.name, written.pool.spec.size, written.pool.vm_spec) == (
        "web",
        2,
        {"template": spec().template},
    )
    assert gateway.called("check") == [written.pool.revision]
    assert await event_types(db) == ["pool.created"]


async def test_the_same_again_changes_nothing_and_asks_nobody(db, gateway):
    await put(db, gateway)
    again = await put(db, gateway)
    assert (again.outcome, again.pool.generation) == (WriteOutcome.UNCHANGED, 1)
    assert len(gateway.calls) == 1
    assert await event_types(db) == ["pool.created"]


async def test_a_change_of_numbers_is_no_change_of_the_template(db, gateway):
    first = await put(db, gateway)
    changed = await put(db, gateway, size=9)
    assert (changed.outcome, changed.pool.generation, changed.pool.id) == (WriteOutcome.CHANGED, 2, first.pool.id)
    assert len(gateway.called("check")) == 1
    edited = await put(db, gateway, size=9, template={"image": "another"})
    assert edited.pool.revision != first.pool.revision
    assert len(gateway.called("check")) == 2


async def test_what_the_cluster_refuses_or_cannot_judge_is_not_stored(db, gateway):
    with pytest.raises(TemplateRefused):
        await put(db, gateway, template={"refused": 1})
    for error in (TemplateRefused("no such instance type"), ClusterUnavailable("nobody answers")):
        gateway.refuse("check", error, times=1)
        with pytest.raises(type(error)):
            await put(db, gateway)
    assert await scalar(db, "SELECT count(*) FROM pool") == 0
    assert await event_types(db) == []


async def test_of_two_that_make_one_pool_at_once_one_is_told_to_read_it_again(db, gateway):
    """Both have found no pool of that name; the second to insert waits for the first's commit."""

    async def both():
        return await asyncio.gather(*(put(db, gateway, size=n) for n in range(1, 4)), return_exceptions=True)

    results = await both()
    failed = [result for result in results if isinstance(result, BaseException)]
    assert all(isinstance(error, Conflict) and not isinstance(error, PoolBeingDeleted) for error in failed)
    assert await scalar(db, "SELECT count(*) FROM pool") == 1
    assert len(failed) < 3


async def test_an_edit_closes_the_breaker(db, gateway):
    await put(db, gateway)
    await execute(db, "UPDATE pool SET stalled_at = now(), consecutive_failures = 5, backoff_until = now()")
    edited = (await put(db, gateway, size=9)).pool
    assert (edited.stalled_at, edited.consecutive_failures, edited.backoff_until) == (None, 0, None)


async def test_a_pause_and_its_end(db, gateway):
    await put(db, gateway)
    assert (await pause_pool(db, "web")).paused
    assert (await pause_pool(db, "web")).paused
    await execute(db, "UPDATE pool SET stalled_at = now(), consecutive_failures = 5")
    resumed = await resume_pool(db, "web")
    assert (resumed.paused, resumed.stalled_at, resumed.consecutive_failures) == (False, None, 0)
    await resume_pool(db, "web")
    assert await event_types(db) == ["pool.created", "pool.paused", "pool.resumed"]


async def test_replenish_fills_a_pool_that_does_not_refill(db, gateway):
    pool = (await put(db, gateway, auto_replenish=False)).pool
    refilled = await replenish_pool(db, "web")
    assert refilled.refilled_at > pool.refilled_at


async def test_a_rotation_that_is_asked_for_again_is_the_same_until_it_has_ended(db, gateway):
    pool = (await put(db, gateway, size=2)).pool
    old = await make_vms(db, pool, 2)
    first = await rotate_pool(db, "web", restart=False)
    assert (first.outcome, first.pool.generation) == (WriteOutcome.CHANGED, 1)
    again = await rotate_pool(db, "web", restart=False)
    assert (again.outcome, again.pool.rotated_at) == (WriteOutcome.UNCHANGED, first.pool.rotated_at)
    anew = await rotate_pool(db, "web", restart=True)
    assert anew.outcome is WriteOutcome.CHANGED
    assert anew.pool.rotated_at > first.pool.rotated_at
    async with db.begin() as tx:
        await vms.release(tx, old, sources=[VmState.READY], reason="replaced")
    after = await rotate_pool(db, "web", restart=False)
    assert after.pool.rotated_at > anew.pool.rotated_at
    rotations = await fetch(db, "SELECT data FROM event WHERE type = 'pool.rotating' ORDER BY id")
    assert [row["data"] for row in rotations] == [{"vms": 2}, {"vms": 2}, {"vms": 0}]


async def test_edits_at_the_same_time_lose_nothing(db, gateway):
    await put(db, gateway, size=1)
    fields = ("size", "max_lease_seconds", "max_concurrent_creates", "boot_timeout_seconds", "default_lease_seconds")

    def raise_by_one(field):
        return lambda spec: spec.model_copy(update={field: getattr(spec, field) + 1})

    done = await asyncio.gather(
        *(edit_pool(db, gateway, "web", raise_by_one(field)) for field in fields for _ in range(4))
    )
    assert sorted(edit.pool.generation for edit in done) == list(range(2, 22))
    async with db.begin() as tx:
        pool = await pools.get(tx, "web")
    base = spec(size=1)
    assert {field: getattr(pool.spec, field) for field in fields} == {
        field: getattr(base, field) + 4 for field in fields
    }


async def test_an_edit_is_made_again_of_what_another_request_wrote(db, gateway):
    """The other one comes between the look and the write: what both wrote is kept, and the cluster is asked for the second template."""
    await put(db, gateway, size=1)
    seen = []

    def change(before):
        seen.append(before.size)
        return before.model_copy(update={"template": {"image": "another"}})

    check = gateway.check

    async def overtaking(template):
        gateway.check = check
        await put(db, gateway, size=7)
        await check(template)

    gateway.check = overtaking
    edited = (await edit_pool(db, gateway, "web", change)).pool
    assert seen == [1, 7]
    assert (edited.spec.size, edited.spec.template, edited.generation) == (7, {"image": "another"}, 3)


async def test_a_write_for_another_generation_is_refused_with_the_one_that_there_is(db, gateway):
    await put(db, gateway, size=1)
    await put(db, gateway, size=2)
    for write in (
        lambda if_match: put_pool(db, gateway, "web", spec(size=2), if_match=if_match),
        lambda if_match: edit_pool(db, gateway, "web", lambda old: old, if_match=if_match),
    ):
        with pytest.raises(
            PreconditionFailed, match="the generation of pool 'web' is 2, and If-Match names 1;"
        ) as refused:
            await write(IfMatch(frozenset({"1"})))
        assert refused.value.version == "2"
        with pytest.raises(PreconditionFailed, match="weak"):
            await write(IfMatch(frozenset()))
        assert (await write(IfMatch(None))).pool.generation == 2
    with pytest.raises(PreconditionFailed, match="leave If-Match out to create it"):
        await put_pool(db, gateway, "other", spec(), if_match=IfMatch(None))
    with pytest.raises(PoolNotFound):
        await edit_pool(db, gateway, "other", lambda old: old, if_match=IfMatch(None))
    assert await scalar(db, "SELECT max(generation) FROM pool") == 2


async def rotate(db, name):
    return await rotate_pool(db, name, restart=False)


@pytest.mark.parametrize("order", [rotate, pause_pool, resume_pool, replenish_pool])
async def test_orders_for_a_pool_that_is_not_there_or_is_going(db, gateway, order):
    with pytest.raises(PoolNotFound, match="'web'"):
        await order(db, "web")
    with pytest.raises(PoolNotFound, match="'web'"):
        await delete_pool(db, "web", force=False)
    await put(db, gateway)
    await delete_pool(db, "web", force=False)
    with pytest.raises(PoolBeingDeleted, match=r"force=true"):
        await order(db, "web")
    with pytest.raises(PoolBeingDeleted):
        await put(db, gateway)
    with pytest.raises(PoolBeingDeleted):
        await edit_pool(db, gateway, "web", lambda old: old, if_match=IfMatch(frozenset({"9"})))


async def full_pool(db, gateway):
    """A pool with a claimed VM, a ready one, one on its way, and a claim that waits elsewhere in time."""
    pool = (await put(db, gateway)).pool
    held = await wait_for_vm(db, pool)
    (claimed,) = await make_vms(db, pool, 1)
    assert await bind(db, pool) == [held]
    waiting = await wait_for_vm(db, pool)
    (ready,) = await make_vms(db, pool, 1)
    (booting,) = await make_vms(db, pool, 1, VmState.BOOTING)
    return pool, held, claimed, waiting, ready, booting


async def test_a_deleted_pool_keeps_its_claimed_vms_until_they_are_released(db, gateway):
    pool, held, claimed, waiting, ready, booting = await full_pool(db, gateway)
    deleted = await delete_pool(db, "web", force=False)
    assert deleted.deleting_at is not None
    async with db.begin() as tx:
        states = {claim.id: claim.state for claim in await claim_pages.page(tx, after=None, limit=10)}
    assert states == {held: ClaimState.BOUND, waiting: ClaimState.FAILED}
    assert await plan_due_pools(db, every_seconds=1) == [pool.id]
    assert await state_of(db, ready) is VmState.RELEASING
    assert await state_of(db, booting) is VmState.RELEASING
    assert await state_of(db, claimed) is VmState.CLAIMED

    again = await delete_pool(db, "web", force=True)
    assert again.deleting_at == deleted.deleting_at
    assert await state_of(db, claimed) is VmState.RELEASING
    async with db.begin() as tx:
        claim = await claims.get(tx, held)
    assert claim is not None
    assert (claim.state, claim.reason) == (ClaimState.RELEASED, "pool 'web' was deleted by force")
    assert (await event_types(db)).count("pool.deleting") == 1


async def test_the_name_is_free_once_the_last_vm_has_gone(db, gateway):
    pool, *_ = await full_pool(db, gateway)
    await delete_pool(db, "web", force=True)
    await plan_due_pools(db, every_seconds=1)
    await execute(db, "UPDATE vm SET state = 'deleted', ended_at = now()")
    await execute(db, "UPDATE pool_plan SET due_at = now()")
    assert await plan_due_pools(db, every_seconds=1) == [pool.id]
    assert (await event_types(db))[-1] == "pool.deleted"
    assert await plan_due_pools(db, every_seconds=1) == []
    assert (await put(db, gateway)).outcome is WriteOutcome.CREATED


async def test_a_claim_that_began_to_wait_while_its_pool_was_deleted_ends(db, gateway):
    """It had looked before the deletion was committed: without the planner's second look it would hold the name for minutes."""
    pool = (await put(db, gateway)).pool
    await delete_pool(db, "web", force=False)
    late = await wait_for_vm(db, pool)
    assert await plan_due_pools(db, every_seconds=1) == [pool.id]
    async with db.begin() as tx:
        claim = await claims.get(tx, late)
        assert claim is not None
        assert claim.state is ClaimState.FAILED
        await pools.plan_soon(tx, pool.id)
    await execute(db, "UPDATE pool_plan SET due_at = now()")
    await plan_due_pools(db, every_seconds=1)
    assert await fetch(db, "SELECT 1 FROM pool WHERE deleted_at IS NULL") == []
