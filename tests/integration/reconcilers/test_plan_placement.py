"""What is said of room, and what planning makes of it: never more than the nodes take, and never nothing where nobody knows."""

from dataclasses import replace

import pytest

from app.domain.nodes import CORDON, SCHEDULABLE, Demand, Node, Toleration
from app.domain.states import VmState
from app.errors import Unschedulable
from app.lifecycle.placement import FACTS_SECONDS, Placing, check_fit, nodes_status
from app.reconcilers.pools.planner import plan_due_pools
from app.services.pools.service import put_pool
from app.store import nodes
from app.store import watch_state as watches
from app.store.pools import planning
from app.store.vms.rows import LAST_PLACES
from tests.support.claim_services import new_claim, stays_connected
from tests.support.rows import execute, fetch, make_pool, make_ready, make_vms, scalar, spec, state_of

NODE = Node(
    "node-1",
    uid="a",
    labels={SCHEDULABLE: "true"},
    conditions={"Ready": "True"},
    allocatable={"cpu": 4000, "pods": 110},
)
VM = Demand({"cpu": 1000, "pods": 1}, selector={SCHEDULABLE: "true"})
HUGE = Demand({"cpu": 9000, "pods": 1})


@pytest.fixture
def placing(gateway):
    gateway.demands = VM
    return Placing(gateway)


async def show(db, *found, heard=True):
    async with db.begin() as tx:
        await nodes.write(tx, found)
        if heard:
            await watches.write_heard(tx, nodes.WATCH, holder="one", listed=True)


async def look(db, placing):
    await execute(db, "UPDATE pool_plan SET due_at = now()")
    return await plan_due_pools(db, every_seconds=60, placing=placing)


async def planned(db):
    return await scalar(db, "SELECT count(*) FROM vm WHERE state = 'planned'")


async def notes(db, pool):
    async with db.begin() as tx:
        return (await planning.last_plan(tx, pool.id)).notes


async def capacity_problem(db, pool):
    async with db.begin() as tx:
        return (await planning.last_plan(tx, pool.id)).capacity_problem


