"""The JSON of claims that clients receive."""

from dataclasses import replace
from datetime import datetime
from typing import Self
from uuid import UUID

from pydantic import BaseModel, Field

from app.api.pages import Page
from app.api.views import STAGES, Milliseconds, Stages, View
from app.domain.handovers import HandoverState
from app.domain.paths import StartPath
from app.domain.states import ClaimState
from app.domain.statistics import WaitEstimate
from app.store.rows import ClaimRow


class ClaimedVm(View):
    id: UUID
    name: str = Field(examples=["fast-start-pool-dguq7x4y2r3t5v6w7x8y9z2a3b"])
    namespace: str
    node: str | None
    addresses: list[str] = Field(examples=[["10.244.1.17"]])
    health: str | None = Field(description="The problem that the cluster reports for the VM; null if none.")


class Estimate(View):
    seconds: Milliseconds | None = Field(description="Seconds until a VM is ready; null if none will come by itself.")
    basis: str = Field(description="What the estimate is based on.")


class PathEstimate(BaseModel):
    """In seconds; null if there is no data."""

    p50: float | None
    p95: float | None
    count: int = Field(description="How many measurements it is based on.")
    basis: str = Field(examples=["measured for this shape 12 times"])


class ConsideredPath(BaseModel):
    path: StartPath
    source: str | None = Field(description="The name of the pool, snapshot or preload.")
    available: bool
    why: str | None = Field(description="Why this path was not chosen; null for the chosen one.")
    estimate: PathEstimate


class TriedPath(BaseModel):
    """A path that failed, so that the claim was moved to another."""

    path: StartPath
    source: str | None
    reason: str
    at: datetime


class ChoiceView(BaseModel):
    """The path of a claim that describes its VM, and why it was chosen. All of it was true at the time `at`."""

    path: StartPath
    source: str | None
    reason: str
    at: datetime
    deadline_at: datetime | None = Field(description="A claim that still waits fails at this time.")
    considered: list[ConsideredPath] = Field(
        description="Every path, in the order pool, memory, snapshot, preload, cold; `memory` only where snapshots keep memory. Empty if a warm VM "
        "was ready."
    )
    tried: list[TriedPath] = Field(description="Paths that failed, oldest first.")


class RememberedView(BaseModel):
    """What is kept for the next claim of the same shape. If something is missing, `reason` says why."""

    pool: str | None = Field(description="The pool that serves the shape.")
    preloads: list[str] = Field(description="The preloads of its images.")
    reason: str | None


class ClaimTimings(BaseModel):
    """In seconds; null if not known yet."""

    wait: Milliseconds | None = Field(description="From the claim's arrival until it had a VM; 0 if one was warm.")
    boot: Milliseconds | None = Field(
        description="How long its VM took from its creation in the cluster until it was ready, whenever that was."
    )
    warm: Milliseconds | None = Field(description="How long the VM had been ready when it was claimed.")
    stages: Stages = Field(description=f"Null if the path is `pool`. {STAGES}")


class Replacement(BaseModel):
    """A VM that died right after it was claimed, and was replaced."""

    vm_id: UUID
    reason: str
    at: datetime


class Restart(BaseModel):
    """What ran the claimed VM was lost, for example with its node, and the cluster started the VM again, from its disks."""

    at: datetime = Field(description="When that was seen.")
    reason: str
    from_node: str | None
    from_addresses: list[str]
    back_at: datetime | None = Field(description="When the VM was well again; null: it is not yet.")
    to_node: str | None
    to_addresses: list[str]


class HandoverView(View):
    """How far the hand-over to the VM's guest is."""

    state: HandoverState
    exit_code: int | None = Field(description="Of the guest's hooks, once they have run.")
    output: str | None = Field(description="The first 4 KiB of what they printed. Lists do not have it.")
    taken_at: datetime | None = Field(description="When the guest first got it.")
    done_at: datetime | None
    reason: str | None = Field(description="What it waits for, or why it failed.")


class ClaimView(View):
    id: UUID
    pool: str | None = Field(description="null if the VM is made for this claim alone.")
    shape: str | None = Field(description="For a claim with `vm`: the fingerprint of what the VM is made from.")
    state: ClaimState
    path: str | None = Field(description="How the claim was served: pool, memory, snapshot, preload or cold.")
    choice: ChoiceView | None = Field(description="For a claim with `vm`: the chosen path, and why.")
    remembered: RememberedView | None = Field(description="For a claim with `remember`.")
    vm: ClaimedVm | None
    labels: dict[str, str]
    lease_seconds: int
    lease_expires_at: datetime | None
    created_at: datetime
    bound_at: datetime | None
    ended_at: datetime | None
    reason: str | None = Field(
        description="While pending: why no VM was ready, and what the VMs on their way suffer from now. Once ended: why."
    )
    replacements: list[Replacement]
    restarts: list[Restart] = Field(description="The last ten restarts of the claimed VM, oldest first.")
    handover: HandoverView | None = Field(description="For a claim with `handover`.")
    estimate: Estimate | None = Field(description="While the claim waits.")
    timings: ClaimTimings

    @classmethod
    def of(cls, claim: ClaimRow, *, namespace: str, estimate: WaitEstimate | None = None, output: bool = True) -> Self:
        """`output`: with what the guest's hooks printed."""
        handover = claim.handover
        vm = {"id": claim.vm_id, "name": claim.vm_name, "namespace": namespace}
        return cls.from_row(
            claim,
            pool=claim.pool if claim.pool_kind == "pool" else None,
            choice=claim.choice or None,
            remembered=(claim.choice or {}).get("remembered") or None,
            vm=ClaimedVm.from_row(claim, **vm) if None not in vm.values() else None,
            handover=replace(handover, output=handover.output if output else None) if handover is not None else None,
            estimate=estimate,
            timings={
                "wait": _between(claim.created_at, claim.bound_at),
                "boot": claim.vm_boot_seconds,
                "warm": _between(claim.vm_ready_at, claim.bound_at),
                "stages": claim.vm_stages if claim.path != StartPath.POOL else None,
            },
        )


class ClaimPage(Page[ClaimView]):
    """A page of claims."""


class BatchView(BaseModel):
    claims: list[ClaimView]
    requested: int
    missing: int = Field(description="How many of the requested VMs were not ready.")


def _between(start: datetime | None, end: datetime | None) -> float | None:
    return max(0.0, (end - start).total_seconds()) if start and end else None
