"""The shapes of what is told of nodes, and of whether a VM fits."""

from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, Field

from app.domain.capacity import NodeFit
from app.domain.nodes import CPU, HUGEPAGES, KVM, MEMORY, PODS, Demand, Node
from app.lifecycle.placement import Answer, Sight
from app.store.nodes import VmOnNode


class Cpus(BaseModel):
    """In CPUs. What the pods on the node ask for is either `pinned`, whole CPUs of one pod alone, or `shared`."""

    capacity: float
    allocatable: float = Field(description="What pods may have of it.")
    pinned: float | None = Field(description="null: the pods cannot be seen.")
    shared: float | None
    free: float = Field(description="For either.")


class Amount(BaseModel):
    """Bytes of memory, else a count."""

    capacity: int
    allocatable: int = Field(description="What pods may have of it.")
    used: int | None = Field(description="What the pods on the node ask for; null: they cannot be seen.")
    free: int


class Pages(BaseModel):
    """Numbers of pages."""

    allocatable: int
    used: int | None
    free: int


class TaintView(BaseModel):
    key: str
    value: str
    effect: str


class ImageView(BaseModel):
    name: str
    bytes: int


class VmOnNodeView(BaseModel):
    id: UUID
    name: str
    pool: str
    state: str


class NodeView(BaseModel):
    name: str = Field(examples=["node1"])
    zone: str | None
    ready: bool
    takes_vms: bool = Field(
        description="It is ready, not cordoned, and KubeVirt runs VMs there (`kubevirt.io/schedulable`)."
    )
    cordoned: bool
    cpumanager: bool = Field(description="It can give VMs CPUs of their own.")
    taints: list[TaintView]
    conditions: dict[str, str] = Field(description="By type: `True`, `False` or `Unknown`.")
    cpus: Cpus
    memory: Amount
    hugepages: dict[str, Pages] = Field(description="By page size; sizes that it has none of are left out.")
    kvm: Amount = Field(description="How many VMs may use the hardware.")
    pods: Amount
    images: list[ImageView] = Field(description="Those that its kubelet tells of, the largest 50 by default.")
    vms: dict[str, int] = Field(description="Our VMs on it, by state.", examples=[{"ready": 3, "claimed": 1}])

    @classmethod
    def of(cls, node: Node, vms: dict[str, int]) -> Self:
        return cls(**_describe(node, vms))


class NodeWithVms(NodeView):
    labels: dict[str, str]
    vms_on_it: list[VmOnNodeView] = Field(description="The oldest first, at most a thousand.")

    @classmethod
    def with_vms(cls, node: Node, vms: dict[str, int], on_it: list[VmOnNode]) -> Self:
        listed = [VmOnNodeView(id=vm.id, name=vm.name, pool=vm.pool, state=vm.state) for vm in on_it]
        return cls(**_describe(node, vms), labels=dict(node.labels), vms_on_it=listed)


class SightView(BaseModel):
    """How well the nodes are seen."""

    age_seconds: float | None = Field(
        description="Since the last sign of life of their watch; null: there was none yet."
    )
    stale_reason: str | None = Field(description="Why this data is stale or missing; null if current.")
    pods_hidden: str | None = Field(description="Why what runs on the nodes is not known; null: it is.")

    @classmethod
    def of(cls, sight: Sight) -> Self:
        age = None if sight.age_seconds is None else round(sight.age_seconds, 1)
        return cls(age_seconds=age, stale_reason=sight.stale_reason, pods_hidden=sight.pods_hidden)


class NodePage(BaseModel):
    items: list[NodeView]
    next: str | None = Field(description="The cursor of the next page; null: this is the last one.")
    sight: SightView


class NodeFitView(BaseModel):
    node: str
    now: int = Field(description="How many VMs more it takes now.")
    ever: int = Field(description="How many it takes with nothing else on it, and nothing that keeps it from pods.")
    missing: list[str] = Field(
        description="What keeps one more from it.", examples=[["1Gi hugepages: 4 free of 8, 6 needed"]]
    )

    @classmethod
    def of(cls, found: NodeFit) -> Self:
        return cls(node=found.node, now=found.now, ever=found.ever, missing=list(found.missing))