class TestPlanning:
    async def test_no_more_are_planned_than_the_nodes_take(self, db, placing):
        pool = await make_pool(db, size=9)
        await show(db, NODE)
        await look(db, placing)
        assert await planned(db) == 4
        (note,) = await notes(db, pool)
        assert note.startswith("the nodes have room for 4 more VMs of this pool at the moment (node-1: takes 4")
        assert (await capacity_problem(db, pool)).startswith(
            "at most 4 of its 9 VMs fit on these nodes, even with nothing else"
        )
        assert await scalar(db, "SELECT waits_for_room FROM pool_plan") is True
        await look(db, placing)
        assert await planned(db) == 4

    async def test_what_is_on_its_way_for_another_pool_takes_room(self, db, placing):
        other = await make_pool(db, "other", size=3)
        await make_vms(db, other, 3, VmState.BOOTING)
        pool = await make_pool(db, size=3)
        await execute(db, "UPDATE pool_plan SET due_at = now() + interval '1 hour' WHERE pool_id = :id", id=other.id)
        await show(db, NODE)
        assert await plan_due_pools(db, every_seconds=60, placing=placing) == [pool.id]
        assert await planned(db) == 1

    async def test_a_vm_whose_pod_is_on_its_node_is_counted_there_and_not_twice(self, db, placing):
        pool = await make_pool(db, size=9)
        (vm_id,) = await make_vms(db, pool, 1, VmState.BOOTING)
        await show(db, replace(NODE, used={"cpu": 1000, "pods": 1}, vms=frozenset({str(vm_id)})))
        await look(db, placing)
        assert await planned(db) == 3

    async def test_room_that_comes_is_used(self, db, placing):
        await make_pool(db, size=3)
        await show(db, replace(NODE, used={"cpu": 4000}))
        await look(db, placing)
        assert await planned(db) == 0
        await show(db, replace(NODE, used={"cpu": 2000}))
        await look(db, placing)
        assert await planned(db) == 2
        assert await scalar(db, "SELECT waits_for_room FROM pool_plan") is True
        async with db.begin() as tx:
            await nodes.drop(tx, ["node-1"])
        await show(db, replace(NODE, name="node-2"))
        await look(db, placing)
        assert await planned(db) == 3
        assert await scalar(db, "SELECT waits_for_room FROM pool_plan") is False

    @pytest.mark.parametrize("unknown", ["never", "stale", "unlisted", "instance type"])
    async def test_where_nobody_knows_vms_are_made(self, db, gateway, placing, unknown):
        await make_pool(db, size=3)
        await show(db, replace(NODE, used={"cpu": 4000}), heard=unknown not in {"never", "unlisted"})
        if unknown == "stale":
            query = "UPDATE watch SET heard_at = now() - make_interval(secs => :seconds)"
            await execute(db, query, seconds=FACTS_SECONDS + 1)
        if unknown == "unlisted":
            async with db.begin() as tx:
                await watches.write_broken(tx, nodes.WATCH, holder="one", reason="it is forbidden")
        if unknown == "instance type":
            gateway.demands = None
        await look(db, placing)
        assert await planned(db) == 3

    async def test_a_rotation_on_full_nodes_goes_one_by_one(self, db, placing):
        pool = await make_pool(db, size=2)
        await make_vms(db, pool, 2)
        await execute(db, "UPDATE pool SET revision = 'r2'")
        for table in ("vm", "ready_slot"):
            await execute(db, f"UPDATE {table} SET ready_at = now() - interval '1 hour'")
        await show(db, replace(NODE, used={"cpu": 3500}))
        for _ in range(3):
            await look(db, placing)
        assert await scalar(db, "SELECT count(*) FROM vm WHERE state = 'releasing'") == 1
        assert await scalar(db, "SELECT count(*) FROM ready_slot") == 1
        await execute(db, "UPDATE vm SET state = 'deleted', ended_at = now() WHERE state = 'releasing'")
        await look(db, placing)
        assert (await planned(db), await scalar(db, "SELECT count(*) FROM ready_slot")) == (0, 1)
        await show(db, replace(NODE, used={"cpu": 2500}))
        await look(db, placing)
        assert await planned(db) == 1

    async def test_a_pool_that_allows_it_is_filled_whatever_the_nodes_say(self, db, placing):
        pool = await make_pool(db, size=3, allow_unschedulable=True)
        await show(db, replace(NODE, used={"cpu": 4000}))
        await look(db, placing)
        assert await planned(db) == 3
        assert await notes(db, pool) == ()

    async def test_a_pool_that_fits_no_more_says_so_and_takes_it_back(self, db, gateway):
        now = [0.0]
        gateway.demands = HUGE
        placing = Placing(gateway, clock=lambda: now[0])
        pool = await make_pool(db, size=1)
        await make_vms(db, pool, 1)
        await show(db, NODE)
        await look(db, placing)
        assert await capacity_problem(db, pool) == (
            "no node could take a VM of it, even with nothing else on it: node-1: CPUs: 4 free of 4, 9 needed"
        )
        await show(db, replace(NODE, allocatable={"cpu": 16000, "pods": 110}))
        now[0] += 60
        await look(db, placing)
        assert await capacity_problem(db, pool) is None

    async def test_a_full_pool_whose_nodes_become_fewer_is_degraded_though_one_vm_would_fit(self, db, gateway):
        now = [0.0]
        gateway.demands = VM
        placing = Placing(gateway, clock=lambda: now[0])
        pool = await make_pool(db, size=5)
        await make_vms(db, pool, 5)
        await show(db, NODE, replace(NODE, name="node-2"))
        await look(db, placing)
        assert await capacity_problem(db, pool) is None
        async with db.begin() as tx:
            await nodes.drop(tx, ["node-2"])
        now[0] += 60
        await look(db, placing)
        assert await capacity_problem(db, pool) == (
            "at most 4 of its 5 VMs fit on these nodes, even with nothing else on them: "
            "node-1: takes 4, and for one more CPUs: 0 free of 4, 1 needed"
        )
        async with db.begin() as tx:
            await nodes.drop(tx, ["node-1"])
        now[0] += 60
        await look(db, placing)
        assert (await capacity_problem(db, pool)).endswith("the cluster has no nodes")

    async def test_a_size_that_was_raised_since_the_nodes_were_looked_at_is_told_with_what_is_missing(
        self, db, placing
    ):
        pool = await make_pool(db, size=4)
        await make_vms(db, pool, 4)
        await show(db, NODE)
        await look(db, placing)
        assert await capacity_problem(db, pool) is None
        await make_vms(db, pool, 1)
        await execute(db, "UPDATE pool SET spec = jsonb_set(spec, '{size}', '5')")
        await look(db, placing)
        assert "for one more CPUs" in await capacity_problem(db, pool)

    async def test_claimed_vms_and_others_pods_take_room_and_say_nothing_of_the_size(self, db, claim_service, placing):
        pool = await make_pool(db, size=4, max_vms=8)
        vm_ids = await make_vms(db, pool, 2)
        for _ in range(2):
            await claim_service.claim(new_claim(), stays_connected)
        await show(db, replace(NODE, used={"cpu": 3000, "pods": 1}, vms=frozenset(map(str, vm_ids))))
        await look(db, placing)
        assert (await planned(db), await capacity_problem(db, pool)) == (1, None)

    async def test_claims_that_wait_are_not_promised_room_that_is_not_there(self, db, placing):
        """A hidden pool has no size: it makes one VM for each claim that waits, as far as the nodes take them."""
        pool = await make_pool(db, "shape.abc.cold", size=0)
        query = "INSERT INTO claim_queue (pool_id, claim_id) SELECT :pool, gen_random_uuid() FROM generate_series(1, 6)"
        await execute(db, query, pool=pool.id)
        await show(db, NODE)
        await look(db, placing)
        count = await planned(db)
        await execute(db, "DELETE FROM claim_queue")
        assert count == 4


