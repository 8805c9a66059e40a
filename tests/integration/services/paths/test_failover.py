"""Claims whose path came to nothing go on by the next one, or are told that none is left."""

import asyncio

import pytest

from app.domain.paths import StartPath
from app.domain.pools import StartFrom
from app.domain.states import ClaimState
from app.errors import NoPath
from app.reconcilers.claims import failover as rerouting
from app.services.claims.lifecycle import release_claim
from app.services.pools.service import delete_pool, pause_pool
from tests.support import store_invariants as invariants
from tests.support.described_claims import claim_state, live_vms, make_preload, make_snapshot
from tests.support.rows import execute, fetch, scalar


async def choice_of(db, answer):
    return await scalar(db, "SELECT choice FROM claim WHERE id = :id", id=answer.claim.id)


async def reason_of(db, answer):
    return await scalar(db, "SELECT reason FROM claim WHERE id = :id", id=answer.claim.id)


async def age(db, answer):
    """The claim was routed a minute ago."""
    await execute(
        db,
        """UPDATE claim SET choice = choice || jsonb_build_object('at', to_jsonb(now() - interval '1 minute')) WHERE id = :id""",
        id=answer.claim.id,
    )


async def test_after_a_failure_the_next_path_is_taken_and_then_the_next(db, process, gateway):
    await make_snapshot(db, "snap", process.shape())
    await make_preload(db, "near")
    answer = await process.claim()
    for path, following in (("snapshot", "preload"), ("preload", "cold")):
        assert (await choice_of(db, answer))["path"] == path
        await process.fail_once()
        await process.rerouting.step()
        choice = await choice_of(db, answer)
        assert choice["path"] == following
        assert choice["tried"][-1]["path"] == path
        assert choice["tried"][-1]["reason"] == "a VM failed: CrashLoopBackOff: the guest does not start"
    told = {each["path"]: each["why"] for each in (await choice_of(db, answer))["considered"]}
    assert told["snapshot"].startswith("failed: a VM failed")
    assert told["cold"] is None
    await process.plan()
    await process.serve()
    await process.remove()
    (vm,) = await live_vms(db)
    assert (vm["state"], vm["path"]) == ("claimed", "cold")
    assert await scalar(db, "SELECT path FROM claim WHERE id = :id", id=answer.claim.id) == "cold"
    assert len(gateway.vms) == 1


async def test_a_cold_start_is_tried_again_until_its_breaker_opens(db, process):
    answer = await process.claim()
    for _ in range(2):
        await process.fail_once()
        await process.rerouting.step()
        assert await claim_state(db, answer.claim.id) == "pending"
    await process.fail_once()
    await process.rerouting.step()
    assert await claim_state(db, answer.claim.id) == "failed"
    reason = await reason_of(db, answer)
    assert reason.startswith("no path is left. pool: no pool has this shape")
    assert "cold: failed: 3 VMs in a row failed, the last one: CrashLoopBackOff" in reason
    await process.plan()
    assert await live_vms(db) == []


async def test_a_way_that_failed_too_often_rests_and_is_tried_again(db, start):
    process = start(backoff_cap_seconds=1000)
    await process.claim()
    for _ in range(3):
        await process.fail_once()
    await process.rerouting.step()
    with pytest.raises(NoPath, match=r"cold: 3 VMs in a row failed: CrashLoopBackOff: .*; tried again after"):
        await process.claim()
    await execute(db, "UPDATE pool SET stalled_at = now() - interval '2000 s'")
    answer = await process.claim()
    await process.serve()
    assert await claim_state(db, answer.claim.id) == "bound"


async def test_a_path_whose_last_vm_failed_is_not_chosen_meanwhile(db, start):
    process = start(backoff_base_seconds=1000, backoff_cap_seconds=1000)
    await make_snapshot(db, "snap", process.shape())
    await process.claim()
    await process.plan()
    await process.create()
    await process.crash()
    answer = await process.claim()
    choice = await choice_of(db, answer)
    assert choice["path"] == "cold"
    assert choice["considered"][1]["why"].startswith(
        "its last VM failed: CrashLoopBackOff: the guest does not start; tried again"
    )


async def test_a_source_that_goes_is_left_at_once_and_one_that_is_away_after_a_while(db, process):
    await make_snapshot(db, "snap", process.shape())
    await make_preload(db, "near")
    answer = await process.claim(paths=(StartPath.SNAPSHOT, StartPath.PRELOAD))
    await execute(db, "UPDATE snapshot_take SET state = 'failed'")
    await process.plan()
    await process.create()
    await process.rerouting.step()
    assert (await choice_of(db, answer))["path"] == "snapshot"  # it may be a moment only
    await age(db, answer)
    await process.rerouting.step()
    choice = await choice_of(db, answer)
    assert choice["path"] == "preload"
    assert choice["tried"][0]["reason"] == "snapshot 'snap' is not ready"


async def test_where_nothing_else_is_allowed_it_waits_for_its_source(db, process):
    await make_snapshot(db, "snap", "any")
    answer = await process.claim(start_from=StartFrom(snapshot="snap"))
    await execute(db, "UPDATE snapshot_take SET state = 'failed'")
    await process.plan()
    await process.create()
    await age(db, answer)
    await process.rerouting.step()
    assert await claim_state(db, answer.claim.id) == "pending"
    await execute(db, "UPDATE snapshot_take SET state = 'ready'")
    await process.serve()
    assert await claim_state(db, answer.claim.id) == "bound"
    (vm,) = await live_vms(db)
    assert (vm["path"], vm["source"]) == ("snapshot", "snap")


