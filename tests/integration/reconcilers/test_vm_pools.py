"""VirtualMachinePools behind pools: each step of the worker, and a kill between any two."""

import asyncio
from dataclasses import replace

import pytest

from app.domain.states import VmState
from app.domain.vm_pools import Backing
from app.errors import ClusterNotFound, ClusterRefused, ClusterUnavailable
from app.reconcilers.pools.planner import plan_due_pools
from app.reconcilers.vm_pools.reconciler import VmPoolReconciler
from app.reconcilers.vms.creator import VmCreator
from app.reconcilers.vms.labeler import ClaimLabeler
from app.reconcilers.vms.remover import VmRemover
from app.reconcilers.vms.status_writer import StatusWriter
from app.services.claims.lifecycle import release_claim
from app.services.pools.service import delete_pool, put_pool
from app.store.claims.warm import WarmClaimStore
from app.store.pools.planning import last_plan
from tests.support import store_invariants as invariants
from tests.support.listing import write_list
from tests.support.patience import PATIENCE
from tests.support.rows import execute, fetch, own_id, request, scalar, spec


class Killed(BaseException):
    """The process is gone, between two calls to the cluster or right after one."""


class World:
    """One service that is stepped by hand. Each part may be killed at any call; what it held is free once its lease is over."""

    def __init__(self, db, gateway, settings):
        self.db = db
        self.gateway = gateway
        self.settings = settings
        self.pools = gateway.vm_pools
        self.status_writer = StatusWriter(db, gateway, settings)
        gateway.boots_at_once = True

    async def put(self, **given):
        return (await put_pool(self.db, self.gateway, "web", spec(backing=Backing.VIRTUAL_MACHINE_POOL, **given))).pool

    async def plan(self):
        await execute(self.db, "UPDATE pool_plan SET due_at = now()")
        await plan_due_pools(self.db, every_seconds=60)

    async def work(self):
        """A process that begins now: all that another held is free."""
        await execute(
            self.db,
            "UPDATE vm_pool SET lease_expires_at = now() - interval '1 second', due_at = now() WHERE lease_token IS NOT NULL",
        )
        await execute(self.db, "UPDATE vm_pool SET due_at = now()")
        await VmPoolReconciler(self.db, self.gateway, self.settings).step()

    async def look(self):
        await write_list(self.status_writer, self.gateway.listed())

    async def remove(self):
        await execute(
            self.db,
            "UPDATE vm SET due_at = now(), lease_expires_at = NULL WHERE ended_at IS NULL AND state IN ('failed', 'releasing')",
        )
        await VmRemover(self.db, self.gateway, self.settings).step()

    async def turn(self):
        """All parts once, the cluster's controller too."""
        await self.plan()
        await self.work()
        self.pools.act()
        await self.look()
        await self.remove()
        await self.look()

    async def settle(self, **wanted):
        """Turns until the third in a row changes nothing, twelve at most."""
        seen = []
        while len(seen) < 12 and (len(seen) < 3 or seen[-3:] != [seen[-1]] * 3):
            await self.turn()
            seen.append(await self._everything())
        found = await fetch(self.db, "SELECT state, count(*) AS n FROM vm WHERE ended_at IS NULL GROUP BY state")
        assert {row["state"]: row["n"] for row in found} == wanted
        await invariants.check(self.db)

    async def _everything(self):
        """What a turn can change, but times: of the rows, and of the cluster."""
        rows = [
            await fetch(self.db, "SELECT id, uid, state, claim_id, member, reason FROM vm ORDER BY id"),
            await fetch(self.db, "SELECT id, state, vm_id, labelled FROM claim ORDER BY id"),
            await fetch(self.db, "SELECT id, deleted_at FROM pool ORDER BY id"),
            await fetch(self.db, "SELECT type FROM event ORDER BY id"),
        ]
        return repr((rows, self.gateway.vms, self.pools.pools))


