"""Whether VMs fit on the nodes as they were seen last: for people who ask, for pools that are written, and for planning.

Nothing here ever holds up what it cannot judge. Where nodes are not seen, or were seen too long ago, where an instance type
decides what a VM costs, the answer is that nothing is known, and VMs are made as if they fitted: the scheduler decides.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.cluster.gateway import Gateway, Manifest
from app.domain.capacity import Fit, emptied, fit, take_places, tell
from app.domain.nodes import Demand, Node
from app.errors import FieldProblem, Unschedulable
from app.store import nodes as node_rows
from app.store import pools as pool_rows
from app.store import watches
from app.store.database import Tx
from app.store.rows import PoolRow

FACTS_SECONDS = 60.0
"""What was seen of the nodes counts for so long after the last sign of life from whoever watches them."""
_EVER_SECONDS = 10.0
_REMEMBERED = 500
_TOLD = 20
NOT_WATCHED = "nodes are not watched: EMBERPOOL_WATCH_NODES is off, or no worker runs yet"


@dataclass(frozen=True, slots=True)
class Sight:
    """How nodes are seen. `blind`: why nothing can be said of them, in words; None: they are seen well enough.

    `pods_hidden`: why what runs on them is not known. `age_seconds`: since the watch last gave a sign of life.
    """

    blind: str | None
    pods_hidden: str | None = None
    age_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """`fits` None: nothing is known, for the reason in `unseen`. `fit` None: likewise."""

    fits: bool | None
    fit: Fit | None
    demand: Demand | None
    sight: Sight
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Room:
    """How many more VMs of a pool the nodes take now, beside all that is on its way; None: nothing is known, or nobody is to
    wait for it. `note` says so in words, `unfit` why not one could ever be taken; `notes` are of interest whatever is done.
    """

    count: int | None = None
    note: str = ""
    unfit: str | None = None
    notes: tuple[str, ...] = ()


async def see(tx: Tx) -> Sight:
    """How nodes are seen at this moment."""
    state = await watches.get(tx, node_rows.WATCH)
    if state is None:
        return Sight(NOT_WATCHED)
    if state.age_seconds is None:
        return Sight(f"nodes could not be listed yet: {state.broken_reason}")
    pods = await watches.get(tx, node_rows.PODS_WATCH)
    hidden = pods.broken_reason if pods is not None else None
    if state.age_seconds > FACTS_SECONDS:
        why = f": {state.broken_reason}" if state.broken_reason else ""
        blind = f"nodes were seen {state.age_seconds:.0f} s ago for the last time{why}"
        return Sight(blind, hidden, state.age_seconds)
    return Sight(None, hidden, state.age_seconds)


async def check_fit(tx: Tx, demand: Demand | None, count: int) -> Answer:
    """Whether `count` VMs fit now."""
    sight = await see(tx)
    if demand is None:
        unknown = ("an instance type or a preference decides what the VM asks for, and is not read here",)
        return Answer(None, None, None, sight, unknown)
    if sight.blind is not None:
        return Answer(None, None, demand, sight, (sight.blind, *demand.unseen))
    found = fit(await node_rows.read_all(tx), demand)
    return Answer(found.now >= count, found, demand, sight, found.unseen)


async def require_fit(tx: Tx, demand: Demand | None, *, of_pool: bool = True) -> None:
    """Raises Unschedulable where no node could take one such VM, even with nothing else on it."""
    if demand is None or (await see(tx)).blind is not None:
        return
    nodes = await node_rows.read_all(tx)
    if fit(nodes, demand).ever:
        return
    missing = fit(emptied(nodes), demand).missing
    raise Unschedulable(
        f"no node could take {'a VM of this pool' if of_pool else 'this VM'}, even with nothing else on it: {tell(missing)}. Ask "
        f"for less, or for what the nodes have{'; allow_unschedulable takes the pool all the same' if of_pool else ''}",
        problems=[FieldProblem("placement", words) for words in missing[:_TOLD]],
    )


@dataclass(frozen=True, slots=True)
class _Ever:
    """How many VMs fit on the nodes with nothing else on them, as it was at some time of the process's clock."""

    at: float
    count: int
    unfit: str | None