async def test_a_pool_that_is_deleted_does_not_take_those_with_it_that_described_their_vm(db, process):
    pool = await process.make_pool(size=1)
    await process.plan()
    await process.create()
    answer = await process.claim()
    assert answer.claim.choice["path"] == "pool"
    await delete_pool(db, "web", force=False)
    await process.plan()
    assert await claim_state(db, answer.claim.id) == "pending"
    await process.rerouting.step()
    choice = await choice_of(db, answer)
    assert choice["path"] == "cold"
    assert choice["tried"][0]["reason"] == "pool 'web' is being deleted"
    await process.serve()
    assert await claim_state(db, answer.claim.id) == "bound"
    await process.plan()
    await process.remove()
    await process.plan()
    assert await scalar(db, "SELECT deleted_at IS NOT NULL FROM pool WHERE id = :id", id=pool.id)


async def test_who_is_served_this_moment_is_not_moved(db, process):
    await make_snapshot(db, "snap", process.shape())
    answer = await process.claim()
    await process.fail_once()
    await process.serve()
    assert await claim_state(db, answer.claim.id) == "bound"
    await process.rerouting.step()
    assert (await choice_of(db, answer))["path"] == "snapshot"


async def test_two_replicas_move_a_claim_once(db, start):
    replicas = [start(), start()]
    await make_snapshot(db, "snap", replicas[0].shape())
    answer = await replicas[0].claim()
    await replicas[0].fail_once()
    await asyncio.gather(*(each.rerouting.step() for each in replicas))
    assert len((await choice_of(db, answer))["tried"]) == 1
    assert await scalar(db, "SELECT count(*) FROM claim_queue") == 1
    types = [row["type"] for row in await fetch(db, "SELECT type FROM event WHERE claim_id = :id", id=answer.claim.id)]
    assert types.count("claim.failed_over") == 1


async def test_releases_and_moves_at_the_same_moment(db, start):
    replicas = [start(), start()]
    await make_snapshot(db, "snap", replicas[0].shape())
    answers = [await replicas[0].claim() for _ in range(4)]
    await replicas[0].fail_once()
    await asyncio.gather(
        *(each.rerouting.step() for each in replicas), *(release_claim(db, answer.claim.id) for answer in answers)
    )
    assert {await claim_state(db, answer.claim.id) for answer in answers} == {"released"}
    assert await scalar(db, "SELECT count(*) FROM claim_queue") == 0
    await invariants.check(db)


async def test_a_vm_that_dies_in_its_claimants_hands_at_once_is_replaced_on_the_same_path(db, process, gateway):
    answer = await process.claim()
    await process.serve()
    (vm,) = await live_vms(db)
    gateway.change(vm["name"], phase="Failed")
    await process.see()
    assert await claim_state(db, answer.claim.id) == "pending"
    await process.remove()
    await process.serve()
    assert await claim_state(db, answer.claim.id) == "bound"
    assert await scalar(db, "SELECT count(*) FROM ready_slot") == 0
    assert len(gateway.vms) == 1


async def test_a_deadline_that_was_met_ends_nothing_later(db, process, gateway):
    """Its VM dies in its claimant's hands after the deadline: the claim waits for another, and a retry does not end that."""
    answer = await process.claim(deadline_seconds=60.0, key="k")
    await process.serve()
    await execute(
        db, "UPDATE claim SET choice = jsonb_set(choice, '{deadline_at}', to_jsonb(now() - interval '1 minute'))"
    )
    (vm,) = await live_vms(db)
    gateway.change(vm["name"], phase="Failed")
    await process.see()
    again = await process.claim(deadline_seconds=60.0, key="k")
    assert (again.claim.id, again.claim.state) == (answer.claim.id, ClaimState.PENDING)
    await process.reap.step()
    await process.remove()
    await process.serve()
    assert await claim_state(db, answer.claim.id) == "bound"


async def test_a_pool_that_is_paused_is_left_for_another_path(db, process):
    await process.make_pool(size=1)
    await process.plan()
    await process.create()
    answer = await process.claim()
    only = await process.claim(paths=(StartPath.POOL,))
    await pause_pool(db, "web")
    await process.rerouting.step()
    choice = await choice_of(db, answer)
    assert (choice["path"], choice["tried"][0]["reason"]) == ("cold", "pool 'web' is paused")
    assert (await choice_of(db, only))["path"] == "pool"
    assert await claim_state(db, only.claim.id) == "pending"


async def test_those_that_cannot_be_moved_hide_nobody(db, process, monkeypatch):
    monkeypatch.setattr(rerouting, "_AT_ONCE", 1)
    await make_snapshot(db, "snap", process.shape())
    hopeless = await process.claim(paths=(StartPath.SNAPSHOT,))
    answer = await process.claim()
    await process.fail_once()
    for _ in range(100):
        await process.rerouting.step()
        if (await choice_of(db, answer))["path"] == "cold":
            break
    assert (await choice_of(db, answer))["path"] == "cold"
    assert (await choice_of(db, hopeless))["path"] == "snapshot"