class TestNodesThatAreGoing:
    """`make_vms` puts every VM on node-1."""

    @pytest.fixture
    def placing(self, gateway):
        gateway.demands = VM
        now = iter(range(0, 1000, 2))
        return Placing(gateway, clock=lambda: next(now))

    async def last(self, db):
        return await scalar(db, "SELECT count(*) FROM ready_slot WHERE seq >= :places", places=LAST_PLACES)

    async def held(self, db, pool):
        async with db.begin() as tx:
            return (await planning.last_plan(tx, pool.id)).held

    async def test_its_vms_are_handed_out_last_and_replaced_where_there_is_room(self, db, placing):
        pool = await make_pool(db, size=2)
        await make_vms(db, pool, 2)
        await show(db, replace(NODE, used={"cpu": 2000}), replace(NODE, name="node-2"))
        await look(db, placing)
        assert (await self.last(db), await planned(db)) == (0, 0)
        await show(db, replace(NODE, used={"cpu": 2000}, cordoned=True))
        await look(db, placing)
        assert (await self.last(db), await planned(db), await self.held(db, pool)) == (2, 1, None)
        assert await scalar(db, "SELECT count(*) FROM vm WHERE state = 'ready'") == 2
        await show(db, replace(NODE, used={"cpu": 2000}))
        await look(db, placing)
        assert await self.last(db) == 0
        assert await planned(db) == 0, "it stays, and so do its VMs"

    async def test_one_is_removed_once_another_is_ready_elsewhere(self, db, placing):
        pool = await make_pool(db, size=1)
        (going,) = await make_vms(db, pool, 1)
        await show(db, replace(NODE, cordoned=True), replace(NODE, name="node-2"))
        await look(db, placing)
        (fresh,) = [row["id"] for row in await fetch(db, "SELECT id FROM vm WHERE state = 'planned'")]
        await execute(db, "UPDATE vm SET state = 'booting', asked_at = now(), node = 'node-2' WHERE id = :id", id=fresh)
        await make_ready(db, [fresh])
        await look(db, placing)
        assert await state_of(db, going) is VmState.RELEASING
        assert await state_of(db, fresh) is VmState.READY
        assert "cordoned or going" in await scalar(db, "SELECT reason FROM vm WHERE id = :id", id=going)

    async def test_without_room_elsewhere_they_stay_and_the_pool_says_why(self, db, placing):
        pool = await make_pool(db, size=2)
        await make_vms(db, pool, 2)
        await show(db, replace(NODE, cordoned=True), replace(NODE, name="node-2", used={"cpu": 4000}))
        await look(db, placing)
        assert (await self.last(db), await planned(db)) == (2, 0)
        assert (await self.held(db, pool)).startswith(
            "2 VMs on nodes that are cordoned or going (node-1): the nodes have room for 0 more VMs"
        )
        assert await scalar(db, "SELECT waits_for_room FROM pool_plan") is True

    async def test_vms_that_tolerate_the_cordon_stay(self, db, gateway, placing):
        gateway.demands = replace(VM, tolerations=(Toleration(key=CORDON, operator="Exists"),))
        await make_vms(db, await make_pool(db, size=2), 2)
        await show(db, replace(NODE, cordoned=True), replace(NODE, name="node-2"))
        await look(db, placing)
        assert (await self.last(db), await planned(db)) == (0, 0)

    async def test_where_nobody_knows_nothing_changes(self, db, placing):
        pool = await make_pool(db, size=2)
        await make_vms(db, pool, 2)
        await show(db, replace(NODE, cordoned=True), replace(NODE, name="node-2", used={"cpu": 4000}))
        await look(db, placing)
        query = "UPDATE watch SET heard_at = now() - make_interval(secs => :seconds)"
        await execute(db, query, seconds=FACTS_SECONDS + 1)
        await show(db, NODE, heard=False)
        await look(db, placing)
        assert (await self.last(db), await planned(db)) == (2, 0)

    async def test_nodes_are_looked_at_once_for_all_pools_of_a_moment(self, db, gateway):
        now = [0.0]
        gateway.demands = VM
        placing = Placing(gateway, clock=lambda: now[0])
        pool = await make_pool(db, size=1)
        await show(db, NODE)
        async with db.begin() as tx:
            assert await placing.going(tx, pool) == frozenset()
        await show(db, replace(NODE, cordoned=True))
        async with db.begin() as tx:
            assert await placing.going(tx, pool) == frozenset()
            now[0] += 1
            assert await placing.going(tx, pool) == {"node-1"}


