"""`POST /v1/claim` below HTTP: served at once, after a wait, or told when to come back."""

import asyncio

import pytest

from app.domain.claims import WarmClaim
from app.domain.states import ClaimState, VmState
from app.errors import (
    ClaimNotFound,
    DatabaseUnavailable,
    IdempotencyKeyReused,
    LeaseTooLong,
    NoWarmVm,
    PoolBeingDeleted,
    PoolNotFound,
)
from app.ids import new_id
from app.services.claims.lifecycle import release_claim
from app.services.claims.queue import StoredClaim
from app.services.pools.service import delete_pool, pause_pool
from app.store.claims import rows as claims
from app.store.notices import notify_settled
from tests.support.claim_rows import bind
from tests.support.claim_services import new_claim, stays_connected
from tests.support.patience import PATIENCE
from tests.support.rows import eventually, execute, fetch, make_pool, make_vms, scalar


async def waiting(db, count):
    """Until so many claims stand in the queue."""

    async def are():
        return await scalar(db, "SELECT count(*) FROM claim_queue") == count

    await eventually(are)


async def supply(db, pool, count):
    """VMs become ready, and whoever waits is served, as the watch does it."""
    ids = await make_vms(db, pool, count)
    async with db.begin() as tx:
        await notify_settled(tx, await claims.bind_pending(tx, pool.id))
    return ids


async def claim(claim_service, **how):
    return await claim_service.claim(new_claim(**how), stays_connected)


async def test_a_warm_vm_is_handed_out_with_all_that_the_answer_needs(db, claim_service):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1)
    answer = await claim(claim_service, lease=90, labels={"job": "1"})
    assert isinstance(answer, WarmClaim)
    assert (answer.vm_id, answer.claim.lease_seconds, answer.claim.request.labels, answer.claim.request.pool) == (
        vm_id,
        90,
        {"job": "1"},
        "web",
    )
    assert answer.node == "node-1"
    row = (await fetch(db, "SELECT * FROM claim"))[0]
    assert (row["id"], row["labels"], row["lease_seconds"]) == (answer.claim.id, {"job": "1"}, 90)
    assert row["lease_expires_at"] == answer.lease_expires_at


async def test_a_claim_tells_the_planner(db, claim_service):
    pool = await make_pool(db)
    await make_vms(db, pool, 1)
    await execute(db, "UPDATE pool_plan SET due_at = now() + interval '1 hour'")
    await claim(claim_service)

    async def is_due():
        return await scalar(db, "SELECT count(*) FROM plan_request")

    await eventually(is_due)


async def test_the_lease_is_the_pools_own_and_never_above_its_limit(db, claim_service):
    pool = await make_pool(db, default_lease_seconds=77, max_lease_seconds=100)
    await make_vms(db, pool, 1)
    with pytest.raises(LeaseTooLong, match="up to 100 s") as caught:
        await claim(claim_service, lease=101)
    assert caught.value.problems[0].field == "lease_seconds"
    answer = await claim(claim_service)
    assert isinstance(answer, WarmClaim)
    assert answer.claim.lease_seconds == 77


async def test_an_unknown_pool_and_one_that_is_going(db, claim_service):
    with pytest.raises(PoolNotFound):
        await claim(claim_service)
    pool = await make_pool(db)
    await make_vms(db, pool, 1)
    await delete_pool(db, "web", force=False)
    with pytest.raises(PoolBeingDeleted):
        await claim(claim_service)


async def test_who_waits_is_served_when_a_vm_becomes_ready(db, claim_service):
    pool = await make_pool(db)
    asked = asyncio.create_task(claim(claim_service, wait=30))
    await waiting(db, 1)
    (vm_id,) = await supply(db, pool, 1)
    answer = await asyncio.wait_for(asked, PATIENCE)
    assert isinstance(answer, StoredClaim)
    assert (answer.claim.state, answer.claim.vm_id, answer.replayed) == (ClaimState.BOUND, vm_id, False)


async def test_who_does_not_wait_long_enough_is_told_how_long_it_may_take(db, claim_service):
    pool = await make_pool(db)
    await make_vms(db, pool, 1, VmState.BOOTING)
    for seconds in (0, 0.02):
        answer = await claim(claim_service, wait=seconds)
        assert isinstance(answer, StoredClaim)
        assert answer.claim.state is ClaimState.PENDING
        assert "no ready VM" in (answer.claim.reason or "")
        assert answer.estimate is not None
        assert answer.estimate.seconds is not None
    await waiting(db, 2)
    look = await claim_service.queue.look(answer.claim.id, 0, stays_connected)
    assert look.estimate is not None


async def test_looking_at_a_claim_waits_for_its_change(db, claim_service):
    pool = await make_pool(db)
    answer = await claim(claim_service)
    looking = asyncio.create_task(claim_service.queue.look(answer.claim.id, 30, stays_connected))
    await supply(db, pool, 1)
    assert (await asyncio.wait_for(looking, PATIENCE)).claim.state is ClaimState.BOUND
    with pytest.raises(ClaimNotFound):
        await claim_service.queue.look(new_id(), 1, stays_connected)


