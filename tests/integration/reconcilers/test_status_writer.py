"""What the cluster shows, written down: VMs come up, ail, recover, die and vanish; strangers are removed."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from app.compute.vms import Gone, Listed
from app.config import Settings
from app.domain.observation import Failure, Observation
from app.domain.stages import STAGES
from app.domain.states import ClaimState, VmState
from app.errors import ClusterUnavailable
from app.ids import new_id
from app.reconcilers.vms import status_writer
from app.reconcilers.vms.status_writer import StatusWriter
from app.services.claims.lifecycle import release_claim
from app.store.claims import rows as claims
from app.store.pools import rows as pools
from app.store.vms import rows as vms
from tests.support import store_invariants as invariants
from tests.support.claim_rows import bind, wait_for_vm
from tests.support.listing import write_list
from tests.support.rows import blocked, event_types, execute, fetch, make_pool, make_vms, own_id, scalar, state_of

CRASHED = Failure("CrashLoopBackOff", "the guest does not start")


@pytest.fixture
def observing(db, gateway):
    return StatusWriter(db, gateway, Settings(breaker_failures=2, backoff_base_seconds=100, orphans_at_once=6))


async def seen(db, vm_id, **given):
    """The VM as the cluster shows it: warm, unless told otherwise."""
    row = (await fetch(db, "SELECT name, uid FROM vm WHERE id = :id", id=vm_id))[0]
    warm = {
        "uid": row["uid"] or f"uid-{vm_id}",
        "vm_id": str(vm_id),
        "created_at": datetime.now(UTC),
        "vmi_uid": "vmi",
        "phase": "Running",
        "ready": True,
        "agent_connected": True,
        "node": "node-1",
        "addresses": ("10.0.0.1",),
    }
    return Observation(name=row["name"], namespace="default", **{**warm, **given})


async def show(db, observing, vm_id, **given):
    await observing.apply_changes([await seen(db, vm_id, **given)])


async def claimed(db, pool, *, ready=1):
    """A claim bound to a VM of the pool, `ready` more being warm: (claim, VM)."""
    claim_id = await wait_for_vm(db, pool)
    (vm_id,) = await make_vms(db, pool, 1)
    assert await bind(db, pool) == [claim_id]
    await make_vms(db, pool, ready)
    return claim_id, vm_id


async def get_claim(db, claim_id):
    async with db.begin() as tx:
        return await claims.get(tx, claim_id)


async def test_a_vm_that_is_warm_enters_the_queue_and_is_measured(db, observing):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1, VmState.BOOTING)
    await show(db, observing, vm_id, agent_connected=False)
    assert await state_of(db, vm_id) is VmState.BOOTING
    await show(db, observing, vm_id, scheduled_at=datetime.now(UTC), running_at=datetime.now(UTC), node="node-9")
    row = (await fetch(db, "SELECT * FROM vm"))[0]
    assert (row["state"], row["node"], set(row["stages"])) == (
        "ready",
        "node-9",
        set(STAGES),
    )
    assert row["boot_seconds"] is not None
    assert await scalar(db, "SELECT node FROM ready_slot") == "node-9"
    await show(db, observing, vm_id, node="node-9")
    assert (await event_types(db)).count("vm.ready") == 1


@pytest.mark.parametrize("state", [VmState.CREATING, VmState.PLANNED])
async def test_a_vm_that_is_seen_before_its_create_was_answered_is_taken(db, observing, state):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1, state)
    await show(db, observing, vm_id)
    assert await state_of(db, vm_id) is VmState.READY
    assert await scalar(db, "SELECT uid FROM vm") == f"uid-{vm_id}"
    assert (await event_types(db))[-2:] == ["vm.booting", "vm.ready"]


async def test_a_vm_that_is_seen_warm_while_its_create_is_answered_is_not_missed(db, observing):
    """The row said `creating` when it was read; no later event may come to say that the VM is warm."""
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1, VmState.CREATING)
    async with db.begin() as tx:
        await vms.move(tx, [vm_id], VmState.BOOTING, sources=[VmState.CREATING], deadline_seconds=600)
        watching = asyncio.create_task(show(db, observing, vm_id))
        await blocked(db)
    await watching
    assert await state_of(db, vm_id) is VmState.READY


async def test_a_waiting_claim_gets_the_vm_as_it_becomes_ready(db, observing):
    pool = await make_pool(db)
    claim_id = await wait_for_vm(db, pool)
    (vm_id,) = await make_vms(db, pool, 1, VmState.BOOTING)
    await show(db, observing, vm_id)
    assert (await get_claim(db, claim_id)).vm_id == vm_id
    assert await state_of(db, vm_id) is VmState.CLAIMED


async def test_a_pool_whose_vm_comes_up_has_recovered(db, observing):
    pool = await make_pool(db)
    await execute(db, "UPDATE pool SET stalled_at = now(), consecutive_failures = 5")
    (vm_id,) = await make_vms(db, pool, 1, VmState.BOOTING)
    await show(db, observing, vm_id)
    assert await scalar(db, "SELECT stalled_at FROM pool") is None
    assert "pool.recovered" in await event_types(db)


async def test_a_ready_vm_that_ails_leaves_the_queue_and_recovers(db, observing):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1)
    await show(db, observing, vm_id, ready=False)
    row = (
        await fetch(db, "SELECT state, health, reason, unhealthy_since, deadline_at - state_since AS grace FROM vm")
    )[0]
    assert (row["state"], row["health"], row["reason"]) == ("booting", "it is not ready", "it is not ready")
    assert row["unhealthy_since"] is not None
    assert row["grace"] == timedelta(seconds=20)
    await invariants.check(db)
    await show(db, observing, vm_id)
    assert await state_of(db, vm_id) is VmState.READY
    assert await scalar(db, "SELECT health FROM vm") is None


async def test_a_vm_that_only_recovers_does_not_excuse_its_pool(db, observing):
    """An old VM that flaps says nothing of the new template that keeps failing."""
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1)
    await execute(db, "UPDATE pool SET stalled_at = now(), consecutive_failures = 5")
    await show(db, observing, vm_id, ready=False)
    await show(db, observing, vm_id)
    assert await scalar(db, "SELECT consecutive_failures FROM pool") == 5


async def test_failures_that_heal_not_end_a_boot_and_open_the_breaker_in_time(db, observing):
    pool = await make_pool(db)
    together = await make_vms(db, pool, 3, VmState.BOOTING)
    await observing.apply_changes([await seen(db, vm_id, failure=CRASHED, ready=False) for vm_id in together])
    assert {await state_of(db, vm_id) for vm_id in together} == {VmState.FAILED}
    async with db.begin() as tx:
        after = await pools.get_by_id(tx, pool.id)
    assert after is not None
    assert (after.consecutive_failures, after.stalled_at) == (1, None), "they failed together"
    assert after.last_failure == "CrashLoopBackOff: the guest does not start"
    assert after.backoff_until is not None
    (later,) = await make_vms(db, pool, 1, VmState.BOOTING)
    await show(db, observing, later, failure=CRASHED, ready=False)
    assert await scalar(db, "SELECT stalled_at FROM pool") is not None
    assert "pool.stalled" in await event_types(db)


async def test_a_claimed_vm_that_dies_at_once_is_replaced_under_its_claim(db, observing):
    pool = await make_pool(db)
    claim_id, vm_id = await claimed(db, pool)
    await show(db, observing, vm_id, phase="Failed", ready=False)
    claim = await get_claim(db, claim_id)
    assert claim.state is ClaimState.BOUND
    assert claim.vm_id != vm_id
    assert [(one["vm_id"], one["reason"]) for one in claim.replacements] == [(str(vm_id), "its instance is Failed")]
    assert await state_of(db, vm_id) is VmState.FAILED
    assert await state_of(db, claim.vm_id) is VmState.CLAIMED


async def test_without_another_vm_the_claim_waits_before_all_others(db, observing):
    pool = await make_pool(db)
    claim_id, vm_id = await claimed(db, pool, ready=0)
    other = await wait_for_vm(db, pool)
    await show(db, observing, vm_id, deleting=True)
    assert (await get_claim(db, claim_id)).state is ClaimState.PENDING
    (fresh,) = await make_vms(db, pool, 1, VmState.BOOTING)
    await show(db, observing, fresh)
    assert (await get_claim(db, claim_id)).vm_id == fresh
    assert (await get_claim(db, other)).state is ClaimState.PENDING


async def test_a_claimed_vm_that_dies_late_fails_its_claim(db, observing):
    pool = await make_pool(db)
    claim_id, vm_id = await claimed(db, pool)
    await execute(db, "UPDATE vm SET claimed_at = now() - interval '10 minutes' WHERE id = :id", id=vm_id)
    await show(db, observing, vm_id, phase="Failed", ready=False)
    assert await state_of(db, vm_id) is VmState.CLAIMED, "it is its claimant's, who may restart it"
    assert await scalar(db, "SELECT health FROM vm WHERE id = :id", id=vm_id) == "its instance is Failed"
    await observing.apply_gone(Gone((await seen(db, vm_id)).name, f"uid-{vm_id}"))
    claim = await get_claim(db, claim_id)
    assert claim.state is ClaimState.FAILED
    assert "removed from the cluster by somebody else" in claim.reason
    assert await state_of(db, vm_id) is VmState.LOST
    assert (await release_claim(db, claim_id)).state is ClaimState.FAILED


@pytest.mark.parametrize("state", [VmState.BOOTING, VmState.READY])
async def test_an_object_that_left_without_us_is_lost(db, observing, state):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1, state)
    name = (await seen(db, vm_id)).name
    await observing.apply_gone(Gone(name, "another-uid"))
    await observing.apply_gone(Gone("nobody", "uid"))
    assert await state_of(db, vm_id) is state
    await observing.apply_gone(Gone(name, f"uid-{vm_id}"))
    assert await state_of(db, vm_id) is VmState.LOST
    await observing.apply_gone(Gone(name, f"uid-{vm_id}"))


@pytest.mark.parametrize("failed", [False, True])
async def test_an_object_that_we_let_go_is_deleted_once_it_has_gone(db, observing, failed):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1, VmState.BOOTING if failed else VmState.RELEASING)
    if failed:
        async with db.begin() as tx:
            await vms.move(tx, [vm_id], VmState.FAILED, sources=[VmState.BOOTING], reason="crashed")
    await observing.apply_gone(Gone((await seen(db, vm_id)).name, f"uid-{vm_id}"))
    assert await state_of(db, vm_id) is VmState.DELETED


def listed(*observations, ago=timedelta(0)):
    return Listed(observations, datetime.now(UTC) - ago)


async def test_a_list_ends_what_is_missing_from_it_but_not_what_is_younger(db, observing):
    pool = await make_pool(db)
    there, missing, young = await make_vms(db, pool, 3)
    (going,) = await make_vms(db, pool, 1, VmState.RELEASING)
    old = [there, missing, going]
    await execute(db, "UPDATE vm SET state_since = now() - interval '10 minutes' WHERE id = ANY(:ids)", ids=old)
    await write_list(observing, listed(await seen(db, there)))
    states = [await state_of(db, vm_id) for vm_id in (there, missing, young, going)]
    assert states == [VmState.READY, VmState.LOST, VmState.READY, VmState.DELETED]


async def test_a_list_brings_up_what_the_watch_missed(db, observing):
    pool = await make_pool(db)
    ids = await make_vms(db, pool, 3, VmState.BOOTING)
    await write_list(observing, listed(*[await seen(db, vm_id) for vm_id in ids]))
    assert {await state_of(db, vm_id) for vm_id in ids} == {VmState.READY}


@pytest.mark.parametrize(
    ("shown", "drift"),
    [
        ({"node": "node-7"}, ""),
        ({"addresses": ("10.0.0.9", "fd00::9")}, ""),
        ({"vmi_uid": "another"}, ""),
        ({}, "health = 'it is not ready', unhealthy_since = now()"),
        ({}, "node = 'node-7'"),
        ({}, "addresses = '{}'"),
    ],
)
async def test_a_list_puts_right_what_a_row_says_of_a_vm_that_is_well(db, observing, shown, drift):
    (vm_id,) = await make_vms(db, await make_pool(db), 1)
    await write_list(observing, listed(await seen(db, vm_id)))
    if drift:
        await execute(db, f"UPDATE vm SET {drift}")
    now = await seen(db, vm_id, **shown)
    await write_list(observing, listed(now))
    row = (await fetch(db, "SELECT * FROM vm"))[0]
    assert (row["node"], tuple(row["addresses"]), row["vmi_uid"]) == (now.node, now.addresses, now.vmi_uid)
    assert (row["health"], row["unhealthy_since"]) == (None, None)


@pytest.mark.parametrize(("warm_when", "state"), [("agent", VmState.BOOTING), ("ready", VmState.READY)])
async def test_a_list_notices_a_ready_vm_that_lost_its_agent_where_that_counts(db, observing, warm_when, state):
    (vm_id,) = await make_vms(db, await make_pool(db, warm_when=warm_when), 1)
    await write_list(observing, listed(await seen(db, vm_id)))
    await write_list(observing, listed(await seen(db, vm_id, agent_connected=False)))
    assert await state_of(db, vm_id) is state


async def test_of_vms_that_are_as_their_rows_say_no_row_is_read(db, observing, monkeypatch):
    """Thousands of them are listed every minute."""
    ids = await make_vms(db, await make_pool(db), 3)
    shown = listed(*[await seen(db, vm_id) for vm_id in ids])
    await write_list(observing, shown)
    read = []

    async def apply_changes(observations):
        read.extend(observations)

    monkeypatch.setattr(observing, "apply_changes", apply_changes)
    await write_list(observing, shown)
    assert read == []
    await execute(db, "UPDATE vm SET health = 'it is not ready', unhealthy_since = now() WHERE id = :id", id=ids[1])
    await write_list(observing, shown)
    assert [obs.vm_id for obs in read] == [str(ids[1])]


async def test_a_list_leaves_out_what_an_event_told_while_it_was_written(db, observing, monkeypatch):
    monkeypatch.setattr(status_writer, "_LIST_CHUNK", 1)
    first, second = await make_vms(db, await make_pool(db), 2)
    newer = set()
    old = [await seen(db, vm_id, ready=False) for vm_id in (first, second)]
    steps = observing.write_list(listed(*old), newer)
    await anext(steps)
    await show(db, observing, second)
    newer.add(old[1].name)
    async for _ in steps:
        pass
    assert [await state_of(db, vm_id) for vm_id in (first, second)] == [VmState.BOOTING, VmState.READY]


def stranger(name, *, age=timedelta(hours=1), **given):
    base = {"uid": f"uid-{name}", "vm_id": str(new_id()), "created_at": datetime.now(UTC) - age}
    return Observation(name=name, namespace="default", **{**base, **given})


async def test_objects_that_no_row_knows_are_removed_once_they_are_old(db, gateway, observing):
    pool = await make_pool(db)
    (known,) = await make_vms(db, pool, 1)
    (ended,) = await make_vms(db, pool, 1)
    leftover = await seen(db, ended, created_at=datetime.now(UTC) - timedelta(hours=1))
    async with db.begin() as tx:
        await vms.move(tx, [ended], VmState.LOST, sources=[VmState.READY])
    mine = await seen(db, known, created_at=datetime.now(UTC) - timedelta(hours=1))
    shown = [
        mine,
        leftover,
        stranger("unknown"),
        stranger("young", age=timedelta(seconds=1)),
        stranger("going", deleting=True),
        stranger("no-id", vm_id=None),
        stranger("odd-id", vm_id="what"),
        stranger("ageless", created_at=None),
        stranger("twin", vm_id=str(known)),
    ]
    shown = [replace(one, installation=await own_id(db)) for one in shown]
    gateway.vms = {one.name: one for one in shown}
    await write_list(observing, listed(*shown))
    assert set(gateway.called("delete")) == {leftover.name, "unknown", "no-id", "odd-id", "ageless", "twin"}
    assert set(gateway.vms) == {mine.name, "young", "going"}
    assert await state_of(db, known) is VmState.READY


async def test_strangers_are_left_for_later_where_the_cluster_is_away(db, gateway, observing):
    gateway.refuse("delete", ClusterUnavailable("away"))
    signed = {"installation": await own_id(db)}
    await write_list(observing, listed(stranger("a", **signed), stranger("b", **signed)))
    assert gateway.called("delete") == ["a"]


async def test_an_observation_of_another_name_or_of_nobody_changes_nothing(db, observing):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1, VmState.BOOTING)
    real = await seen(db, vm_id)
    await observing.apply_changes([stranger("other", vm_id=str(vm_id)), stranger("nobody"), stranger("x", vm_id=None)])
    await observing.apply_changes([])
    assert await state_of(db, vm_id) is VmState.BOOTING
    await observing.apply_changes([await seen(db, vm_id, ready=False), real])
    assert await state_of(db, vm_id) is VmState.READY, "the last of several counts"


@pytest.mark.parametrize("gone", [False, True])
async def test_a_vm_that_is_claimed_at_the_moment_of_its_death_is_replaced(db, observing, gone):
    """It was ready when its row was read, and no later event comes for it."""
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1)
    claim_id = await wait_for_vm(db, pool)
    last = await seen(db, vm_id, deleting=True)
    async with db.begin() as tx:
        assert await claims.bind_pending(tx, pool.id) == [claim_id]
        ends = observing.apply_gone(Gone(last.name, last.uid)) if gone else observing.apply_changes([last])
        watching = asyncio.create_task(ends)
        await blocked(db)
    await watching
    assert await state_of(db, vm_id) is (VmState.LOST if gone else VmState.FAILED)
    claim = await get_claim(db, claim_id)
    assert (claim.state, len(claim.replacements)) == (ClaimState.PENDING, 1)


async def test_what_happens_to_a_vm_in_the_same_batch_as_anothers_end_is_not_lost(db, observing):
    pool = await make_pool(db)
    claim_id, dead = await claimed(db, pool, ready=0)
    waiting = await wait_for_vm(db, pool)
    first, second = await make_vms(db, pool, 2, VmState.BOOTING)
    batch = [await seen(db, first), await seen(db, dead, phase="Failed"), await seen(db, second)]
    await observing.apply_changes(batch)
    bound = {(await get_claim(db, one)).vm_id for one in (claim_id, waiting)}
    assert bound == {first, second}
    assert await state_of(db, dead) is VmState.FAILED


async def test_the_watch_and_the_end_of_leases_do_not_wait_in_a_circle(db, observing):
    """One ends two claims; the other notes something of the first's VM and finds the second's dead."""
    pool = await make_pool(db)
    (first, well), (second, dead) = await claimed(db, pool, ready=0), await claimed(db, pool, ready=0)
    batch = [await seen(db, well, ready=False), await seen(db, dead, phase="Failed")]
    async with db.begin() as tx:
        ended = await claims.end(
            tx, [first, second], ClaimState.EXPIRED, sources=[ClaimState.BOUND], reason="the lease ended"
        )
        watching = asyncio.create_task(observing.apply_changes(batch))
        await blocked(db)
        held = [vm_id for _, _, vm_id in ended]
        released = await vms.release(tx, held, sources=[VmState.CLAIMED], reason="the lease ended")
        assert set(released) == {well, dead}
    await watching
    assert {await state_of(db, vm_id) for vm_id in (well, dead)} == {VmState.RELEASING}


class TestRestarts:
    """A claimed VM whose instance is lost is started again by the cluster, mostly on another node."""

    @pytest.fixture
    async def held(self, db, observing):
        """(claim, VM), claimed ten minutes ago and well on node-1."""
        claim_id, vm_id = await claimed(db, await make_pool(db))
        await execute(db, "UPDATE vm SET claimed_at = now() - interval '10 minutes' WHERE id = :id", id=vm_id)
        await show(db, observing, vm_id)
        return claim_id, vm_id

    async def test_it_is_told_by_the_claim_by_events_and_by_health_in_between(self, db, observing, held):
        claim_id, vm_id = held
        await show(db, observing, vm_id, ready=False)
        assert (await get_claim(db, claim_id)).restarts == (), "it may recover"
        gone = {"ready": False, "phase": None, "vmi_uid": None, "node": None, "addresses": ()}
        await show(db, observing, vm_id, **gone)
        claim = await get_claim(db, claim_id)
        (restart,) = claim.restarts
        assert (claim.state, claim.health) == (ClaimState.BOUND, "it has no running instance")
        assert restart["reason"] == "it is not ready"
        assert (restart["from_node"], restart["from_addresses"]) == ("node-1", ["10.0.0.1"])
        assert (restart["back_at"], restart["to_node"], restart["to_addresses"]) == (None, None, [])
        for phase in ("Pending", "Scheduled"):
            await show(db, observing, vm_id, **{**gone, "phase": phase, "vmi_uid": "vmi-2", "node": "node-2"})
            assert (await get_claim(db, claim_id)).health == f"its instance is {phase}"
        await show(db, observing, vm_id, vmi_uid="vmi-2", node="node-2", addresses=("10.0.0.2",))
        claim = await get_claim(db, claim_id)
        (restart,) = claim.restarts
        assert (claim.health, claim.node, claim.addresses) == (None, "node-2", ("10.0.0.2",))
        assert (restart["from_node"], restart["to_node"], restart["to_addresses"]) == ("node-1", "node-2", ["10.0.0.2"])
        assert restart["at"] <= restart["back_at"]
        told = await fetch(db, "SELECT claim_id, data FROM event WHERE type LIKE 'vm.restart%' ORDER BY id")
        assert [(event["claim_id"], event["data"].get("to_node")) for event in told] == [
            (claim_id, None),
            (claim_id, "node-2"),
        ]

    async def test_an_instance_that_was_replaced_between_two_looks_is_a_restart_too(self, db, observing, held):
        await show(db, observing, held[1], vmi_uid="vmi-2")
        (restart,) = (await get_claim(db, held[0])).restarts
        assert (restart["reason"], restart["to_node"]) == ("its instance was replaced", "node-1")
        assert restart["back_at"] is not None

    async def test_one_that_fails_again_before_it_is_well_is_one_restart(self, db, observing, held):
        for uid in ("vmi-2", "vmi-3"):
            await show(db, observing, held[1], vmi_uid=uid, ready=False, phase="Scheduling", node="node-2")
        await show(db, observing, held[1], vmi_uid="vmi-3", node="node-3")
        (restart,) = (await get_claim(db, held[0])).restarts
        assert (restart["from_node"], restart["to_node"]) == ("node-1", "node-3")

    async def test_the_last_ten_are_kept(self, db, observing, held):
        for number in range(2, 14):
            await show(db, observing, held[1], vmi_uid=f"vmi-{number}", node=f"node-{number}")
        found = (await get_claim(db, held[0])).restarts
        assert [each["to_node"] for each in found] == [f"node-{number}" for number in range(4, 14)]

    @pytest.mark.parametrize(
        "change",
        [{"node": "node-2"}, {"ready": False}, {"paused": True}],
        ids=["live migration", "not ready", "paused"],
    )
    async def test_what_goes_on_in_the_same_instance_is_no_restart(self, db, observing, held, change):
        await show(db, observing, held[1], **change)
        await show(db, observing, held[1])
        assert (await get_claim(db, held[0])).restarts == ()

    async def test_a_vm_that_we_stopped_is_not_restarted(self, db, observing, held):
        await execute(db, "UPDATE vm SET stopped = true WHERE id = :id", id=held[1])
        await show(db, observing, held[1], vmi_uid=None, phase=None, ready=False, node=None, addresses=())
        assert (await get_claim(db, held[0])).restarts == ()
