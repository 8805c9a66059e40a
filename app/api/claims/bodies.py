"""The JSON of claims that clients send."""

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationInfo, field_validator, model_validator
from pydantic_core import to_json
from typing_extensions import TypeAliasType

from app.config import MAX_BATCH, MAX_LEASE_SECONDS, MAX_WAIT_SECONDS
from app.domain.guests import GuestSpec, has_channel
from app.domain.handovers import DEFAULT_WAIT_SECONDS, MAX_DATA_BYTES, HandoverRequest
from app.domain.observation import WarmWhen
from app.domain.paths import StartPath
from app.domain.placement import Placement, Prefer
from app.domain.pools import Count, PoolName, StartFrom, Template

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