class Placing:
    """One process's view of the nodes, for planning: what it has read it keeps, and reads only what is newer."""

    def __init__(self, gateway: Gateway, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._gateway = gateway
        self._clock = clock
        self._nodes: dict[str, Node] = {}
        self._version = 0
        self._demands: dict[str, Demand | None] = {}
        self._ever: dict[str, _Ever] = {}

    async def look(self, tx: Tx, pool: PoolRow, *, wants_more: bool) -> Room:
        """How many more VMs of the pool there is room for; `wants_more` False: only whether one could ever be taken, as it was
        found a moment ago.
        """
        demand = self._demand_of(pool.revision, pool.vm_spec)
        if demand is None or pool.deleting_at is not None:
            return Room()
        if not wants_more and (known := self._known(pool.revision)) is not None:
            return Room(unfit=known.unfit, notes=_outgrown(pool, known.count))
        if (await see(tx)).blind is not None:
            self._ever.pop(pool.revision, None)
            return Room()
        await self._refresh(tx)
        nodes = list(self._nodes.values())
        left = take_places(nodes, await self._on_their_way(tx, nodes)) if wants_more else nodes
        found = fit(left, demand)
        ever = self._remember(pool.revision, nodes, found.ever, demand)
        notes = _outgrown(pool, ever.count)
        if not wants_more or pool.spec.allow_unschedulable:
            return Room(unfit=ever.unfit, notes=notes)
        note = (
            f"the nodes have room for {found.now} more VMs of this pool at the moment ({tell(found.missing)}); more are made as "
            "soon as there is more"
        )
        return Room(count=found.now, note=note, unfit=ever.unfit, notes=notes)

    async def _refresh(self, tx: Tx) -> None:
        newer = await node_rows.read_newer(tx, self._version)
        kept = {name: node for name, node in self._nodes.items() if name in newer.names}
        self._nodes = {**kept, **{node.name: node for node in newer.changed}}
        self._version = newer.version

    def _demand_of(self, revision: str, spec: Manifest) -> Demand | None:
        if revision not in self._demands:
            _forget_oldest(self._demands)
            self._demands[revision] = self._gateway.demand(spec)
        return self._demands[revision]

    def _known(self, revision: str) -> "_Ever | None":
        known = self._ever.get(revision)
        return known if known is not None and self._clock() - known.at < _EVER_SECONDS else None

    def _remember(self, revision: str, nodes: list[Node], count: int, demand: Demand) -> "_Ever":
        unfit = None
        if not count:
            missing = tell(fit(emptied(nodes), demand).missing)
            unfit = f"no node could take a VM of it, even with nothing else on it: {missing}"
        _forget_oldest(self._ever)
        self._ever[revision] = _Ever(self._clock(), count, unfit)
        return self._ever[revision]

    async def _on_their_way(self, tx: Tx, nodes: list[Node]) -> list[tuple[Demand, int]]:
        """What VMs of every pool will ask for that are on no node yet: their room is taken already."""
        found = []
        placed = [UUID(vm_id) for node in nodes for vm_id in node.vms]
        for group in await node_rows.unplaced(tx, placed, seconds=FACTS_SECONDS):
            if group.revision not in self._demands:
                pool = await pool_rows.get_by_id(tx, group.pool_id)
                if pool is None:
                    continue
                self._demand_of(group.revision, pool.vm_spec)
            demand = self._demands[group.revision]
            if demand is not None:
                found.append((demand, group.count))
        return found


def _outgrown(pool: PoolRow, ever: int) -> tuple[str, ...]:
    if not 0 < ever < pool.spec.size:
        return ()
    return (
        f"at most {ever} VMs of it fit on these nodes, even with nothing else on them; its size is {pool.spec.size}",
    )


def _forget_oldest(kept: dict[str, Any]) -> None:
    """Before one more is kept."""
    while len(kept) >= _REMEMBERED:
        kept.pop(next(iter(kept)))
