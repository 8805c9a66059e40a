"""What time alone brings about."""

import asyncio

import pytest

from app.domain.nodes import Node
from app.domain.states import ClaimState, VmState
from app.reconcilers.claims import reaper as reaping
from app.reconcilers.claims.reaper import Reaper
from app.store import nodes
from app.store import watch_state as watches
from app.store.claims import rows as claims
from tests.support.claim_rows import bind, wait_for_vm
from tests.support.rows import execute, fetch, make_pool, make_ready, make_vms, scalar, state_of


@pytest.fixture
def reap(db, settings):
    return Reaper(db, settings)


async def state(db, claim_id):
    async with db.begin() as tx:
        claim = await claims.get(tx, claim_id)
    assert claim is not None
    return claim.state, claim.reason


async def test_a_lease_that_ended_expires_its_claim_and_lets_its_vm_go(db, reap):
    pool = await make_pool(db)
    over, running = await wait_for_vm(db, pool), await wait_for_vm(db, pool)
    first, second = await make_vms(db, pool, 2)
    await bind(db, pool)
    await execute(db, "UPDATE claim SET lease_expires_at = now() - interval '1 s' WHERE id = :id", id=over)
    await execute(db, "UPDATE pool_plan SET due_at = now() + interval '1 hour'")
    assert not await reap.step()
    assert await state(db, over) == (ClaimState.EXPIRED, "its lease expired")
    assert (await state(db, running))[0] is ClaimState.BOUND
    assert await state_of(db, first) is VmState.RELEASING
    assert await state_of(db, second) is VmState.CLAIMED
    assert await scalar(db, "SELECT pool_id FROM plan_request") == pool.id


async def test_a_wait_that_took_too_long_fails(db, reap):
    pool = await make_pool(db)
    late, young = await wait_for_vm(db, pool, key="k"), await wait_for_vm(db, pool)
    await execute(db, "UPDATE claim SET pending_until = now() - interval '1 s' WHERE id = :id", id=late)
    await reap.step()
    assert (await state(db, late))[0] is ClaimState.FAILED
    assert (await state(db, young))[0] is ClaimState.PENDING
    assert await wait_for_vm(db, pool, key="k") != late


async def test_a_boot_past_its_deadline_fails_and_counts(db, reap):
    pool = await make_pool(db, boot_timeout_seconds=90)
    late, young = await make_vms(db, pool, 2, VmState.BOOTING)
    query = "UPDATE vm SET deadline_at = now() - interval '1 s', health = 'it is paused' WHERE id = :id"
    await execute(db, query, id=late)
    await reap.step()
    assert await state_of(db, late) is VmState.FAILED
    assert await state_of(db, young) is VmState.BOOTING
    reason = await scalar(db, "SELECT reason FROM vm WHERE id = :id", id=late)
    assert reason == "not ready 90 s after it was created: it is paused"
    assert await scalar(db, "SELECT consecutive_failures FROM pool") == 1


async def test_a_vm_that_did_not_recover_fails_and_does_not_count(db, reap):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1)
    await execute(db, "DELETE FROM ready_slot")
    await execute(db, "UPDATE vm SET state = 'booting', deadline_at = now() - interval '1 s'")
    await reap.step()
    assert await state_of(db, vm_id) is VmState.FAILED
    assert "did not recover" in await scalar(db, "SELECT reason FROM vm")
    assert await scalar(db, "SELECT consecutive_failures FROM pool") == 0


async def test_waiting_claims_that_a_lost_notice_forgot_are_served(db, reap):
    pool = await make_pool(db)
    claim_id = await wait_for_vm(db, pool)
    (vm_id,) = await make_vms(db, pool, 1, VmState.BOOTING)
    await make_ready(db, [vm_id])
    await reap.step()
    assert (await state(db, claim_id))[0] is ClaimState.BOUND


async def test_a_full_batch_is_followed_by_another(db, reap, monkeypatch):
    monkeypatch.setattr(reaping, "_BATCH", 2)
    pool = await make_pool(db)
    for _ in range(3):
        await wait_for_vm(db, pool)
    await execute(db, "UPDATE claim SET pending_until = now() - interval '1 s'")
    assert await reap.step()
    assert not await reap.step()
    assert await scalar(db, "SELECT count(*) FROM claim WHERE state = 'failed'") == 3


async def test_two_reapers_end_a_claim_once(db, settings):
    pool = await make_pool(db)
    for _ in range(5):
        await wait_for_vm(db, pool)
    await make_vms(db, pool, 5)
    await bind(db, pool)
    await execute(db, "UPDATE claim SET lease_expires_at = now() - interval '1 s'")
    await asyncio.gather(*(Reaper(db, settings).step() for _ in range(4)))
    assert await scalar(db, "SELECT count(*) FROM event WHERE type = 'claim.expired'") == 5


