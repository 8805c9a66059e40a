"""Bodies of answers about nodes."""

from typing import Self
from uuid import UUID

from pydantic import BaseModel, Field

from app.api.pages import Page
from app.api.views import View
from app.domain.nodes import CPU, HUGEPAGES, KVM, MEMORY, PAGE_BYTES, PODS, Node
from app.lifecycle.placement import NodesStatus


class Cpus(BaseModel):
    """Numbers of CPUs. The pods on the node request either `pinned` CPUs, each exclusive to one pod, or `shared` ones."""

    capacity: float
    allocatable: float = Field(description="The part of the capacity that pods can use.")
    pinned: float | None = Field(description="null if the service cannot read the pods.")
    shared: float | None
    free: float = Field(description="Free for either kind of request.")


class Amount(BaseModel):
    """Bytes for memory, otherwise a number."""

    capacity: int
    allocatable: int = Field(description="The part of the capacity that pods can use.")
    used: int | None = Field(description="What the pods on the node request; null if the service cannot read them.")
    free: int


class Pages(BaseModel):
    """Numbers of pages."""

    allocatable: int
    used: int | None
    free: int


class TaintView(View):
    key: str
    value: str
    effect: str


class ImageView(BaseModel):
    name: str
    bytes: int


class VmOnNodeView(View):
    id: UUID
    name: str
    pool: str
    state: str


class NodeView(View):
    name: str = Field(examples=["node1"])
    zone: str | None
    ready: bool
    takes_vms: bool = Field(
        description="The node is ready, not cordoned, and KubeVirt runs VMs on it (`kubevirt.io/schedulable`)."
    )
    cordoned: bool
    cpumanager: bool = Field(description="The node can give VMs dedicated CPUs.")
    taints: list[TaintView]
    conditions: dict[str, str] = Field(description="By type: `True`, `False` or `Unknown`.")
    cpus: Cpus
    memory: Amount
    hugepages: dict[str, Pages] = Field(description="By page size, for the sizes that the node has.")
    kvm: Amount = Field(description="How many VMs can use hardware virtualization.")
    pods: Amount
    images: list[ImageView] = Field(description="The images that the kubelet reports: by default the 50 largest.")
    vms: dict[str, int] = Field(
        description="Number of the service's VMs on the node, by state.", examples=[{"ready": 3, "claimed": 1}]
    )

    @classmethod
    def of(cls, node: Node, vms: dict[str, int], **more: object) -> Self:
        used = node.used
        return cls.from_row(
            node,
            ready=node.is_ready,
            cpumanager=node.pins_cpus,
            cpus=Cpus(
                capacity=node.capacity.get(CPU, 0) / 1000,
                allocatable=node.allocatable.get(CPU, 0) / 1000,
                pinned=node.pinned / 1000 if used is not None else None,
                shared=(used.get(CPU, 0) - node.pinned) / 1000 if used is not None else None,
                free=node.free(CPU) / 1000,
            ),
            memory=_amount(node, MEMORY),
            hugepages={
                size: Pages(
                    allocatable=node.allocatable[name] // page,
                    used=used.get(name, 0) // page if used is not None else None,
                    free=node.free(name) // page,
                )
                for size, page in PAGE_BYTES.items()
                if node.allocatable.get(name := f"{HUGEPAGES}{size}")
            },
            kvm=_amount(node, KVM),
            pods=_amount(node, PODS),
            images=[ImageView(name=name, bytes=size) for name, size in node.images],
            vms=vms,
            **more,
        )


class NodeWithVms(NodeView):
    labels: dict[str, str]
    vms_on_it: list[VmOnNodeView] = Field(description="The service's VMs on the node, oldest first, at most 1000.")


class NodesObservation(BaseModel):
    """How current and complete the data about nodes is."""

    age_seconds: float | None = Field(description="Time since the node watch last reported; null if it never did.")
    stale_reason: str | None = Field(description="Why this data is stale or missing; null if it is current.")
    pods_unknown_reason: str | None = Field(
        description="Why the pods on the nodes are unknown; null if they are known."
    )

    @classmethod
    def of(cls, status: NodesStatus) -> Self:
        age = None if status.age_seconds is None else round(status.age_seconds, 1)
        return cls(age_seconds=age, stale_reason=status.stale_reason, pods_unknown_reason=status.pods_hidden)


class NodePage(Page[NodeView]):
    observation: NodesObservation


def _amount(node: Node, name: str) -> Amount:
    return Amount(
        capacity=node.capacity.get(name, 0),
        allocatable=node.allocatable.get(name, 0),
        used=node.used.get(name, 0) if node.used is not None else None,
        free=node.free(name),
    )