async def test_a_client_that_leaves_frees_its_place(db, claim_service):
    await make_pool(db)
    gone = asyncio.Event()
    asked = asyncio.create_task(claim_service.claim(new_claim(wait=30), gone.wait))
    await waiting(db, 1)
    gone.set()
    with pytest.raises(NoWarmVm):
        await asyncio.wait_for(asked, PATIENCE)
    await waiting(db, 0)
    assert await scalar(db, "SELECT state FROM claim") == "failed"


async def test_a_request_that_is_cancelled_frees_its_place(db, claim_service):
    await make_pool(db)
    asked = asyncio.create_task(claim(claim_service, wait=30))
    await waiting(db, 1)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await waiting(db, 0)


async def test_a_client_with_a_key_keeps_its_place_for_a_retry(db, claim_service):
    pool = await make_pool(db)
    gone = asyncio.Event()
    asked = asyncio.create_task(claim_service.claim(new_claim(wait=30, key="k"), gone.wait))
    await waiting(db, 1)
    gone.set()
    await asyncio.wait_for(asked, PATIENCE)
    left = await scalar(db, "SELECT extract(epoch FROM pending_until - now())::float FROM claim")
    assert 0 < left <= 15
    retried = asyncio.create_task(claim(claim_service, wait=30, key="k"))

    async def held():
        return await scalar(db, "SELECT extract(epoch FROM pending_until - now())::float > 100 FROM claim")

    await eventually(held)
    await supply(db, pool, 1)
    answer = await asyncio.wait_for(retried, PATIENCE)
    assert (answer.claim.state, answer.replayed) == (ClaimState.BOUND, True)
    assert await scalar(db, "SELECT count(*) FROM claim") == 1


async def test_a_key_has_one_claim_wherever_and_whenever_it_comes(db, make_claim_service):
    pool = await make_pool(db)
    await make_vms(db, pool, 5)
    desks = [await make_claim_service(), await make_claim_service()]
    answers = await asyncio.gather(*(claim(desks[n % 2], key="k") for n in range(8)))
    ids = {a.claim.id for a in answers}
    assert len(ids) == 1
    assert await scalar(db, "SELECT count(*) FROM ready_slot") == 4
    await release_claim(db, ids.pop())
    answer = await claim(desks[0], key="k")
    assert isinstance(answer, StoredClaim)
    assert (answer.claim.state, answer.replayed) == (ClaimState.RELEASED, True)


async def test_a_key_with_another_body_is_refused(db, claim_service):
    pool = await make_pool(db)
    await make_vms(db, pool, 2)
    await claim(claim_service, key="k")
    with pytest.raises(IdempotencyKeyReused, match="another body"):
        await claim(claim_service, key="k", body="other")
    await make_pool(db, "empty")
    pending = await claim(claim_service, pool="empty", key="p")
    assert isinstance(pending, StoredClaim)
    with pytest.raises(IdempotencyKeyReused):
        await claim(claim_service, pool="empty", key="p", body="other")
    assert await scalar(db, "SELECT count(*) FROM ready_slot") == 1


REFUSALS = {
    "stalled": ("stalled_at = now(), last_failure = 'no such image'", "it is stalled: no such image"),
    "paused": ("paused = true", "it is paused"),
    "not replenishing": ("spec = spec || '{\"auto_replenish\": false}'", "call replenish"),
}


