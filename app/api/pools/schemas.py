"""The shapes of answers about pools, VMs and events; `claim_views` has those of claims.

What a client sends for a pool is `app.domain.pools.PoolSpec`.
"""

from datetime import datetime
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, Field

from app.domain.pools import PoolSpec
from app.domain.stages import in_order
from app.domain.states import PoolPhase, VmState
from app.domain.statistics import PoolFlags, assess
from app.store.events import EventRow
from app.store.pools.planning import LastPlan
from app.store.pools.statistics import PoolFigures
from app.store.rows import PoolRow, VmRow

STAGES = (
    "Seconds by stage, each from the end of the one before: `queue`, from the VM being planned until the cluster was asked for it; "
    "`disk`, until its DataVolumes were there, so that its instance could be made; `schedule`, until its pod had a node; `image`, "
    "until the pod ran, which pulls its images; `start`, until the domain ran; `boot`, until the guest's agent spoke or, without "
    "one, until it was ready; `agent`, from then until it was ready. A stage is null where the cluster gave no time for it. Those "
    "of the cluster are in its own whole seconds, so that they do not add up to the last digit. The whole is null for a moment "
    "after a VM became ready: its pod is asked for the times first."
)
STAGES_EXAMPLE = {"queue": 0.021, "disk": 0.0, "schedule": 0.0, "image": 2.0, "start": 1.0, "boot": 9.0, "agent": 0.4}


class BootSeconds(BaseModel):
    """Measured on this cluster, from asking for the VM to the VM being ready. null: none measured yet."""

    count: int = Field(description="How many of the pool's last boots these are taken from.")
    p50: float | None
    p95: float | None


class PoolStatus(BaseModel):
    phase: PoolPhase
    reason: str | None = Field(description="Why the phase is not `ready`, in words.")
    notes: list[str] = Field(
        description="What the pool waits for, and what others lately did to it in the cluster, whatever the phase."
    )
    fill: float = Field(description="Ready VMs over size, 0 to 1.", examples=[0.9])
    counts: dict[str, int] = Field(
        description="VMs by state, and `waiting`: claims in the queue.",
        examples=[{"ready": 9, "booting": 1, "claimed": 3}],
    )
    refill_per_minute: float = Field(description="VMs that became ready, over the last five minutes.")
    boot_seconds: BootSeconds
    last_failure: str | None
    last_failure_at: datetime | None


class PoolView(BaseModel):
    name: str
    spec: PoolSpec
    revision: str = Field(description="Fingerprint of the template; another one rotates the pool.")
    generation: int = Field(description="Rises with each edit.")
    created_at: datetime
    updated_at: datetime
    status: PoolStatus

    @classmethod
    def of(cls, pool: PoolRow, figures: PoolFigures, plan: LastPlan) -> Self:
        counts = figures.counts
        flags = PoolFlags(
            deleting=pool.deleting_at is not None,
            paused=pool.paused,
            stalled_because=f"{pool.consecutive_failures} failures in a row: {pool.last_failure}"
            if pool.stalled_at
            else None,
            auto_replenish=pool.spec.auto_replenish,
            last_failure=pool.last_failure if pool.consecutive_failures else None,
            capacity_problem=plan.capacity_problem,
        )
        health = assess(
            counts, size=pool.spec.size, min_available=pool.spec.min_available, flags=flags, notes=plan.notes
        )
        return cls(
            name=pool.name,
            spec=pool.spec,
            revision=pool.revision[:12],
            generation=pool.generation,
            created_at=pool.created_at,
            updated_at=pool.updated_at,
            status=PoolStatus(
                phase=health.phase,
                reason=health.reason,
                notes=list(plan.notes),
                fill=round(min(1.0, counts.ready / pool.spec.size), 4) if pool.spec.size else 1.0,
                counts={
                    "planned": counts.planned,
                    "creating": counts.creating,
                    "booting": counts.booting,
                    "ready": counts.ready,
                    "claimed": counts.claimed,
                    "releasing": counts.releasing,
                    "failed": counts.failed,
                    "waiting": counts.waiting,
                },
                refill_per_minute=round(figures.refill_per_minute, 2),
                boot_seconds=BootSeconds(
                    count=figures.boots.count, p50=_round(figures.boots.p50), p95=_round(figures.boots.p95)
                ),
                last_failure=pool.last_failure,
                last_failure_at=pool.last_failure_at,
            ),
        )


class VmView(BaseModel):
    id: UUID
    pool: str | None = Field(description="null: it was made for a claim that names no pool.")
    name: str
    namespace: str
    state: VmState
    state_since: datetime
    revision: str
    uid: str | None = Field(description="The VirtualMachine's UID in the cluster.")
    node: str | None
    addresses: list[str]
    health: str | None
    reason: str | None = Field(description="Why it failed, was lost, or is released.")
    claim_id: UUID | None
    created_at: datetime
    ready_at: datetime | None
    claimed_at: datetime | None
    ended_at: datetime | None
    boot_seconds: float | None
    path: str | None = Field(description="How it started: snapshot, preload or cold. null: it has not begun to.")
    source: str | None = Field(description="The snapshot or preload that it started from.")
    shape: str | None = Field(description="Fingerprint of what it boots: VMs of one shape can stand for each other.")
    stages: dict[str, float | None] | None = Field(description=STAGES, examples=[STAGES_EXAMPLE])

    @classmethod
    def of(cls, vm: VmRow, *, namespace: str) -> Self:
        return cls(
            id=vm.id,
            pool=vm.pool if vm.pool_kind == "pool" else None,
            name=vm.name,
            namespace=namespace,
            state=vm.state,
            state_since=vm.state_since,
            revision=vm.revision[:12],
            uid=vm.uid,
            node=vm.node,
            addresses=list(vm.addresses),
            health=vm.health,
            reason=vm.reason,
            claim_id=vm.claim_id,
            created_at=vm.created_at,
            ready_at=vm.ready_at,
            claimed_at=vm.claimed_at,
            ended_at=vm.ended_at,
            boot_seconds=_round(vm.boot_seconds),
            path=vm.path,
            source=vm.source,
            shape=vm.shape,
            stages=in_order(vm.stages) if vm.stages else None,
        )


class EventView(BaseModel):
    cursor: str = Field(
        description="Its place in the history: what a stream takes as `Last-Event-ID`.", examples=["7701-42"]
    )
    at: datetime
    type: str = Field(examples=["vm.ready"])
    pool: str | None
    vm_id: UUID | None
    claim_id: UUID | None
    data: dict[str, Any]

    @classmethod
    def of(cls, event: EventRow) -> Self:
        return cls(
            cursor=str(event.cursor),
            at=event.at,
            type=event.type,
            pool=event.pool,
            vm_id=event.vm_id,
            claim_id=event.claim_id,
            data=event.data,
        )


class VmWithHistory(VmView):
    history: list[EventView] = Field(description="Its changes of state, oldest first.")


def _round(seconds: float | None) -> float | None:
    return round(seconds, 3) if seconds is not None else None