class TestWriting:
    async def test_a_pool_of_which_nothing_ever_fits_is_refused_with_the_answer(self, db, gateway):
        gateway.demands = HUGE
        await show(
            db, replace(NODE, used={"cpu": 4000}), replace(NODE, name="node-2", allocatable={"cpu": 8000, "pods": 1})
        )
        with pytest.raises(Unschedulable, match="no node could take a VM of this pool") as refused:
            await put_pool(db, gateway, "web", spec())
        assert [problem.message for problem in refused.value.problems] == [
            "node-1: CPUs: 4 free of 4, 9 needed",
            "node-2: CPUs: 8 free of 8, 9 needed",
        ]
        assert await scalar(db, "SELECT count(*) FROM pool") == 0
        allowed = await put_pool(db, gateway, "web", spec(allow_unschedulable=True))
        assert allowed.pool.name == "web"

    async def test_one_that_only_has_to_wait_is_taken(self, db, gateway):
        gateway.demands = VM
        await show(db, replace(NODE, used={"cpu": 4000}, cordoned=True))
        assert (await put_pool(db, gateway, "web", spec(size=4))).pool.spec.size == 4

    async def test_one_whose_size_never_fits_is_refused_and_told_how_many_fit(self, db, gateway):
        gateway.demands = VM
        await show(db, NODE)
        with pytest.raises(Unschedulable, match="at most 4 of the 5 VMs of this pool fit on these nodes") as refused:
            await put_pool(db, gateway, "web", spec(size=5))
        assert [(problem.field, problem.message) for problem in refused.value.problems] == [
            ("size", "5 are asked for, and at most 4 fit on these nodes"),
            ("placement", "node-1: takes 4, and for one more CPUs: 0 free of 4, 1 needed"),
        ]
        assert (await put_pool(db, gateway, "web", spec(size=4, max_vms=40))).pool.spec.size == 4

    async def test_what_was_taken_may_be_changed_in_all_but_what_asks_for_more(self, db, gateway):
        gateway.demands = VM
        await put_pool(db, gateway, "web", spec(size=9))  # while nobody knows
        await show(db, NODE)
        await put_pool(db, gateway, "web", spec(size=9))
        await put_pool(db, gateway, "web", spec(size=8, min_available=2))
        for more in (spec(size=9), spec(size=8, template={"image": "another"})):
            with pytest.raises(Unschedulable):
                await put_pool(db, gateway, "web", more)
        await put_pool(db, gateway, "web", spec(size=9, allow_unschedulable=True))
        with pytest.raises(Unschedulable):
            await put_pool(db, gateway, "web", spec(size=9))
        await put_pool(db, gateway, "web", spec(size=3))

    async def test_where_nobody_knows_it_is_taken(self, db, gateway):
        gateway.demands = HUGE
        assert (await put_pool(db, gateway, "web", spec())).pool.name == "web"


class TestChecking:
    async def check(self, db, demand, count=1):
        async with db.begin() as tx:
            return await check_fit(tx, demand, count)

    async def test_it_counts_what_fits_now(self, db):
        await show(db, NODE)
        assert (await self.check(db, VM, 4)).fits is True
        five = await self.check(db, VM, 5)
        assert (five.fits, five.fit.now, five.fit.ever) == (False, 4, 4)
        assert five.fit.missing == ("node-1: takes 4, and for one more CPUs: 0 free of 4, 1 needed",)

    async def test_it_says_what_it_cannot_know(self, db):
        unwatched = await self.check(db, VM)
        assert unwatched.fits is None
        assert unwatched.unseen[0].startswith("nodes are not watched")
        await show(db, NODE)
        assert (await self.check(db, None)).unseen[0].startswith("an instance type")
        query = "UPDATE watch SET heard_at = now() - interval '1 hour', broken_since = now(), broken_reason = 'cut'"
        await execute(db, query)
        assert (await self.check(db, VM)).unseen == ("nodes were last observed 3600 s ago: cut",)

    async def test_pods_that_are_hidden_are_told(self, db):
        await show(db, replace(NODE, used=None))
        async with db.begin() as tx:
            await watches.write_broken(tx, nodes.PODS_WATCH, holder="one", reason="pods is forbidden")
            assert (await nodes_status(tx)).pods_hidden == "pods is forbidden"
        answer = await self.check(db, VM)
        assert (answer.fits, answer.unseen) == (True, ("what runs on the nodes cannot be seen, and counts as nothing",))