@pytest.mark.parametrize(("change", "because"), REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("wait", [0, 600])
async def test_where_no_vm_will_come_it_says_so_at_once(db, claim_service, change, because, wait):
    await make_pool(db)
    await execute(db, f"UPDATE pool SET {change}")
    with pytest.raises(NoWarmVm, match=because) as caught:
        await asyncio.wait_for(claim(claim_service, wait=wait), PATIENCE)
    assert caught.value.retry_after is not None
    assert await scalar(db, "SELECT count(*) FROM claim") == 0


async def test_a_pool_whose_vms_are_all_claimed_is_waited_for_but_not_queued_for(db, claim_service):
    pool = await make_pool(db, size=1, max_vms=1)
    await make_vms(db, pool, 1)
    await claim(claim_service)
    with pytest.raises(NoWarmVm, match=r"all of its max_vms \(1\) are claimed"):
        await claim(claim_service)
    asked = asyncio.create_task(claim(claim_service, wait=30))
    await waiting(db, 1)
    await supply(db, pool, 1)
    assert (await asyncio.wait_for(asked, PATIENCE)).claim.state is ClaimState.BOUND
    with pytest.raises(NoWarmVm):
        await claim(claim_service, wait=0.02)
    await waiting(db, 0)


async def test_what_a_paused_pool_only_plans_is_not_waited_for(db, claim_service):
    pool = await make_pool(db)
    await make_vms(db, pool, 2, VmState.PLANNED)
    await pause_pool(db, "web")
    with pytest.raises(NoWarmVm, match="it is paused"):
        await claim(claim_service)


async def test_a_full_queue_takes_no_more(db, make_claim_service):
    await make_pool(db)
    claim_service = await make_claim_service(max_pending_per_pool=2)
    await claim(claim_service)
    await claim(claim_service)
    with pytest.raises(NoWarmVm, match="2 claims wait already"):
        await claim(claim_service)


async def test_waiters_of_two_processes_are_served_in_order_of_arrival(db, make_claim_service):
    pool = await make_pool(db)
    desks = [await make_claim_service(), await make_claim_service()]
    asked = []
    for number in range(6):
        asked.append(asyncio.create_task(claim(desks[number % 2], wait=30)))
        await waiting(db, number + 1)
    ready = [vm_id for _ in range(3) for vm_id in await supply(db, pool, 2)]
    answers = await asyncio.wait_for(asyncio.gather(*asked), PATIENCE)
    assert [answer.claim.vm_id for answer in answers] == ready


async def test_a_vm_that_became_ready_before_the_place_was_taken_is_not_missed(db, claim_service, monkeypatch):
    """Between the last look and the place: whoever made it ready has looked for waiting claims already."""
    pool = await make_pool(db)
    insert = claims.insert_pending

    async def slow(tx, **given):
        ready = await make_vms(db, pool, 1)
        assert await bind(db, pool) == []
        assert ready
        return await insert(tx, **given)

    monkeypatch.setattr(claims, "insert_pending", slow)
    answer = await claim(claim_service)
    assert isinstance(answer, StoredClaim)
    assert answer.claim.state is ClaimState.BOUND


async def test_a_pool_of_the_same_name_is_found_though_the_old_one_is_remembered(db, claim_service):
    pool = await make_pool(db)
    await make_vms(db, pool, 1)
    await claim(claim_service)
    await execute(db, "UPDATE pool SET deleting_at = now(), deleted_at = now()")
    again = await make_pool(db)
    (vm_id,) = await make_vms(db, again, 1)
    answer = await claim(claim_service, wait=5)
    assert (answer.vm_id if isinstance(answer, WarmClaim) else answer.claim.vm_id) == vm_id

    async def is_known():
        return claim_service._facts["web"].id == again.id

    await eventually(is_known)


async def test_a_pool_that_is_empty_stays_known(db, claim_service):
    pool = await make_pool(db)
    await claim(claim_service)
    assert claim_service._facts["web"].id == pool.id


async def test_an_edit_of_one_pool_makes_claims_of_no_other_slower(db, claim_service):
    pools = [await make_pool(db, name) for name in ("web", "db")]
    for pool in pools:
        await make_vms(db, pool, 1)
        await claim(claim_service, pool=pool.name)
    claim_service.forget_pools(str(pools[0].id))
    assert set(claim_service._facts) == {"db"}
    claim_service.forget_pools()
    assert claim_service._facts == {}


async def test_a_desk_begins_where_the_queues_begin(db, claim_service):
    pool = await make_pool(db)
    await make_vms(db, pool, 1)
    await claim_service.warm_up()
    assert claim_service._store._hints == {pool.id: await scalar(db, "SELECT seq FROM ready_slot")}
    assert claim_service._facts["web"].id == pool.id


async def test_who_leaves_before_its_turn_takes_none(db, claim_service, monkeypatch):
    """A slow database: places are written a few at a time, and the clients of those behind have left by then."""
    await make_pool(db)
    written, slow = [], asyncio.Event()
    insert = claims.insert_pending

    async def insert_slowly(tx, **given):
        await slow.wait()
        written.append(given["labels"]["of"])
        return await insert(tx, **given)

    monkeypatch.setattr(claims, "insert_pending", insert_slowly)
    left = asyncio.Event()
    writing = [asyncio.create_task(claim(claim_service, labels={"of": "those first"}, wait=30)) for _ in range(4)]
    await eventually(lambda: as_coroutine(claim_service.queue._turn.locked()))
    behind = [
        asyncio.create_task(claim_service.claim(new_claim(labels={"of": "who left"}, wait=30), left.wait))
        for _ in range(3)
    ]
    last = asyncio.create_task(claim(claim_service, labels={"of": "the last"}, wait=30))
    await eventually(lambda: as_coroutine(len(claim_service.queue._turn._waiters or ()) == 4))
    left.set()
    async with asyncio.timeout(PATIENCE):
        outcomes = await asyncio.gather(*behind, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [NoWarmVm] * 3
    slow.set()
    await waiting(db, 5)
    assert written == ["those first"] * 4 + ["the last"]
    for task in (*writing, last):
        task.cancel()
    await asyncio.gather(*writing, last, return_exceptions=True)


async def test_a_turn_that_does_not_come_is_not_waited_for_without_end(db, claim_service, monkeypatch):
    monkeypatch.setattr("app.services.claims.queue._TURN_SECONDS", 0.01)
    await make_pool(db)
    for _ in range(4):
        await claim_service.queue._turn.acquire()
    with pytest.raises(DatabaseUnavailable, match="the database is overloaded") as refused:
        await claim(claim_service, wait=30)
    assert refused.value.retry_after is not None
    for _ in range(4):
        claim_service.queue._turn.release()
    answer = await claim(claim_service)
    assert answer.claim.state is ClaimState.PENDING
    assert not claim_service.queue._turn.locked()
    assert claim_service.queue._turn._value == 4


async def as_coroutine(value):
    return value
