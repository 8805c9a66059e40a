"""Plans, executed in a model with everything that can happen in between, in any order: what must hold always, does."""

from datetime import timedelta

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.domain.planning import plan
from tests.support.planning_world import World

SIZES = st.integers(0, 6)
CAPS = st.one_of(st.none(), st.integers(0, 9))
TIMES = st.integers(1, 4)


class PlannedPool(RuleBasedStateMachine):
    """Every rule is one thing that happens to a pool; `look` is the planner's turn."""

    @initialize(
        size=SIZES, floor=SIZES, cap=CAPS, pace=st.integers(1, 4), replenishes=st.booleans(), ages=st.booleans()
    )
    def begin(self, size, floor, cap, pace, replenishes, ages):
        self.world = World(max_concurrent_creates=pace, auto_replenish=replenishes)
        self.world.max_ready_age = timedelta(minutes=5) if ages else None
        self.world.edit(size=size, min_available=floor, max_vms=cap)

    @rule()
    def look(self):
        world = self.world
        claimed = {vm.id for vm in world.of("claimed")}
        before, step = world.execute()
        assert claimed <= {vm.id for vm in world.of("claimed")}, "a claimed VM was touched"
        if step.remove and not world.deleting:
            assert len(before.ready) - len(step.remove) >= world.min_available, "the floor was broken"
        if step.create:
            if world.max_vms is not None:
                assert len(world.vms) <= world.max_vms, "more VMs than max_vms"
            on_their_way = len(world.of("planned", "creating", "booting"))
            assert on_their_way <= world.max_concurrent_creates, "more on their way than max_concurrent_creates"
            unclaimed = on_their_way + len(world.of("ready"))
            surge = max(1, world.size // 4)
            assert unclaimed <= world.size + world.waiting + surge, "more VMs than the size and a rotation's surge"
        if world.paused or world.stalled or world.deleting:
            assert step.create == 0
        if not (step.cancel or step.remove):  # what leaves makes room for more, within the bounds above
            assert plan(world.snapshot(), world.now).create == 0, "planning twice created twice"

    @rule(times=TIMES)
    def claim(self, times):
        for _ in range(times):
            self.world.claim()

    @rule()
    def give_up_waiting(self):
        self.world.give_up_waiting()

    @rule(times=TIMES)
    def release(self, times):
        for _ in range(times):
            self.world.release()

    @rule(times=TIMES)
    def let_go(self, times):
        for _ in range(times):
            self.world.let_go()

    @rule(times=TIMES)
    def ask(self, times):
        for _ in range(times):
            self.world.ask()

    @rule(times=TIMES)
    def answer(self, times):
        for _ in range(times):
            self.world.answer()

    @rule(times=TIMES)
    def boot(self, times):
        for _ in range(times):
            self.world.boot()

    @rule()
    def put_off(self):
        self.world.put_off()

    @rule(seconds=st.integers(1, 60), stalls=st.booleans())
    def fail(self, seconds, stalls):
        self.world.fail(backoff_seconds=seconds, stalls=stalls)

    @rule()
    def die(self):
        self.world.die()

    @rule()
    def change_template(self):
        self.world.edit(revision=self.world.revision + 1)

    @rule(size=SIZES, floor=SIZES, cap=CAPS, replenishes=st.booleans())
    def edit(self, size, floor, cap, replenishes):
        self.world.edit(size=size, min_available=floor, max_vms=cap, auto_replenish=replenishes)

    @rule()
    def pause_or_go_on(self):
        self.world.paused = not self.world.paused

    @rule()
    def replenish(self):
        self.world.drained = 0

    @rule(seconds=st.integers(1, 400))
    def pass_time(self, seconds):
        self.world.pass_time(seconds)

    @invariant()
    def nothing_urgent_is_hidden(self):
        if hasattr(self, "world"):
            given = self.world.snapshot()
            if not given.deleting:
                assert plan(given, self.world.now).urgent == (len(given.ready) < given.min_available)

    def teardown(self):
        """From wherever this ended: once everything goes well the pool comes to its target, in a bounded number of rounds."""
        if not hasattr(self, "world"):
            return
        world = self.world
        before = world.snapshot()
        vms = len(world.vms) + world.size + world.waiting
        assert world.settle(rounds=3 * vms + 10) is not None, f"does not converge: {before}"
        claimed, ready = len(world.of("claimed")), world.of("ready")
        room = None if world.max_vms is None else max(0, world.max_vms - claimed)
        if world.waiting:
            assert room is not None, "a claim waits, and there is room"
            assert room <= 0, "a claim waits, and there is room"
        want = world.size if world.auto_replenish else max(0, world.size - world.drained)
        expected = want if room is None else min(want, room)
        # A floor above what max_vms has room for is kept: nobody removes below it, and nobody creates above the cap.
        assert len(ready) == expected or expected < len(ready) <= world.min_available, f"{before} -> {world.snapshot()}"
        if len(ready) > world.min_available:
            aged = world.max_ready_age
            assert all(vm.revision == world.revision for vm in ready), f"old templates stay: {before}"
            assert aged is None or all(world.now - vm.ready_at < aged for vm in ready), f"aged VMs stay: {before}"

        world.deleting, world.waiting = True, 0
        assert world.settle(rounds=5) is not None
        assert not world.of("planned", "creating", "booting", "ready", "releasing")
        assert len(world.of("claimed")) == claimed, "the claimed VMs of a deleted pool are kept"


TestPlannedPool = PlannedPool.TestCase
TestPlannedPool.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_a_rotation_ends_where_max_vms_is_the_size_and_the_floor_below_it():
    world = World(size=5, min_available=2, max_vms=5, max_concurrent_creates=2)
    assert world.settle(rounds=20) is not None
    world.edit(revision=2)
    fewest = []
    for _ in range(40):
        _, step = world.execute()
        fewest.append(len(world.of("ready")))
        world.ask()
        world.answer()
        world.boot()
        world.let_go()
        if step.is_idle and not world.of("planned", "creating", "booting", "releasing"):
            break
    assert [vm.revision for vm in world.of("ready")] == [2] * 5
    assert min(fewest) >= 2
