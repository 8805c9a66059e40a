"""Bodies of placement checks and of their answers."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.api.nodes.schemas import NodesObservation
from app.api.views import View
from app.config import MAX_POOL_SIZE
from app.domain.capacity import NodeFit
from app.domain.nodes import CPU, HUGEPAGES, MEMORY, PODS, Demand
from app.domain.placement import Placement
from app.domain.pools import Count, PoolName, Template
from app.lifecycle.placement import Answer


class CheckBody(BaseModel):
    """The VM to check, as a `template` (also accepted as `vm`, as in a claim) or as the name of its `pool`, and how many of it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"oneOf": [{"required": ["template"]}, {"required": ["vm"]}, {"required": ["pool"]}]},
    )

    template: Template | None = Field(
        default=None, description="The VM, in any form that the template of a pool can have."
    )
    vm: Template | None = Field(default=None, description="Same as `template`.")
    pool: PoolName | None = Field(default=None, description="Check VMs of this pool.")
    placement: Placement | None = Field(
        default=None, description="Placement of the VM. Not with `pool`, which has its own."
    )
    count: Count = Field(default=1, ge=1, le=MAX_POOL_SIZE, description="Number of VMs.")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if sum(each is not None for each in (self.template, self.vm, self.pool)) != 1:
            raise ValueError("set exactly one of template, vm and pool")
        if self.pool is not None and self.placement is not None:
            raise ValueError("placement is only allowed with a template; a pool has its own")
        return self


class NodeFitView(View):
    node: str
    now: int = Field(description="How many more VMs fit on the node now.")
    when_empty: int = Field(
        description="How many VMs fit on the node when nothing else runs there and no passing condition keeps pods away."
    )
    missing: list[str] = Field(
        description="What prevents one more VM.", examples=[["1Gi hugepages: 4 free of 8, 6 needed"]]
    )

    @classmethod
    def of(cls, found: NodeFit) -> Self:
        return cls.from_row(found, when_empty=found.ever)


class DemandView(BaseModel):
    """What the pod of one VM requests from a node, including the overhead of KubeVirt."""

    cpus: float
    memory_bytes: int
    hugepages_bytes: dict[str, int] = Field(description="By page size.")
    others: dict[str, int] = Field(description="Other resources: devices, ephemeral storage and so on.")

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
    fits: bool | None = Field(description="Whether `count` VMs fit now. null if unknown; `unchecked` says why.")
    count: int = Field(description="Number of VMs requested.")
    now: int | None = Field(description="How many VMs fit now on all nodes together.")
    when_empty: int | None = Field(description="How many VMs fit when nothing else runs on the nodes.")
    nodes: list[NodeFitView] = Field(description="By name.")
    missing: list[str] = Field(
        description="If not all VMs fit: what is missing on which node.",
        examples=[["node2: 1Gi hugepages: 4 free of 8, 6 needed"]],
    )
    unchecked: list[str] = Field(
        description="What the check did not compare, and what can still prevent a VM from starting."
    )
    demand: DemandView | None = Field(description="null if an instance type decides; the service does not read it.")
    fragment: dict[str, Any] = Field(description="The part of the VM's spec that controls its placement.")
    observation: NodesObservation

    @classmethod
    def of(cls, answer: Answer, count: int, fragment: dict[str, Any]) -> Self:
        found = answer.fit
        return cls(
            fits=answer.fits,
            count=count,
            now=found.now if found is not None else None,
            when_empty=found.ever if found is not None else None,
            nodes=[NodeFitView.of(each) for each in found.nodes] if found is not None else [],
            missing=list(found.missing) if found is not None and not answer.fits else [],
            unchecked=list(answer.unseen),
            demand=DemandView.of(answer.demand) if answer.demand is not None else None,
            fragment=fragment,
            observation=NodesObservation.of(answer.status),
        )
