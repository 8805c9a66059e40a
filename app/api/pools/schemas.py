"""Bodies of requests and answers about pools. The body of `PUT /v1/pools/{name}` is `app.domain.pools.PoolSpec`."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, Strict
from typing_extensions import TypeAliasType

from app.api.pages import Page
from app.api.views import BootSeconds, Fingerprint, View
from app.domain.observation import WarmWhen
from app.domain.pools import PoolName, PoolSpec, contradictions, why_never_a_vm
from app.domain.states import PoolPhase
from app.domain.statistics import PoolCounts, PoolFlags, assess, why_stalled
from app.services.pools.vm_pool_import import Import
from app.store.pools.planning import LastPlan
from app.store.pools.statistics import PoolFigures
from app.store.rows import PoolRow, names_of

PoolPatch = TypeAliasType(
    "PoolPatch",
    Annotated[dict[str, Any], Field(max_length=64, description="The fields of the pool's `spec` to change.")],
)


class PoolRotation(BaseModel):
    requested_at: datetime | None = Field(
        description="When the rotation was requested. Null: only a new template is the reason."
    )
    remaining: int = Field(description="Number of unclaimed VMs that are still to be replaced.", examples=[3])


class PoolStatus(BaseModel):
    phase: PoolPhase
    reason: str | None = Field(
        description=(
            "What is wrong, and what would help: what keeps the pool from its size, what its VMs suffer from, and why VMs of an old "
            "template stay. Null if nothing is wrong."
        )
    )
    notes: list[str] = Field(
        description=(
            "Settings that cannot all hold, what the pool waits for, and recent changes that others made to it in the cluster. "
            "Independent of the phase."
        )
    )
    fill: float = Field(description="Ready VMs divided by size, from 0 to 1.", examples=[0.9])
    counts: dict[str, int] = Field(
        description="Number of VMs in each state, and `waiting`: the number of claims in the queue.",
        examples=[{"ready": 9, "booting": 1, "claimed": 3}],
    )
    rotation: PoolRotation | None = Field(
        description="The VMs that are being replaced, because somebody requested it or the template changed. Null: there are none."
    )
    refill_per_minute: float = Field(description="VMs that became ready per minute, over the last five minutes.")
    boot_seconds: BootSeconds
    last_failure: str | None
    last_failure_at: datetime | None


class PoolView(View):
    name: str
    spec: PoolSpec
    revision: Fingerprint = Field(
        description="Fingerprint of the template. When it changes, the pool replaces its VMs."
    )
    generation: int = Field(description="Increases with each edit.")
    created_at: datetime
    updated_at: datetime
    status: PoolStatus

    @classmethod
    def of(cls, pool: PoolRow, figures: PoolFigures, plan: LastPlan) -> Self:
        size, counts = pool.spec.size, figures.counts
        flags = PoolFlags(
            deleting=pool.deleting_at is not None,
            paused=pool.paused,
            stalled_because=why_stalled(pool.consecutive_failures if pool.stalled_at else None, pool.last_failure),
            auto_replenish=pool.spec.auto_replenish,
            last_failure=pool.last_failure if pool.consecutive_failures else None,
            capacity_problem=plan.capacity_problem,
            never=why_never_a_vm(pool.spec),
            held=plan.held,
            ailing=figures.ailing,
            put_off=str(figures.put_off) if figures.put_off is not None else None,
        )
        health = assess(counts, size=size, min_available=pool.spec.min_available, flags=flags, notes=plan.notes)
        status = PoolStatus(
            phase=health.phase,
            reason=health.reason,
            notes=[*contradictions(pool.spec, figures.boots), *plan.notes],
            fill=round(min(1.0, counts.ready / size), 4) if size else 1.0,
            counts={name: getattr(counts, name) for name in names_of(PoolCounts)},
            rotation=_rotation(pool, figures),
            refill_per_minute=round(figures.refill_per_minute, 2),
            boot_seconds=BootSeconds.model_validate(figures.boots),
            last_failure=pool.last_failure,
            last_failure_at=pool.last_failure_at,
        )
        return cls.from_row(pool, status=status)


class PoolPage(Page[PoolView]):
    """A page of pools."""


def _rotation(pool: PoolRow, figures: PoolFigures) -> PoolRotation | None:
    outdated = figures.outdated
    if not outdated.count:
        return None
    return PoolRotation(requested_at=pool.rotated_at if outdated.rotated else None, remaining=outdated.count)


class ImportBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    vm_pool: str = Field(
        min_length=1, max_length=253, description="Name of the VirtualMachinePool.", examples=["web-servers"]
    )
    namespace: str | None = Field(
        default=None, max_length=63, description="The namespace that the service works in; any other is refused."
    )
    name: PoolName | None = Field(
        default=None, description="Name of the new pool. Default: the name of the VirtualMachinePool."
    )
    warm_when: WarmWhen = Field(default=WarmWhen.AGENT, description="As in the spec of a pool.")
    allow_unschedulable: Annotated[bool, Strict()] = Field(default=False, description="As in the spec of a pool.")
    dry_run: Annotated[bool, Strict()] = Field(
        default=False, description="Report what would change without changing it."
    )


class ImportView(View):
    vm_pool: str = Field(description="Name of the VirtualMachinePool.")
    pool: str = Field(description="Name of the pool.")
    imported: bool = Field(description="false after a dry run.")
    spec: PoolSpec
    changes: list[str] = Field(description="What the import changes in the cluster, one sentence for each change.")
    vms: list[str] = Field(description="The VMs that join the pool. They keep running.")

    @classmethod
    def of(cls, done: Import) -> Self:
        return cls.from_row(done, pool=done.name, imported=done.pool is not None)
