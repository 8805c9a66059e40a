"""Whether VMs fit on the nodes as last observed: for clients that ask, for pools that are written, and for planning.

What is unknown holds nothing up. If the nodes are not observed, if the last observation is too old, or if an instance type decides
what a VM needs, the answer is that nothing is known, and VMs are created as if they fit: the scheduler decides.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from app.compute.gateway import Gateway
from app.domain.capacity import Fit, emptied, fit, take_places, tell
from app.domain.nodes import Demand, Node
from app.domain.templates import VmSpec
from app.errors import FieldProblem, Unschedulable
from app.store import nodes as node_rows
from app.store import watch_state as watches
from app.store.database import Tx
from app.store.pools import rows as pool_rows
from app.store.rows import PoolRow

FACTS_SECONDS = 60.0
"""How long observations of nodes count after the last sign of life of the watch."""
_EVER_SECONDS = 10.0
_GOING_SECONDS = 1.0
_REMEMBERED = 4000
_TOLD = 20
NOT_WATCHED = "nodes are not watched: EMBERPOOL_WATCH_NODES is off, or no worker runs yet"


@dataclass(frozen=True, slots=True)
class NodesStatus:
    """How current the observations of nodes are. `stale_reason`: why they are stale or missing; None if they are current.

    `pods_hidden`: why the pods on the nodes cannot be read. `age_seconds`: since the last sign of life of the watch.
    """

    stale_reason: str | None
    pods_hidden: str | None = None
    age_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """`fits` and `fit` are None if nothing is known; `unseen` says why."""

    fits: bool | None
    fit: Fit | None
    demand: Demand | None
    status: NodesStatus
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Room:
    """How many more VMs of a pool fit now, after all VMs that are being created; None if that is unknown or does not matter.

    `note` says it in words. `capacity_problem`: why the nodes could never take as many VMs as the pool's size. `never_fits`: they
    could not even take one.
    """

    count: int | None = None
    note: str = ""
    capacity_problem: str | None = None
    never_fits: bool = False


async def nodes_status(tx: Tx) -> NodesStatus:
    """How current the observations of nodes are now."""
    state = await watches.get(tx, node_rows.WATCH)
    if state is None:
        return NodesStatus(NOT_WATCHED)
    if state.age_seconds is None:
        return NodesStatus(f"nodes could not be listed yet: {state.broken_reason}")
    pods = await watches.get(tx, node_rows.PODS_WATCH)
    hidden = pods.broken_reason if pods is not None else None
    if state.age_seconds > FACTS_SECONDS:
        why = f": {state.broken_reason}" if state.broken_reason else ""
        stale = f"nodes were last observed {state.age_seconds:.0f} s ago{why}"
        return NodesStatus(stale, hidden, state.age_seconds)
    return NodesStatus(None, hidden, state.age_seconds)


async def check_fit(tx: Tx, demand: Demand | None, count: int) -> Answer:
    """Whether `count` VMs fit now."""
    status = await nodes_status(tx)
    if demand is None:
        unknown = ("an instance type or a preference decides what the VM needs, and the service does not read it",)
        return Answer(None, None, None, status, unknown)
    if status.stale_reason is not None:
        return Answer(None, None, demand, status, (status.stale_reason, *demand.unseen))
    found = fit(await node_rows.read_all(tx), demand)
    return Answer(found.now >= count, found, demand, status, found.unseen)


async def require_fit(tx: Tx, demand: Demand | None, count: int = 1, *, of_pool: bool = True) -> None:
    """Raises Unschedulable if the nodes could never take `count` such VMs, even with nothing else on them."""
    if demand is None or (await nodes_status(tx)).stale_reason is not None:
        return
    nodes = await node_rows.read_all(tx)
    ever = fit(nodes, demand).ever
    if ever >= count:
        return
    missing = fit(emptied(nodes), demand).missing
    problems = [FieldProblem("placement", words) for words in missing[:_TOLD]]
    if ever:
        what = f"at most {ever} of the {count} VMs of this pool fit on these nodes, even with nothing else on them"
        advice = "Ask for fewer, for less"
        problems.insert(0, FieldProblem("size", f"{count} are asked for, and at most {ever} fit on these nodes"))
    else:
        what = f"no node could take {'a VM of this pool' if of_pool else 'this VM'}, even with nothing else on it"
        advice = "Ask for less"
    raise Unschedulable(
        f"{what}: {tell(missing)}. {advice}, or for what the nodes have; allow_unschedulable accepts "
        f"{'the pool' if of_pool else 'the VM'} anyway",
        problems=problems,
    )


@dataclass(frozen=True, slots=True)
class NodeChanges:
    """`going`: the names of nodes that are going since, or no longer. `came_or_left`: whether a node is new or is no more."""

    going: frozenset[str] = frozenset()
    came_or_left: bool = False


@dataclass(frozen=True, slots=True)
class _Ever:
    """How many VMs fitted on the empty nodes at time `at` of the process's clock, and what was missing if they were too few."""

    at: float
    count: int
    missing: str

    def room(self, size: int) -> Room:
        """What it says about a pool of this size."""
        problem = None
        if not self.count:
            problem = f"no node could take a VM of it, even with nothing else on it: {self.missing}"
        elif self.count < size:
            fitting = f"at most {self.count} of its {size} VMs fit on these nodes"
            problem = f"{fitting}, even with nothing else on them: {self.missing}"
        return Room(capacity_problem=problem, never_fits=not self.count)


