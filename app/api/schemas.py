"""The shapes of answers. What a client sends for a pool is `app.domain.pools.PoolSpec`."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, Strict

from app.config import MAX_BATCH, MAX_LEASE_SECONDS, MAX_WAIT_SECONDS
from app.domain.pools import Count, PoolName, PoolSpec
from app.domain.states import ClaimState, PoolPhase, VmState
from app.domain.statistics import PoolFlags, WaitEstimate, assess
from app.store.events import EventRow
from app.store.rows import ClaimRow, PoolRow, VmRow
from app.store.statistics import PoolFigures

Label = Annotated[str, Field(max_length=255, pattern=r"^[^\x00]*$")]
LabelName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[^\x00]*$")]


class BootSeconds(BaseModel):
    """Measured on this cluster, from asking for the VM to the VM being ready. null: none measured yet."""

    count: int = Field(description="How many of the pool's last boots these are taken from.")
    p50: float | None
    p95: float | None


class PoolStatus(BaseModel):
    phase: PoolPhase
    reason: str | None = Field(description="Why the phase is not `ready`, in words.")
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
    def of(cls, pool: PoolRow, figures: PoolFigures, notes: tuple[str, ...]) -> Self:
        counts = figures.counts
        flags = PoolFlags(
            deleting=pool.deleting_at is not None,
            paused=pool.paused,
            stalled_because=f"{pool.consecutive_failures} failures in a row: {pool.last_failure}"
            if pool.stalled_at
            else None,
            auto_replenish=pool.spec.auto_replenish,
            last_failure=pool.last_failure if pool.consecutive_failures else None,
        )
        health = assess(counts, size=pool.spec.size, min_available=pool.spec.min_available, flags=flags, notes=notes)
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


class _Wish(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: PoolName
    lease_seconds: Count | None = Field(
        default=None,
        ge=1,
        le=MAX_LEASE_SECONDS,
        description="After so long the claim ends by itself. None: the pool's default.",
    )
    labels: dict[LabelName, Label] = Field(
        default_factory=dict,
        max_length=32,
        description="Yours: kept with the claim, and lists can be filtered by them.",
    )


class ClaimBody(_Wish):
    """A wish for one VM."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"pool": "fast-start-pool", "wait_seconds": 30, "labels": {"job": "ci-4711"}}]},
    )

    wait_seconds: Annotated[float, Strict()] = Field(
        default=0,
        ge=0,
        le=MAX_WAIT_SECONDS,
        description="How long this request may wait where no VM is ready, in seconds.",
    )
    paths: tuple[Literal["pool"], ...] = Field(
        default=("pool",), min_length=1, max_length=1, description="Ways of being served that are allowed."
    )


class BatchBody(_Wish):
    """A wish for many VMs at once."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"pool": "fast-start-pool", "count": 3, "all_or_nothing": False}]},
    )

    count: Count = Field(ge=1, le=MAX_BATCH, description="How many VMs, each its own claim.")
    all_or_nothing: Annotated[bool, Strict()] = Field(
        default=False, description="Where fewer are ready, claim none. Otherwise as many as are ready are claimed."
    )


class RenewBody(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    lease_seconds: Count | None = Field(
        default=None, ge=1, le=MAX_LEASE_SECONDS, description="The lease from now on. None: its own length again."
    )


class ClaimedVm(BaseModel):
    id: UUID
    name: str = Field(examples=["fast-start-pool-dguq7x4y2r3t5v6w7x8y9z2a3b"])
    namespace: str
    node: str | None
    addresses: list[str] = Field(examples=[["10.244.1.17"]])
    health: str | None = Field(description="What ails it, in words; null: nothing that the cluster tells.")


class Estimate(BaseModel):
    seconds: float | None = Field(description="Until a VM is there; null: none comes by itself.")
    basis: str = Field(description="What that is based on.")


class ClaimTimings(BaseModel):
    """In seconds. null: not known, or not yet."""

    wait: float | None = Field(description="From the claim's arrival until it had a VM.")
    boot: float | None = Field(description="What the VM's boot took, before it was claimed.")
    warm: float | None = Field(description="How long the VM had been ready when it was claimed.")


class Replacement(BaseModel):
    """A VM that turned out dead within its first moments, and was replaced."""

    vm_id: UUID
    reason: str
    at: datetime


class ClaimView(BaseModel):
    id: UUID
    pool: str
    state: ClaimState
    path: str | None = Field(description="How it was served.")
    vm: ClaimedVm | None
    labels: dict[str, str]
    lease_seconds: int
    lease_expires_at: datetime | None
    created_at: datetime
    bound_at: datetime | None
    ended_at: datetime | None
    reason: str | None = Field(description="Pending: why it was not warm. Ended: why.")
    replacements: list[Replacement]
    estimate: Estimate | None = Field(description="While it waits.")
    timings: ClaimTimings

    @classmethod
    def of(cls, claim: ClaimRow, *, namespace: str, estimate: WaitEstimate | None = None) -> Self:
        return cls(
            id=claim.id,
            pool=claim.pool,
            state=claim.state,
            path=claim.path,
            vm=_claimed_vm(claim, namespace),
            labels=claim.labels,
            lease_seconds=claim.lease_seconds,
            lease_expires_at=claim.lease_expires_at,
            created_at=claim.created_at,
            bound_at=claim.bound_at,
            ended_at=claim.ended_at,
            reason=claim.reason,
            replacements=[Replacement.model_validate(entry) for entry in claim.replacements],
            estimate=Estimate(seconds=_round(estimate.seconds), basis=estimate.basis) if estimate else None,
            timings=ClaimTimings(
                wait=_between(claim.created_at, claim.bound_at),
                boot=_round(claim.vm_boot_seconds),
                warm=_between(claim.vm_ready_at, claim.bound_at),
            ),
        )


class BatchView(BaseModel):
    claims: list[ClaimView]
    requested: int
    missing: int = Field(description="So many of those asked for were not ready, and were not claimed.")


class VmView(BaseModel):
    id: UUID
    pool: str
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
    stages: dict[str, float | None] | None = Field(description="Seconds by stage: queue, schedule, start, boot.")

    @classmethod
    def of(cls, vm: VmRow, *, namespace: str) -> Self:
        return cls(
            id=vm.id,
            pool=vm.pool,
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
            stages=vm.stages,
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


def _claimed_vm(claim: ClaimRow, namespace: str) -> ClaimedVm | None:
    if claim.vm_id is None or claim.vm_name is None:
        return None
    return ClaimedVm(
        id=claim.vm_id,
        name=claim.vm_name,
        namespace=namespace,
        node=claim.node,
        addresses=list(claim.addresses),
        health=claim.health,
    )


def _between(start: datetime | None, end: datetime | None) -> float | None:
    return round(max(0.0, (end - start).total_seconds()), 3) if start and end else None


def _round(seconds: float | None) -> float | None:
    return round(seconds, 3) if seconds is not None else None