async def take(db, *, labels=None):
    """A warm VM is claimed; its row."""
    pool_id = await scalar(db, "SELECT id FROM pool WHERE deleted_at IS NULL")
    lane = WarmClaimStore(db.url)
    try:
        await lane.claim(pool_id, [request(labels=labels)])
    finally:
        await lane.close()
    return (await fetch(db, "SELECT * FROM vm WHERE state = 'claimed' ORDER BY claimed_at DESC"))[0]


@pytest.fixture
def world(db, gateway, settings):
    return World(db, gateway, settings)


async def test_a_pool_is_made_before_its_vms_and_counts_what_is_planned(world, gateway):
    pool = await world.put(size=3)
    await world.plan()
    await VmCreator(world.db, gateway, world.settings).step()
    assert gateway.called("create") == [], "its VMs are made by the cluster"
    await world.work()
    (made,) = world.pools.pools.values()
    assert (made.replicas, made.pool_id) == (3, str(pool.id))
    names = world.pools.act()
    await world.look()
    rows = await fetch(world.db, "SELECT name, uid, member, state, asked_at, path FROM vm ORDER BY name")
    assert [row["name"] for row in rows] == sorted(names)
    assert all(row["member"] and row["state"] == "ready" and row["asked_at"] and row["path"] == "cold" for row in rows)
    assert {row["uid"] for row in rows} == {vm.uid for vm in gateway.vms.values()}


async def test_it_is_made_in_steps_of_what_may_be_on_its_way(world):
    await world.put(size=6, max_concurrent_creates=2)
    seen = []
    for _ in range(4):
        await world.plan()
        await world.work()
        (made,) = world.pools.pools.values()
        seen.append(made.replicas)
        world.pools.act()
        await world.look()
    assert seen == [2, 4, 6, 6]


async def test_where_nobody_wants_another_the_number_falls_before_a_vm_is_detached(world, gateway):
    await world.put(size=2, auto_replenish=False)
    await world.settle(ready=2)
    vm = await take(world.db)
    gateway.calls.clear()
    world.pools.acts_at_once = True
    await world.plan()
    await world.work()
    order = [what for what, _ in gateway.calls if what in {"change", "detach"}]
    assert order == ["change", "detach"]
    assert len(gateway.vms) == 2, "the controller, which acted at once, made none"
    assert gateway.vms[vm["name"]].claim_id == str(vm["claim_id"])
    assert gateway.vms[vm["name"]].owner is None


async def test_the_patch_that_detaches_a_vm_names_its_claim(world, gateway):
    await world.put(size=1)
    await world.settle(ready=1)
    vm = await take(world.db)
    await ClaimLabeler(world.db, gateway, world.settings).step()
    assert gateway.called("label") == [], "not before it is detached"
    await world.work()
    assert gateway.vms[vm["name"]].claim_id == str(vm["claim_id"])
    assert await scalar(world.db, "SELECT count(*) FROM event WHERE type = 'vm.detached'") == 1


async def test_what_else_a_vm_gets_is_written_after_its_vm_is_detached(world, gateway):
    await world.put(size=1)
    await world.settle(ready=1)
    vm = await take(world.db, labels={"name": "jane"})
    await world.work()
    assert gateway.vms[vm["name"]].claim_id == str(vm["claim_id"])
    assert not await scalar(world.db, "SELECT labelled FROM claim")
    await ClaimLabeler(world.db, gateway, world.settings).step()
    assert gateway.called("label") == [vm["name"]]
    assert await scalar(world.db, "SELECT labelled FROM claim")


async def test_a_vm_that_it_owns_is_not_deleted_before_it_is_detached(world, gateway):
    await world.put(size=1)
    await world.settle(ready=1)
    vm = await take(world.db)
    await release_claim(world.db, vm["claim_id"])
    await world.remove()
    assert gateway.called("delete") == []
    await world.work()
    await world.remove()
    assert gateway.called("delete") == [vm["name"]]
    assert gateway.called("detach") == [vm["name"]]