class Placing:
    """A process's copy of the nodes for planning. It reads only nodes that changed since the last read."""

    def __init__(self, gateway: Gateway, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._gateway = gateway
        self._clock = clock
        self._nodes: dict[str, Node] = {}
        self._version = 0
        self._demands: dict[str, Demand | None] = {}
        self._ever: dict[str, _Ever] = {}
        self._same: dict[str, Demand] = {}
        self._going: tuple[Node, ...] | None = None
        self._going_at: float | None = None
        self._told_going: dict[str, object] = {}
        self._told_names: frozenset[str] | None = None
        self._status: NodesStatus | None = None
        self._left: list[Node] | None = None

    def begin(self) -> None:
        """Forgets what `look` has read: the next pools are planned in another transaction."""
        self._status = self._left = None

    def note_created(self, pool: PoolRow, count: int) -> None:
        """VMs of the pool are about to be planned: the pools after it, up to the next `begin`, find their room taken."""
        demand = self._demand_of(pool.revision, pool.vm_spec)
        if self._left is not None and demand is not None:
            self._left = take_places(self._left, [(demand, count)])

    async def look(self, tx: Tx, pool: PoolRow, *, wants_more: bool) -> Room:
        """How many more VMs of the pool fit. With `wants_more` False: only whether its size could ever fit, from a recent result."""
        demand = self._demand_of(pool.revision, pool.vm_spec)
        if demand is None or pool.deleting_at is not None:
            return Room()
        size = max(1, pool.spec.size)
        if not wants_more and (known := self._known(pool.revision, size)) is not None:
            return known.room(size)
        if self._status is None:
            self._status = await nodes_status(tx)
        if self._status.stale_reason is not None:
            self._ever.pop(pool.revision, None)
            return Room()
        if wants_more and self._left is None:
            # Before the nodes: what gets its pod in between is then counted twice for a moment, and not overlooked.
            coming = await self._on_their_way(tx)
            await self._refresh(tx)
            self._left = take_places(list(self._nodes.values()), coming)
        elif not wants_more:
            await self._refresh(tx)
        nodes = list(self._nodes.values())
        found = fit(self._left if wants_more and self._left is not None else nodes, demand)
        ever = self._remember(pool.revision, nodes, found.ever, demand, size).room(size)
        if not wants_more or pool.spec.allow_unschedulable:
            return ever
        note = (
            f"the nodes have room for {found.now} more VMs of this pool at the moment ({tell(found.missing)}); more are created as "
            "soon as there is room"
        )
        return replace(ever, count=found.now, note=note)

    async def going(self, tx: Tx, pool: PoolRow) -> frozenset[str] | None:
        """The nodes that are going, for VMs of the pool; None: that is not known. From a look of less than a second ago."""
        if self._going_at is None or self._clock() - self._going_at >= _GOING_SECONDS:
            self._going_at = self._clock()
            self._going = None
            if (await nodes_status(tx)).stale_reason is None:
                await self._refresh(tx)
                self._going = tuple(node for node in self._nodes.values() if node.may_be_going)
        if not self._going:
            return self._going if self._going is None else frozenset()
        tolerations = self._gateway.tolerations(pool.vm_spec)
        return frozenset(node.name for node in self._going if node.is_going_for(tolerations))

    async def changes(self, tx: Tx) -> NodeChanges:
        """What has changed of the nodes since the last call, as far as it matters to pools that are full."""
        if (await nodes_status(tx)).stale_reason is not None:
            return NodeChanges()
        await self._refresh(tx)
        going: dict[str, object] = {
            node.name: (node.cordoned, node.taints) for node in self._nodes.values() if node.may_be_going
        }
        changed = {name for name in (*going, *self._told_going) if going.get(name) != self._told_going.get(name)}
        names, before = frozenset(self._nodes), self._told_names
        self._told_going, self._told_names = going, names
        return NodeChanges(frozenset(changed), before is not None and names != before)

    async def _refresh(self, tx: Tx) -> None:
        newer = await node_rows.read_newer(tx, self._version)
        kept = {name: node for name, node in self._nodes.items() if name in newer.names}
        self._nodes = {**kept, **{node.name: node for node in newer.changed}}
        self._version = newer.version

    def _demand_of(self, revision: str, spec: VmSpec) -> Demand | None:
        if revision not in self._demands:
            _forget_oldest(self._demands)
            demand = self._gateway.demand(spec)
            # One object for equal demands, so that the VMs of many pools are placed together.
            self._demands[revision] = demand and self._same.setdefault(repr(demand), demand)
        return self._demands[revision]

    def _known(self, revision: str, size: int) -> "_Ever | None":
        known = self._ever.get(revision)
        if known is None or self._clock() - known.at >= _EVER_SECONDS:
            return None
        return known if known.missing or known.count >= size else None

    def _remember(self, revision: str, nodes: list[Node], count: int, demand: Demand, size: int) -> "_Ever":
        missing = tell(fit(emptied(nodes), demand).missing) if count < size else ""
        _forget_oldest(self._ever)
        self._ever[revision] = _Ever(self._clock(), count, missing)
        return self._ever[revision]

    async def _on_their_way(self, tx: Tx) -> list[tuple[Demand, int]]:
        """The demand of VMs of any pool that have no node yet: their room is already taken."""
        groups = await node_rows.unplaced(tx, seconds=FACTS_SECONDS)
        unknown = {group.pool_id for group in groups if group.revision not in self._demands}
        for pool in (await pool_rows.by_ids(tx, sorted(unknown))).values() if unknown else ():
            self._demand_of(pool.revision, pool.vm_spec)
        found: dict[int, tuple[Demand, int]] = {}
        for group in groups:
            demand = self._demands.get(group.revision)
            if demand is not None:
                _, count = found.get(id(demand), (demand, 0))
                found[id(demand)] = (demand, count + group.count)
        return list(found.values())


def _forget_oldest(kept: dict[str, Any]) -> None:
    """Makes room for one more entry."""
    while len(kept) >= _REMEMBERED:
        kept.pop(next(iter(kept)))
