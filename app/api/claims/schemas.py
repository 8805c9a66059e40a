"""The shapes of claims: what a client sends, and what it is told."""

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationInfo, field_validator

from app.api.views import STAGES, Stages
from app.config import MAX_BATCH, MAX_LEASE_SECONDS, MAX_WAIT_SECONDS
from app.domain.observation import WarmWhen
from app.domain.paths import StartPath
from app.domain.placement import Placement, Prefer
from app.domain.pools import Count, PoolName, StartFrom
from app.domain.states import ClaimState
from app.domain.statistics import WaitEstimate
from app.store.rows import ClaimRow

Label = Annotated[str, Field(max_length=255, pattern=r"^[^\x00]*$")]
LabelName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[^\x00]*$")]


class _Wish(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

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
    """A wish for one VM: of a `pool`, or one that is described as `vm`, which then comes by the fastest path there is."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["pool"]}, {"required": ["vm"]}]})

    pool: PoolName | None = Field(default=None, description="From this pool. Either this or `vm`.")
    vm: dict[str, Any] | None = Field(
        default=None,
        description=(
            "The VM, in any form that a pool's `template` may have. A pool with the same shape serves it warm; else it starts "
            "from a snapshot of the shape, else with a preloaded image, else cold."
        ),
    )
    start_from: StartFrom | None = Field(
        default=None, description="With `vm`: start from this snapshot or preload, and from nothing else."
    )
    placement: Placement | None = Field(
        default=None, description="With `vm`: where it may run, and on what terms. It is part of its shape."
    )
    warm_when: WarmWhen | None = Field(
        default=None, description="With `vm`: what proves that the guest has booted. None: `agent`."
    )
    paths: tuple[StartPath, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=len(StartPath),
        description="Ways of being served that are allowed. None: all of them with `vm`, `pool` alone with a pool.",
    )
    deadline_seconds: Annotated[float, Strict()] | None = Field(
        default=None,
        gt=0,
        le=MAX_LEASE_SECONDS,
        description=(
            "With `vm`: refuse at once where every path that is open was measured to take longer (p95, for this shape), and "
            "give the claim up after so long."
        ),
    )
    remember: Annotated[bool, Strict()] = Field(
        default=False,
        description="With `vm`: keep a pool of one such VM from now on, and its image near, so that the next claim is warm.",
    )
    prefer: Prefer | None = Field(
        default=None, description="Which warm VM it would rather have, of those that have been ready the longest."
    )
    wait_seconds: Annotated[float, Strict()] = Field(
        default=0,
        ge=0,
        le=MAX_WAIT_SECONDS,
        description="How long this request may wait where no VM is ready, in seconds.",
    )

    # Each looks at what stands above it, and only where its field was given: a plain claim pays for none of this.

    @field_validator("vm")
    @classmethod
    def _either(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        if value is not None and info.data.get("pool") is not None:
            raise ValueError("a claim names a pool or describes its VM, and not both")
        return value

    @field_validator("start_from", "placement", "warm_when", "deadline_seconds", "remember")
    @classmethod
    def _only_with_vm(cls, value: object, info: ValidationInfo) -> object:
        if value and info.data.get("pool") is not None:
            raise ValueError("this goes with `vm`; what a pool's VMs are is the pool's affair")
        return value

    @field_validator("paths")
    @classmethod
    def _paths_of_a_pool(
        cls, value: tuple[StartPath, ...] | None, info: ValidationInfo
    ) -> tuple[StartPath, ...] | None:
        if value is not None and info.data.get("pool") is not None and set(value) != {StartPath.POOL}:
            raise ValueError("a claim that names a pool is served by it: 'pool' alone is allowed, or describe a `vm`")
        return value


class BatchBody(_Wish):
    """A wish for many VMs at once."""

    pool: PoolName
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


class PathEstimate(BaseModel):
    """In seconds. null: no data."""

    p50: float | None
    p95: float | None
    count: int = Field(description="How often it was measured.")
    basis: str = Field(examples=["measured for this shape 12 times"])


class ConsideredPath(BaseModel):
    path: StartPath
    source: str | None = Field(description="The pool, snapshot or preload.")
    available: bool
    why: str | None = Field(description="Why it was not taken; null: it was.")
    estimate: PathEstimate


class TriedPath(BaseModel):
    """A path that the claim was moved away from."""

    path: StartPath
    source: str | None
    reason: str
    at: datetime


class ChoiceView(BaseModel):
    """How a claim that describes its VM is served, and why not otherwise. What is said is of the moment `at`."""

    path: StartPath
    source: str | None
    reason: str
    at: datetime
    deadline_at: datetime | None = Field(description="The claim is given up then, where it still waits.")
    considered: list[ConsideredPath] = Field(description="Every path, the fastest first; empty: a warm VM was there.")
    tried: list[TriedPath] = Field(description="Paths that came to nothing, oldest first.")


class RememberedView(BaseModel):
    """What is kept for the next claim of the same shape. Where something is missing `reason` says why."""

    pool: str | None = Field(description="The pool that serves the shape.")
    preloads: list[str] = Field(description="What brings its images near.")
    reason: str | None


class ClaimTimings(BaseModel):
    """In seconds. null: not known, or not yet."""

    wait: float | None = Field(description="From the claim's arrival until it had a VM; 0: one was warm.")
    boot: float | None = Field(
        description="What its VM took from being asked of the cluster to being ready, whenever that was."
    )
    warm: float | None = Field(description="How long the VM had been ready when it was claimed.")
    stages: Stages = Field(description=f"Null if the path is `pool`. {STAGES}")


class Replacement(BaseModel):
    """A VM that turned out dead within its first moments, and was replaced."""

    vm_id: UUID
    reason: str
    at: datetime


class ClaimView(BaseModel):
    id: UUID
    pool: str | None = Field(description="null: its VM is made for it alone.")
    shape: str | None = Field(description="Of a claim that describes its VM: the fingerprint of what that boots.")
    state: ClaimState
    path: str | None = Field(description="How it was served: pool, snapshot, preload or cold.")
    choice: ChoiceView | None = Field(
        description="Of a claim that describes its VM: the path that was chosen, and why."
    )
    remembered: RememberedView | None = Field(description="Of a claim with `remember`.")
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
            pool=claim.pool if claim.pool_kind == "pool" else None,
            shape=claim.shape,
            state=claim.state,
            path=claim.path,
            choice=ChoiceView.model_validate(claim.choice) if claim.choice else None,
            remembered=_remembered(claim.choice),
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
                stages=claim.vm_stages if claim.path != StartPath.POOL else None,
            ),
        )


class BatchView(BaseModel):
    claims: list[ClaimView]
    requested: int
    missing: int = Field(description="So many of those asked for were not ready, and were not claimed.")


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


def _remembered(choice: dict[str, Any] | None) -> RememberedView | None:
    found = (choice or {}).get("remembered")
    return RememberedView.model_validate(found) if found else None


def _between(start: datetime | None, end: datetime | None) -> float | None:
    return round(max(0.0, (end - start).total_seconds()), 3) if start and end else None


def _round(seconds: float | None) -> float | None:
    return round(seconds, 3) if seconds is not None else None
