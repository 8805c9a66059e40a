"""The JSON of claims: what clients send and receive."""

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationInfo, field_validator, model_validator
from pydantic_core import to_json
from typing_extensions import TypeAliasType

from app.api.pages import Page
from app.api.views import STAGES, Milliseconds, Stages, View
from app.config import MAX_BATCH, MAX_LEASE_SECONDS, MAX_WAIT_SECONDS
from app.domain.guests import GuestSpec, has_channel
from app.domain.handovers import DEFAULT_WAIT_SECONDS, MAX_DATA_BYTES, HandoverRequest, HandoverState
from app.domain.observation import WarmWhen
from app.domain.paths import StartPath
from app.domain.placement import Placement, Prefer
from app.domain.pools import Count, PoolName, StartFrom, Template
from app.domain.states import ClaimState
from app.domain.statistics import WaitEstimate
from app.store.rows import ClaimRow

Label = Annotated[str, Field(max_length=255)]
LabelName = Annotated[str, Field(min_length=1, max_length=63)]
Labels = TypeAliasType("Labels", Annotated[dict[LabelName, Label], Field(max_length=32)])


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    lease_seconds: Count | None = Field(
        default=None,
        ge=1,
        le=MAX_LEASE_SECONDS,
        description="Lease in seconds; the claim is released when it expires. Default: the pool's, or 3600 if the VM is made for the claim.",
    )
    labels: Labels = Field(
        default_factory=dict,
        description=(
            "Your own labels. They are kept with the claim, and lists can be filtered by them. Those that Kubernetes accepts are "
            "also labels of the VM."
        ),
    )


