"""Whether VMs fit on nodes, on which, how many, and what is missing, in words. Pure.

It computes what kube-scheduler's filters for labels, taints and resources of nodes decide, and ignores its preferences. There are
two separate questions. *Now*: with the pods that run on the nodes, and without nodes that are cordoned or not ready. *Ever*: with
nothing else on the nodes, and without their temporary states; a VM that does not fit then cannot run on this cluster.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from app.domain.nodes import CORDON, CPU, DEVICES, HUGEPAGES, MEMORY, PAGE_BYTES, PODS, SCHEDULABLE, Demand, Node, Taint
from app.domain.placement import in_words

_MANY = 1_000_000
"""More VMs than any node takes: the answer for a VM that requests nothing that is counted."""
_TOLD = 20


@dataclass(frozen=True, slots=True)
class NodeFit:
    """One node. `now` and `ever`: how many VMs it takes, as above. `missing`: why it does not take one more now, in words."""

    node: str
    now: int
    ever: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fit:
    """All nodes, by name. `unseen`: what was not compared, in words; a VM may not fit because of it."""

    nodes: tuple[NodeFit, ...]
    unseen: tuple[str, ...] = ()

    @property
    def now(self) -> int:
        return sum(each.now for each in self.nodes)

    @property
    def ever(self) -> int:
        return sum(each.ever for each in self.nodes)

    @property
    def missing(self) -> tuple[str, ...]:
        """Why each node does not take one more, such as `node-2: 1Gi hugepages: 4 free of 8, 6 needed`."""
        if not self.nodes:
            return ("the cluster has no nodes",)
        return tuple(
            f"{each.node}: {f'takes {each.now}, and for one more ' if each.now else ''}{', '.join(each.missing)}"
            for each in self.nodes
        )


def fit(nodes: Iterable[Node], demand: Demand) -> Fit:
    """How many VMs with this demand fit."""
    ordered = sorted(nodes, key=lambda node: node.name)
    return Fit(tuple(_fit_one(node, demand) for node in ordered), (*demand.unseen, *_unseen(ordered)))


def fits_on(node: Node, demand: Demand) -> int:
    """How many fit on one node now."""
    return 0 if _closed(node, demand) or _bars(node, demand) else _room(node, demand)


def take_places(nodes: Sequence[Node], demands: Iterable[tuple[Demand, int]]) -> list[Node]:
    """The nodes after placing the given number of VMs of each demand, each VM on the node with the most room for it.

    VMs that fit nowhere are not placed.
    """
    left = list(nodes)
    for demand, count in demands:
        rooms = [(-room, index, 0) for index, node in enumerate(left) if (room := fits_on(node, demand))]
        heapq.heapify(rooms)
        for _ in range(count):
            if not rooms or not rooms[0][0]:
                break
            room, index, taken = rooms[0]
            heapq.heapreplace(rooms, (room + 1, index, taken + 1))
        for _, index, taken in rooms:
            if taken:
                left[index] = _with(left[index], demand, taken)
    return left


def emptied(nodes: Iterable[Node]) -> list[Node]:
    """The same nodes without pods and without temporary states. A VM that does not fit on these never fits."""
    return [
        replace(
            node,
            used={},
            cordoned=False,
            taints=tuple(taint for taint in node.taints if not taint.is_passing),
            labels={**node.labels, SCHEDULABLE: "true"},
        )
        for node in nodes
    ]


def has_more_room(before: Node | None, after: Node) -> bool:
    """Whether a VM may fit that did not fit before: the node is new, has more free, or has other labels or taints."""
    if before is None or before.uid != after.uid:
        return True
    told = attrgetter("labels", "taints", "cordoned", "is_ready")
    if told(before) != told(after):
        return True
    return any(after.free(name) > before.free(name) for name in after.allocatable)


def tell(missing: Sequence[str]) -> str:
    """Joins the reasons to a part of a sentence, and cuts a long list."""
    told = "; ".join(missing[:_TOLD])
    return told if len(missing) <= _TOLD else f"{told}; and {len(missing) - _TOLD} more nodes likewise"


def _unseen(nodes: Sequence[Node]) -> tuple[str, ...]:
    found = []
    if any(node.used is None for node in nodes):
        found.append("what runs on the nodes cannot be seen, and counts as nothing")
    repelling = [node.name for node in nodes if node.repels]
    if repelling:
        named = ", ".join(repelling[:_TOLD]) + (f" and {len(repelling) - _TOLD} more" if len(repelling) > _TOLD else "")
        found.append(f"required pod anti-affinity of pods on {named} is not compared, and may keep a VM away")
    return tuple(found)


def _fit_one(node: Node, demand: Demand) -> NodeFit:
    bars = _bars(node, demand)
    closed = _closed(node, demand)
    ever = 0 if bars else _room(replace(node, used={}), demand)
    now = 0 if bars or closed else _room(node, demand)
    full = _with(node, demand, now) if now else node
    return NodeFit(node.name, now, ever, (*bars, *closed, *_shortages(full, demand.amounts)))


def _with(node: Node, demand: Demand, count: int) -> Node:
    """The node with that many VMs of the demand added."""
    used = dict(node.used or {})
    for name, amount in demand.amounts.items():
        used[name] = used.get(name, 0) + count * amount
    return replace(node, used=used)


def _bars(node: Node, demand: Demand) -> tuple[str, ...]:
    """Why the node never takes the VM: permanent properties of the node."""
    labels = [
        f"label {key} is {node.labels[key]!r}, {value!r} needed"
        if key in node.labels
        else f"label {key}={value} needed"
        for key, value in sorted(demand.selector.items())
        if key != SCHEDULABLE and node.labels.get(key) != value
    ]
    terms = [] if demand.accepts_terms(node) else ["no term of the node affinity holds"]
    taints = [
        f"taint {_write(taint)} is not tolerated" for taint in demand.untolerated(node.taints) if not taint.is_passing
    ]
    return (*labels, *terms, *taints)


def _closed(node: Node, demand: Demand) -> tuple[str, ...]:
    """Why the node does not take the VM now: temporary states of the node."""
    cordon = ["cordoned"] if node.cordoned and not demand.tolerates(Taint(CORDON)) else []
    taints = [
        f"taint {_write(taint)}"
        for taint in demand.untolerated(node.taints)
        if taint.is_passing and not (node.cordoned and taint.key == CORDON)
    ]
    wanted = demand.selector.get(SCHEDULABLE)
    asleep = wanted is not None and node.labels.get(SCHEDULABLE) != wanted
    handler = [f"KubeVirt runs no VMs there (label {SCHEDULABLE}={wanted} needed)"] if asleep else []
    return (*cordon, *taints, *handler)


def _room(node: Node, demand: Demand) -> int:
    return min((node.free(name) // amount for name, amount in demand.amounts.items() if amount > 0), default=_MANY)


def _shortages(node: Node, amounts: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(
        _shortage(name, free=node.free(name), of=node.allocatable.get(name, 0), needed=amount)
        for name, amount in sorted(amounts.items(), key=lambda item: _rank(item[0]))
        if amount > node.free(name)
    )


def _shortage(name: str, *, free: int, of: int, needed: int) -> str:
    if name == CPU:
        return f"CPUs: {free / 1000:g} free of {of / 1000:g}, {needed / 1000:g} needed"
    if name.startswith(HUGEPAGES):
        size = name.removeprefix(HUGEPAGES)
        page = PAGE_BYTES.get(size)
        if page is not None:
            return f"{size} hugepages: {free // page} free of {of // page}, {-(-needed // page)} needed"
        return f"{size} hugepages: {_bytes(free)} free of {_bytes(of)}, {_bytes(needed)} needed"
    if name in _BYTES:
        return f"{_BYTES[name]}: {_bytes(free)} free of {_bytes(of)}, {_bytes(needed)} needed"
    if name.startswith(DEVICES):
        return f"{name.removeprefix(DEVICES)} devices: {free} free of {of}, {needed} needed"
    return f"{name}: {free} free of {of}, {needed} needed"


def _bytes(amount: int) -> str:
    """Bytes for people: rounded to a tenth of a Gi or Mi."""
    for suffix, scale in (("Gi", 2**30), ("Mi", 2**20)):
        if amount >= scale:
            return f"{round(amount / scale, 1):g}{suffix}"
    return in_words(amount)


def _rank(name: str) -> tuple[int, str]:
    order = {CPU: 0, MEMORY: 1, PODS: 3}
    return (2 if name.startswith(HUGEPAGES) else order.get(name, 4)), name


def _write(taint: Taint) -> str:
    return f"{taint.key}={taint.value}:{taint.effect}" if taint.value else f"{taint.key}:{taint.effect}"


_BYTES = {MEMORY: "memory", "ephemeral-storage": "ephemeral storage"}