async def test_a_controller_that_creates_late_makes_rows_that_the_planner_judges(world):
    await world.put(size=2)
    await world.settle(ready=2)
    (name,) = world.pools.pools
    world.pools.stranger(name, 7)
    await world.look()
    assert await scalar(world.db, "SELECT count(*) FROM vm WHERE state = 'ready'") == 3
    await world.settle(ready=2)


async def test_a_vm_replaced_under_its_name_is_two_rows(world, gateway):
    await world.put(size=1)
    await world.settle(ready=1)
    (old,) = await fetch(world.db, "SELECT id, name, uid FROM vm")
    del gateway.vms[old["name"]]
    assert world.pools.act() == [old["name"]]
    await execute(
        world.db, "UPDATE vm SET ready_at = now() - interval '5 minutes', state_since = now() - interval '5 minutes'"
    )
    await world.look()
    rows = await fetch(world.db, "SELECT id, name, uid, state FROM vm ORDER BY id")
    assert [(row["name"], row["state"]) for row in rows] == [(old["name"], "lost"), (old["name"], "ready")]
    assert rows[1]["uid"] == gateway.vms[old["name"]].uid
    await world.settle(ready=1)


async def test_a_claimed_vm_that_is_replaced_under_its_name_costs_the_other_nothing(world, gateway):
    await world.put(size=1, auto_replenish=False)
    await world.settle(ready=1)
    vm = await take(world.db)
    del gateway.vms[vm["name"]]
    world.pools.act()
    gateway.calls.clear()
    await world.work()
    other = gateway.vms[vm["name"]]
    assert other.owner is not None, "it is another one, and was not detached in its stead"
    assert other.claim_id is None


async def test_what_the_cluster_cannot_make_is_told_on_the_pool(world):
    pool = await world.put(size=1)
    await world.plan()
    await world.work()
    (name,) = world.pools.pools
    world.pools.pools[name] = replace(world.pools.pools[name], failure="exceeded quota: vms")
    await world.work()
    await world.plan()
    async with world.db.begin() as tx:
        assert any("exceeded quota: vms" in note for note in (await last_plan(tx, pool.id)).notes)


@pytest.mark.parametrize("error", [ClusterUnavailable("away"), ClusterRefused("no")], ids=["away", "refused"])
async def test_a_call_that_fails_is_made_again_later(world, gateway, error):
    await world.put(size=1)
    await world.plan()
    gateway.refuse("make", error, times=2)
    world.settings = world.settings.model_copy(
        update={"backoff_base_seconds": 60}
    )  # no busy machine takes so long to look
    await world.work()
    row = (await fetch(world.db, "SELECT attempts, lease_token, reason, due_at > now() AS later FROM vm_pool"))[0]
    assert (row["attempts"], row["lease_token"], row["later"]) == (1, None, True)
    assert error.detail in row["reason"]
    await world.settle(ready=1)
    assert await scalar(world.db, "SELECT reason FROM vm_pool") is None


async def test_one_of_that_name_that_is_not_ours_is_left_alone(world, gateway):
    await world.put(size=1)
    await world.plan()
    await world.work()
    (name,) = world.pools.pools
    world.pools.write(name, pool_id="another")
    await execute(world.db, "UPDATE vm_pool SET uid = NULL")
    before = world.pools.pools[name]
    await world.work()
    assert world.pools.pools[name] == before
    assert "not ours" in await scalar(world.db, "SELECT reason FROM vm_pool")


async def test_a_vm_that_is_gone_has_nothing_to_be_detached(world, gateway):
    await world.put(size=1)
    await world.settle(ready=1)
    vm = await take(world.db)
    del gateway.vms[vm["name"]]
    await world.work()
    row = (await fetch(world.db, "SELECT member, state FROM vm WHERE id = :id", id=vm["id"]))[0]
    assert (row["member"], row["state"]) == (False, "claimed"), "the informer says that it is lost"
    assert not await scalar(world.db, "SELECT labelled FROM claim")