class HandoverBody(BaseModel):
    """What the guest of the VM gets. It is encrypted at rest, erased once the guest has it or the claim has ended, and shown nowhere."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    data: Any = Field(
        default=None,
        description=f"Any JSON, up to {MAX_DATA_BYTES // 1024} KiB: a token, an environment, what the job is to do.",
        examples=[{"env": {"RUNNER_TOKEN": "..."}}],
        repr=False,
    )
    wait: Annotated[bool, Strict()] = Field(
        default=False, description="Answer once the guest's hooks have run, and with what they printed."
    )
    wait_seconds: Annotated[float, Strict()] | None = Field(
        default=None,
        gt=0,
        le=MAX_WAIT_SECONDS,
        description=f"With `wait`: how long to wait for the hooks, once the claim has its VM. Default: {DEFAULT_WAIT_SECONDS:g}.",
    )

    @model_validator(mode="before")
    @classmethod
    def _is_object(cls, value: Any) -> Any:
        if not isinstance(value, dict | cls):  # and not a word of what it is
            raise ValueError("must be an object with data, wait and wait_seconds")  # noqa: TRY004 - pydantic tells this one
        return value

    @field_validator("data")
    @classmethod
    def _small_enough(cls, value: Any) -> Any:
        size = len(to_json(value))
        if size > MAX_DATA_BYTES:
            raise ValueError(
                f"is {size} bytes of JSON; the most is {MAX_DATA_BYTES}: hand over where the guest finds it instead"
            )
        return value

    def request(self) -> HandoverRequest:
        seconds = self.wait_seconds if self.wait_seconds is not None else DEFAULT_WAIT_SECONDS
        data = to_json(self.data) if self.data is not None else None
        return HandoverRequest(data, seconds if self.wait else 0.0)


_ONLY_WITH_VM = (
    *("start_from", "placement", "guest", "warm_when", "deadline_seconds"),
    *("remember", "allow_unschedulable", "namespace"),
)


def _split(schema: dict[str, Any]) -> None:
    """Changes the schema into a choice of two, each with the fields that belong together: what a generator of clients makes types of.

    The service is more lenient than either: it takes null for a field of the other one.
    """
    properties: dict[str, Any] = schema.pop("properties")
    for key in ("type", "additionalProperties"):
        del schema[key]

    def choice(title: str, own: str, left_out: Collection[str], description: str) -> dict[str, Any]:
        kept = {name: each for name, each in properties.items() if name not in left_out}
        given = next(each for each in kept[own].pop("anyOf") if each.get("type") != "null")
        kept[own] = given | kept[own]
        whole = {"title": title, "description": description, "type": "object", "properties": kept}
        return whole | {"required": [own], "additionalProperties": False}

    schema["oneOf"] = [
        choice("PoolClaim", "pool", ("vm", *_ONLY_WITH_VM), "A claim from a pool."),
        choice("VmClaim", "vm", ("pool",), "A claim that describes its VM."),
    ]


class ClaimBody(_Body):
    """A request for one VM: from a `pool`, or described as `vm` and then served by the fastest available path."""

    model_config = ConfigDict(json_schema_extra=_split)

    pool: PoolName | None = Field(default=None, description="Claim from this pool. Give either `pool` or `vm`.")
    vm: Template | None = Field(
        default=None,
        description=(
            "The VM, in any form that a pool's `template` may have. A pool with the same shape serves the claim warm; otherwise "
            "the VM starts from a snapshot of that shape, with a preloaded image, or cold."
        ),
    )
    start_from: StartFrom | None = Field(
        default=None, description="With `vm`: start only from this snapshot or preload."
    )
    placement: Placement | None = Field(
        default=None, description="With `vm`: where the VM may run, and on what terms. Part of its shape."
    )
    guest: GuestSpec | None = Field(
        default=None, description="With `vm`: a channel to the guest, over which the claim can hand data over."
    )
    warm_when: WarmWhen | None = Field(
        default=None, description="With `vm`: what shows that the guest has booted. Default: `agent`."
    )
    paths: tuple[StartPath, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=len(StartPath),
        description="The paths that may serve the claim. Default: all of them with `vm`, only `pool` with a pool.",
    )
    deadline_seconds: Annotated[float, Strict()] | None = Field(
        default=None,
        gt=0,
        le=MAX_LEASE_SECONDS,
        description=(
            "With `vm`: the claim fails if it has no VM after this many seconds. It is refused at once if every available path was "
            "measured to take longer (p95, for this shape)."
        ),
    )
    remember: Annotated[bool, Strict()] = Field(
        default=False,
        description="With `vm`: keep a pool of one such VM from now on, and preload its image, so that the next claim is warm.",
    )
    allow_unschedulable: Annotated[bool, Strict()] = Field(
        default=False,
        description=(
            "With `vm`: accept the claim even if no node could ever take its VM. Use it in clusters that add nodes for pending pods."
        ),
    )
    namespace: str | None = Field(
        default=None,
        max_length=63,
        description="With `vm`: the namespace that the service works in; any other is refused.",
    )
    handover: HandoverBody | None = Field(
        default=None,
        description="What to hand over to the guest of the VM. The pool, or `guest`, needs a channel for that.",
    )
    prefer: Prefer | None = Field(
        default=None, description="Which warm VM to prefer, among those that have been ready longest."
    )
    wait_seconds: Annotated[float, Strict()] = Field(
        default=0,
        ge=0,
        le=MAX_WAIT_SECONDS,
        description="How many seconds this request may wait if no VM is ready.",
    )

    # Each validator sees the fields above its own and runs only if its field was given, so a plain claim pays for none of them.

    @field_validator("vm")
    @classmethod
    def _either(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        if value is not None and info.data.get("pool") is not None:
            raise ValueError("give either a pool or a vm, not both")
        return value

    @field_validator(*_ONLY_WITH_VM)
    @classmethod
    def _only_with_vm(cls, value: object, info: ValidationInfo) -> object:
        if value and info.data.get("pool") is not None:
            raise ValueError("this is only for a claim with `vm`; a pool's VMs are described by the pool")
        return value

    @field_validator("warm_when")
    @classmethod
    def _heard_through_the_channel(cls, value: WarmWhen | None, info: ValidationInfo) -> WarmWhen | None:
        if value is WarmWhen.HELLO and "guest" in info.data and not has_channel(info.data["guest"]):
            raise ValueError("hello is said through the guest's channel: add guest: {channel: true}, or choose another")
        return value

    @field_validator("handover")
    @classmethod
    def _needs_a_channel(cls, value: HandoverBody | None, info: ValidationInfo) -> HandoverBody | None:
        described = info.data.get("vm") is not None
        if value is not None and described and "guest" in info.data and not has_channel(info.data["guest"]):
            raise ValueError("the VM has no channel to hand anything over: add guest: {channel: true}")
        return value

    @field_validator("paths")
    @classmethod
    def _paths_of_a_pool(
        cls, value: tuple[StartPath, ...] | None, info: ValidationInfo
    ) -> tuple[StartPath, ...] | None:
        if value is not None and info.data.get("pool") is not None and set(value) != {StartPath.POOL}:
            raise ValueError(
                "a claim that names a pool is served by that pool: only 'pool' is allowed; or describe a `vm` instead"
            )
        return value


class BatchBody(_Body):
    """A request for many VMs at once."""

    pool: PoolName
    count: Count = Field(ge=1, le=MAX_BATCH, description="How many VMs. Each gets its own claim.")
    all_or_nothing: Annotated[bool, Strict()] = Field(
        default=False, description="Claim nothing if fewer VMs are ready. By default as many as are ready are claimed."
    )
    handovers: tuple[HandoverBody | None, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_BATCH,
        description="What each of the VMs gets, as many as `count`; null for one that gets nothing. A batch does not wait for hooks.",
    )

    @field_validator("handovers")
    @classmethod
    def _one_for_each(
        cls, value: tuple[HandoverBody | None, ...] | None, info: ValidationInfo
    ) -> tuple[HandoverBody | None, ...] | None:
        count = info.data.get("count")
        if value is not None and count is not None and len(value) != count:
            raise ValueError(f"there are {len(value)}, and count is {count}: write one for each VM")
        if any(each is not None and each.wait for each in value or ()):
            raise ValueError("a batch does not wait: leave `wait` out, and GET each claim")
        return value


class RenewBody(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    lease_seconds: Count | None = Field(
        default=None,
        ge=1,
        le=MAX_LEASE_SECONDS,
        description="New lease in seconds from now. Default: the claim's `lease_seconds`.",
    )


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
