"""A small model of one pool and its cluster, to run plans in: each move is what a use case or a worker does to the rows.

It knows the rules that the rows keep (a waiting claim is served when a VM becomes ready, a worker's lease guards its VM) and
nothing of how a plan is made.
"""

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count

from app.domain.planning import InFlightVm, Plan, PoolSnapshot, ReadyVm, plan


@dataclass
class Vm:
    id: uuid.UUID
    revision: int
    created_at: datetime
    state: str = "planned"
    asked: bool = False
    ready_at: datetime | None = None


@dataclass
class World:
    size: int = 3
    min_available: int = 0
    auto_replenish: bool = True
    max_vms: int | None = None
    max_concurrent_creates: int = 3
    max_ready_age: timedelta | None = None
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    revision: int = 1
    vms: list[Vm] = field(default_factory=list)
    waiting: int = 0
    drained: int = 0
    paused: bool = False
    deleting: bool = False
    stalled: bool = False
    backoff_until: datetime | None = None
    _numbers: "count[int]" = field(default_factory=lambda: count(1))

    def of(self, *states):
        return [vm for vm in self.vms if vm.state in states]

    def snapshot(self):
        return PoolSnapshot(
            size=self.size,
            min_available=self.min_available,
            auto_replenish=self.auto_replenish,
            max_vms=self.max_vms,
            max_concurrent_creates=self.max_concurrent_creates,
            max_ready_age=self.max_ready_age,
            ready=tuple(
                ReadyVm(vm.id, vm.ready_at, vm.revision == self.revision) for vm in self.of("ready") if vm.ready_at
            ),
            in_flight=tuple(
                InFlightVm(vm.id, vm.created_at, vm.revision == self.revision, vm.asked, vm.state == "creating")
                for vm in self.of("planned", "creating", "booting")
            ),
            claimed=len(self.of("claimed")),
            leaving=len(self.of("releasing")),
            waiting=self.waiting,
            drained=0 if self.auto_replenish else self.drained,
            paused=self.paused,
            deleting=self.deleting,
            stalled=self.stalled,
            backoff_until=self.backoff_until,
        )

    def execute(self) -> tuple[PoolSnapshot, Plan]:
        """One look of the planner: what it saw, and what it did."""
        before = self.snapshot()
        step = plan(before, self.now)
        by_id = {vm.id: vm for vm in self.vms}
        for vm_id in step.remove:
            assert by_id[vm_id].state == "ready", "only a ready VM can be removed"
            by_id[vm_id].state = "releasing"
        for vm_id in step.cancel:
            vm = by_id[vm_id]
            assert vm.state in {"planned", "booting"}, "a VM that a worker is at cannot be cancelled"
            vm.state = "deleted" if vm.state == "planned" else "releasing"
        for _ in range(step.create):
            self.vms.append(Vm(uuid.UUID(int=next(self._numbers)), self.revision, self.now))
        self.vms = [vm for vm in self.vms if vm.state != "deleted"]
        return before, step

    def claim(self):
        found = sorted(self.of("ready"), key=lambda vm: vm.ready_at)
        if found:
            found[0].state = "claimed"
            self.drained += 1
        else:
            self.waiting += 1

    def give_up_waiting(self):
        self.waiting = max(0, self.waiting - 1)

    def release(self):
        for vm in self.of("claimed")[:1]:
            vm.state = "releasing"

    def let_go(self):
        for vm in self.of("releasing")[:1]:
            self.vms.remove(vm)

    def ask(self):
        for vm in self.of("planned")[:1]:
            if not vm.asked:
                vm.revision = self.revision  # what has not been asked for is made from the template of that moment
            vm.state, vm.asked = "creating", True

    def put_off(self):
        for vm in self.of("creating")[:1]:
            vm.state = "planned"

    def answer(self):
        for vm in self.of("creating")[:1]:
            vm.state = "booting"

    def boot(self):
        for vm in self.of("booting")[:1]:
            self.backoff_until, self.stalled = None, False
            if self.waiting and not self.deleting:
                self.waiting -= 1
                self.drained += 1
                vm.state = "claimed"
            else:
                vm.state, vm.ready_at = "ready", self.now

    def fail(self, *, backoff_seconds, stalls):
        for vm in self.of("creating", "booting")[:1]:
            vm.state = "releasing"
            self.backoff_until = self.now + timedelta(seconds=backoff_seconds)
            self.stalled = self.stalled or stalls

    def die(self):
        for vm in self.of("ready")[:1]:
            vm.state = "releasing"

    def edit(self, **changes):
        """An edit closes the breaker; the floor stays within the size, and the size within max_vms."""
        for name, value in changes.items():
            setattr(self, name, value)
        self.min_available = min(self.min_available, self.size)
        if self.max_vms is not None:
            self.max_vms = max(self.max_vms, self.size)
        self.stalled, self.backoff_until, self.drained = False, None, 0

    def pass_time(self, seconds):
        self.now += timedelta(seconds=seconds)

    def settle(self, *, rounds):
        """Everything goes well from here on. Gives how many rounds it took until the planner had nothing more to do."""
        self.paused = self.stalled = False
        self.backoff_until = None
        for number in range(rounds):
            _, step = self.execute()
            if step.is_idle and not self.of("planned", "creating", "booting", "releasing"):
                return number
            for _ in range(len(self.vms)):
                self.ask()
                self.answer()
                self.boot()
                self.let_go()
        return None