async def test_two_workers_are_never_at_one_of_them(world, gateway):
    await world.put(size=1)
    await world.plan()
    asked, gate = asyncio.Event(), asyncio.Event()
    look = world.pools.look

    async def hang(name):
        asked.set()
        await gate.wait()
        return await look(name)

    world.pools.look = hang
    first, second = (VmPoolReconciler(world.db, gateway, world.settings) for _ in range(2))
    hanging = asyncio.create_task(first.step())
    await asyncio.wait_for(asked.wait(), PATIENCE)
    world.pools.look = look
    await second.step()
    assert gateway.called("make") == []
    hanging.cancel()
    await asyncio.wait([hanging])
    await first.release()
    await second.step()
    assert len(gateway.called("make")) == 1


async def test_a_sweep_lets_go_of_what_no_pool_knows(world, gateway):
    gateway.ownership.identify(await own_id(world.db))
    await world.put(size=1)
    await world.settle(ready=1)
    await execute(world.db, "UPDATE vm SET member = false")
    await execute(world.db, "DELETE FROM vm_pool")
    for _ in range(2):
        await VmPoolReconciler(world.db, gateway, world.settings).sweep()
    assert world.pools.pools == {}
    assert len(gateway.vms) == 1, "its VMs are not the sweep's to remove"


async def test_without_a_right_to_them_other_pools_are_served(world, gateway):
    gateway.refuse("all", ClusterNotFound("no such kind"))
    assert not await VmPoolReconciler(world.db, gateway, world.settings).sweep()


# Kills


def kill_at(world, number, *, after):
    """The process dies at its `number`th call for VirtualMachinePools: before the cluster hears of it, or after it did it."""
    left = [number]
    originals = {}
    for name in ("look", "make", "change", "detach", "free", "remove"):
        original = originals[name] = getattr(world.pools, name)

        async def call(*args, _original=original, **given):
            left[0] -= 1
            if left[0] < 0 and not (after and left[0] == -1):
                raise Killed
            answer = await _original(*args, **given)
            if left[0] < 0:
                raise Killed
            return answer

        setattr(world.pools, name, call)

    def revive():
        for name, original in originals.items():
            setattr(world.pools, name, original)

    return revive


async def claimed(world):
    return await take(world.db)


async def shrunk(world):
    vm = await take(world.db)
    await world.put(size=1)
    return vm


async def rotated(world):
    vm = await take(world.db)
    await world.put(size=2, template={"image": "another"})
    return vm


async def released(world):
    gone = await take(world.db)
    await release_claim(world.db, gone["claim_id"])
    return await take(world.db)


async def deleted(world):
    vm = await take(world.db)
    await delete_pool(world.db, "web", force=False)
    return vm


async def deleted_by_others(world):
    vm = await take(world.db)
    (name,) = world.pools.pools
    world.pools.delete(name)
    return vm


STORIES = [
    (claimed, {"ready": 2, "claimed": 1}),
    (shrunk, {"ready": 1, "claimed": 1}),
    (rotated, {"ready": 2, "claimed": 1}),
    (released, {"ready": 2, "claimed": 1}),
    (deleted, {"claimed": 1}),
    (deleted_by_others, {"ready": 2, "claimed": 1}),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize(("story", "end"), STORIES, ids=[story.__name__ for story, _ in STORIES])
async def test_a_kill_between_any_two_calls_costs_nothing(world, gateway, story, end, number, after):
    await world.put(size=2)
    await world.settle(ready=2)
    vm = await story(world)
    revive = kill_at(world, number, after=after)
    try:
        for _ in range(3):
            await world.turn()
    except Killed:
        pass
    revive()
    world.pools.act()
    await world.settle(**end)
    kept = gateway.vms[vm["name"]]
    assert (kept.uid, kept.owner, kept.claim_id, kept.deleting) == (vm["uid"], None, str(vm["claim_id"]), False)
    assert await scalar(world.db, "SELECT state FROM vm WHERE id = :id", id=vm["id"]) == VmState.CLAIMED
    owned = [each for each in gateway.vms.values() if each.owner is not None]
    assert all(each.claim_id is None for each in owned)
    assert len(gateway.vms) == sum(end.values())