class TestDeadNodes:
    """A VM on a node that died still counts as running. It is only not ready, and so is its node."""

    @pytest.fixture
    async def claimed(self, db):
        """A claim, and its VM on node-1, claimed 70 s ago and not ready since 50 s."""
        pool = await make_pool(db)
        claim_id = await wait_for_vm(db, pool)
        (vm_id,) = await make_vms(db, pool, 1)
        await bind(db, pool)
        await execute(
            db,
            "UPDATE vm SET claimed_at = now() - interval '70 s', unhealthy_since = now() - interval '50 s', "
            "health = 'it is not ready' WHERE id = :id",
            id=vm_id,
        )
        await make_vms(db, pool, 1)
        await self.show(db, "Unknown")
        return claim_id, vm_id

    async def show(self, db, ready, name="node-1"):
        async with db.begin() as tx:
            await nodes.write(tx, [Node(name, conditions={"Ready": ready})])
            await watches.write_heard(tx, nodes.WATCH, holder="one", listed=True)

    async def test_a_claim_whose_vm_was_not_ready_since_gets_another(self, db, reap, claimed):
        claim_id, vm_id = claimed
        await reap.step()
        assert await state_of(db, vm_id) is VmState.FAILED
        async with db.begin() as tx:
            claim = await claims.get(tx, claim_id)
        assert (claim.state, claim.vm_id != vm_id) == (ClaimState.BOUND, True)
        (replaced,) = claim.replacements
        assert replaced["reason"] == (
            "its node node-1 is dead, and it was not ready since its claim or shortly after: it is not ready"
        )
        told = "SELECT data->>'reason' FROM event WHERE type = 'vm.failed' AND vm_id = :id"
        assert await scalar(db, told, id=vm_id) == replaced["reason"]

    @pytest.mark.parametrize(
        "change",
        [
            "health = NULL, unhealthy_since = NULL",
            "claimed_at = now() - interval '150 s', unhealthy_since = now() - interval '29 s'",
            "claimed_at = now() - interval '200 s', unhealthy_since = now() - interval '190 s'",
            "health = 'it is paused'",
            "stopped = true",
            "node = 'node-2'",
        ],
        ids=["well", "ready for two minutes", "long ago", "paused by its user", "stopped by us", "on another node"],
    )
    async def test_another_vm_stays(self, db, reap, claimed, change):
        await execute(db, f"UPDATE vm SET {change} WHERE id = :id", id=claimed[1])
        await self.show(db, "True", "node-2")
        await reap.step()
        assert (await state(db, claimed[0]))[0] is ClaimState.BOUND
        assert await state_of(db, claimed[1]) is VmState.CLAIMED

    async def test_a_node_that_died_at_the_end_of_the_first_minute_shows_that_50_seconds_later(self, db, reap, claimed):
        change = "claimed_at = now() - interval '110 s', unhealthy_since = now() - interval '1 s'"
        await execute(db, f"UPDATE vm SET {change} WHERE id = :id", id=claimed[1])
        await reap.step()
        async with db.begin() as tx:
            claim = await claims.get(tx, claimed[0])
        assert (claim.state, claim.vm_id != claimed[1]) == (ClaimState.BOUND, True)

    @pytest.mark.parametrize(("ready", "state"), [("Unknown", VmState.FAILED), ("False", VmState.BOOTING)])
    async def test_a_vm_that_boots_on_a_node_that_stopped_answering_is_given_up_and_its_pool_is_not_to_blame(
        self, db, reap, ready, state
    ):
        dying, other, recovering = await make_vms(db, await make_pool(db), 3, VmState.BOOTING)
        await execute(db, "UPDATE vm SET node = 'node-2' WHERE id = :id", id=other)
        await execute(db, "UPDATE vm SET ready_at = now() WHERE id = :id", id=recovering)
        await execute(db, "UPDATE pool_plan SET due_at = now() + interval '1 hour'")
        await self.show(db, ready)
        await reap.step()
        assert await state_of(db, dying) is state
        assert [await state_of(db, vm_id) for vm_id in (other, recovering)] == [VmState.BOOTING] * 2
        if state is VmState.FAILED:
            assert await scalar(db, "SELECT reason FROM vm WHERE id = :id", id=dying) == (
                "its node node-1 died while it booted"
            )
            assert await scalar(db, "SELECT count(*) FROM plan_request"), "another takes its place at once"
        failures = await fetch(db, "SELECT consecutive_failures, last_failure FROM pool")
        assert [tuple(each.values()) for each in failures] == [(0, None)]

    async def test_on_a_node_that_is_ready_it_stays(self, db, reap, claimed):
        await self.show(db, "True")
        await reap.step()
        assert await state_of(db, claimed[1]) is VmState.CLAIMED

    async def test_where_nodes_are_not_observed_it_stays(self, db, reap, claimed):
        await execute(db, "UPDATE watch SET heard_at = now() - interval '1 hour'")
        await reap.step()
        assert await state_of(db, claimed[1]) is VmState.CLAIMED