class DemandView(BaseModel):
    """What the pod of one VM asks of a node, KubeVirt's own costs included."""

    cpus: float
    memory_bytes: int
    hugepages_bytes: dict[str, int] = Field(description="By page size.")
    others: dict[str, int] = Field(description="Devices, storage of the node, and the like.")

    @classmethod
    def of(cls, demand: Demand) -> Self:
        amounts = demand.amounts
        plain = {CPU, MEMORY, PODS}
        return cls(
            cpus=amounts.get(CPU, 0) / 1000,
            memory_bytes=amounts.get(MEMORY, 0),
            hugepages_bytes={
                name.removeprefix(HUGEPAGES): amount for name, amount in amounts.items() if name.startswith(HUGEPAGES)
            },
            others={
                name: amount
                for name, amount in sorted(amounts.items())
                if name not in plain and not name.startswith(HUGEPAGES)
            },
        )


class PlacementAnswer(BaseModel):
    fits: bool | None = Field(description="Whether so many fit now. null: nothing is known, and `unseen` says why.")
    count: int = Field(description="So many were asked for.")
    now: int | None = Field(description="How many fit now, all nodes together.")
    ever: int | None = Field(description="How many would fit with nothing else on the nodes.")
    nodes: list[NodeFitView] = Field(description="By name.")
    missing: list[str] = Field(
        description="Where they do not all fit, what is missing where.",
        examples=[["node2: 1Gi hugepages: 4 free of 8, 6 needed"]],
    )
    unseen: list[str] = Field(description="What was not compared; a VM may fail to start for that alone.")
    demand: DemandView | None = Field(description="null: an instance type decides, and is not read here.")
    fragment: dict[str, Any] = Field(description="What of the VM's spec says where it may run, and on what terms.")
    sight: SightView

    @classmethod
    def of(cls, answer: Answer, count: int, fragment: dict[str, Any]) -> Self:
        found = answer.fit
        return cls(
            fits=answer.fits,
            count=count,
            now=found.now if found is not None else None,
            ever=found.ever if found is not None else None,
            nodes=[NodeFitView.of(each) for each in found.nodes] if found is not None else [],
            missing=list(found.missing) if found is not None and not answer.fits else [],
            unseen=list(answer.unseen),
            demand=DemandView.of(answer.demand) if answer.demand is not None else None,
            fragment=fragment,
            sight=SightView.of(answer.sight),
        )


_PAGES = {"2Mi": 2**21, "1Gi": 2**30, "64Ki": 2**16, "32Mi": 2**25, "16Gi": 2**34}


def _describe(node: Node, vms: dict[str, int]) -> dict[str, Any]:
    used = node.used
    return {
        "name": node.name,
        "zone": node.zone,
        "ready": node.is_ready,
        "takes_vms": node.takes_vms,
        "cordoned": node.cordoned,
        "cpumanager": node.pins_cpus,
        "taints": [TaintView(key=taint.key, value=taint.value, effect=taint.effect) for taint in node.taints],
        "conditions": dict(node.conditions),
        "cpus": Cpus(
            capacity=node.capacity.get(CPU, 0) / 1000,
            allocatable=node.allocatable.get(CPU, 0) / 1000,
            pinned=node.pinned / 1000 if used is not None else None,
            shared=(used.get(CPU, 0) - node.pinned) / 1000 if used is not None else None,
            free=node.free(CPU) / 1000,
        ),
        "memory": _amount(node, MEMORY),
        "hugepages": {
            size: Pages(
                allocatable=node.allocatable[name] // page,
                used=used.get(name, 0) // page if used is not None else None,
                free=node.free(name) // page,
            )
            for size, page in _PAGES.items()
            if node.allocatable.get(name := f"{HUGEPAGES}{size}")
        },
        "kvm": _amount(node, KVM),
        "pods": _amount(node, PODS),
        "images": [ImageView(name=name, bytes=size) for name, size in node.images],
        "vms": vms,
    }


def _amount(node: Node, name: str) -> Amount:
    return Amount(
        capacity=node.capacity.get(name, 0),
        allocatable=node.allocatable.get(name, 0),
        used=node.used.get(name, 0) if node.used is not None else None,
        free=node.free(name),
    )
