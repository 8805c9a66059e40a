"""What a pool is asked to be. The same shape is the body of `PUT /v1/pools/{name}` and what the store keeps."""

import hashlib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationInfo, field_validator, model_validator

from app.config import MAX_AGE_SECONDS, MAX_LEASE_SECONDS, MAX_POOL_SIZE, MAX_VMS
from app.domain.fields import model_of
from app.domain.guests import GuestSpec, has_channel
from app.domain.observation import WarmWhen
from app.domain.paths import StartPath
from app.domain.placement import Placement
from app.domain.planning import surge_of
from app.domain.statistics import BootTimes
from app.domain.vm_pools import Backing

POOL_NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
PATTERNS_IN_WORDS = {
    POOL_NAME_PATTERN: "a name is 1 to 63 lower-case letters, digits and '-', and begins and ends with a letter or digit"
}
"""The message for each pattern that does not match."""
Count = Annotated[int, Strict()]
"""A whole number as such: `true` and `"3"` are none."""
_NOT_MEASURED = BootTimes()
Template = Annotated[dict[str, Any], Field(max_length=64)]
"""Of the fields of its top level. As a whole it is bounded by the bytes and the values of a body."""
PoolName = Annotated[str, Field(pattern=POOL_NAME_PATTERN, max_length=63, examples=["fast-start-pool"])]


class StartFrom(BaseModel):
    """The snapshot or preload that VMs start from, by name."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"snapshot": "ubuntu-ready"}]}
    )

    snapshot: PoolName | None = None
    preload: PoolName | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.snapshot is None) == (self.preload is None):
            raise ValueError("name one snapshot or one preload, and not both")
        return self

    @property
    def path(self) -> StartPath:
        return StartPath.SNAPSHOT if self.snapshot is not None else StartPath.PRELOAD

    @property
    def source(self) -> str:
        """The name of the snapshot or preload."""
        return self.snapshot or self.preload or ""


class PoolSpec(BaseModel):
    """The template of the VMs to keep warm, their number, and limits. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Count = Field(ge=0, le=MAX_POOL_SIZE, description="Number of VMs to keep ready.", examples=[10])
    template: Template = Field(
        description=(
            "The VM: a KubeVirt template as in a VirtualMachine's `spec.template` (`{spec: {domain, volumes}}`), a whole "
            "VirtualMachine `spec`, or the short form `{image, cpu, memory, disk}`."
        ),
        examples=[{"image": "quay.io/containerdisks/ubuntu:22.04", "cpu": 2, "memory": "2Gi"}],
    )
    start_from: StartFrom | None = Field(
        default=None, description="Start the VMs from a snapshot or a preload. Default: from the template alone."
    )
    backing: Backing = Field(
        default=Backing.VIRTUAL_MACHINE,
        description=(
            "`VirtualMachine`: the service creates each VM. `VirtualMachinePool`: the service creates a VirtualMachinePool, which "
            "is visible in the cluster and creates the VMs; changes that others make to it are reported and reverted."
        ),
    )
    placement: Placement | None = Field(
        default=None, description="Which nodes the VMs may run on, and which resources they get there."
    )
    guest: GuestSpec | None = Field(
        default=None, description="A channel between the guests and the service, over which claims hand data over."
    )
    allow_unschedulable: Annotated[bool, Strict()] = Field(
        default=False,
        description=(
            "Accept the pool and create its VMs even if the nodes have no room for them. Use it in clusters that add nodes for "
            "pending pods. Otherwise a pool is refused if its size exceeds the number of VMs that fit on empty nodes."
        ),
    )
    min_available: Count = Field(
        default=0,
        ge=0,
        le=MAX_POOL_SIZE,
        description=(
            "With fewer ready VMs the pool is `degraded`. The service never removes a ready VM if that leaves fewer."
        ),
    )
    auto_replenish: Annotated[bool, Strict()] = Field(
        default=True, description="Replace each claimed VM. If false, the pool shrinks until `replenish` is called."
    )
    max_vms: Count | None = Field(
        default=None,
        ge=0,
        le=MAX_VMS,
        description=(
            "Maximum number of VMs, warm and claimed together. Default: no limit. The check for room on the nodes considers "
            "`size` only; if claimed VMs use all the room, the pool refills when one is released."
        ),
    )
    max_ready_age_seconds: Count | None = Field(
        default=None,
        ge=60,
        le=MAX_AGE_SECONDS,
        description="Replace ready VMs that are older than this. Default: never.",
    )
    max_concurrent_creates: Count = Field(
        default=10, ge=1, le=500, description="Maximum number of VMs being created at the same time."
    )
    boot_timeout_seconds: Count = Field(
        default=600, ge=5, le=86_400, description="A VM that is not ready after this time has failed."
    )
    warm_when: WarmWhen = Field(
        default=WarmWhen.AGENT,
        description=(
            "What proves that the guest has booted: `agent` (Ready, and the guest agent is connected), `ready`, `running`, or `hello` "
            "(the guest says so itself, through its channel, which is the quickest and needs no agent)."
        ),
    )
    default_lease_seconds: Count = Field(
        default=3600, ge=1, le=MAX_LEASE_SECONDS, description="Lease of a claim that does not set one."
    )
    max_lease_seconds: Count = Field(
        default=86_400,
        validate_default=True,
        ge=1,
        le=MAX_LEASE_SECONDS,
        description="Maximum lease, counted from the moment it is set or renewed.",
    )

    @property
    def path(self) -> StartPath:
        """How its VMs start."""
        return self.start_from.path if self.start_from is not None else StartPath.COLD

    @property
    def source(self) -> str | None:
        """The name of the snapshot or preload that they start from."""
        return self.start_from.source if self.start_from is not None else None

    @property
    def has_channel(self) -> bool:
        """Whether its VMs have an identity disk."""
        return has_channel(self.guest)

    # Each validator compares with fields above its own; a field that is invalid itself is missing from `info.data`.

    @field_validator("backing")
    @classmethod
    def _disks_from_the_template(cls, value: Backing, info: ValidationInfo) -> Backing:
        start_from = info.data.get("start_from")
        if value is Backing.VIRTUAL_MACHINE_POOL and start_from is not None and start_from.snapshot is not None:
            raise ValueError(
                "a VirtualMachinePool cannot start its VMs from a snapshot, whose disks are made for each VM on its own; "
                "leave backing out, or start from a preload"
            )
        return value

    @field_validator("guest")
    @classmethod
    def _identities_of_its_own(cls, value: GuestSpec | None, info: ValidationInfo) -> GuestSpec | None:
        if has_channel(value) and info.data.get("backing") is Backing.VIRTUAL_MACHINE_POOL:
            raise ValueError(
                "a VirtualMachinePool makes all its VMs from one template, so that none has an identity of its own, which the "
                "channel needs; leave backing or channel out"
            )
        return value

    @field_validator("warm_when")
    @classmethod
    def _heard_through_the_channel(cls, value: WarmWhen, info: ValidationInfo) -> WarmWhen:
        if value is WarmWhen.HELLO and "guest" in info.data and not has_channel(info.data["guest"]):
            raise ValueError("hello is said through the guest's channel: add guest: {channel: true}, or choose another")
        return value

    @field_validator("min_available")
    @classmethod
    def _floor_within_size(cls, value: int, info: ValidationInfo) -> int:
        size = info.data.get("size")
        if size is not None and value > size:
            raise ValueError(f"min_available ({value}) is above size ({size}); lower it or raise size")
        return value

    @field_validator("max_vms")
    @classmethod
    def _cap_above_size(cls, value: int | None, info: ValidationInfo) -> int | None:
        size = info.data.get("size")
        if value is not None and size is not None and value < size:
            raise ValueError(f"max_vms ({value}) is below size ({size}); raise it or lower size")
        return value

    @field_validator("max_lease_seconds")
    @classmethod
    def _default_within_longest(cls, value: int, info: ValidationInfo) -> int:
        default = info.data.get("default_lease_seconds")
        if default is not None and default > value:
            raise ValueError(
                f"default_lease_seconds ({default}) is above max_lease_seconds ({value}); lower it or raise this"
            )
        return value


def patched(spec: PoolSpec, patch: Mapping[str, Any]) -> PoolSpec:
    """The spec after a JSON merge patch (RFC 7396), validated whole: null sets a field to its default, and removes one from the
    template. Raises pydantic's ValidationError, also for an unknown field that is null.
    """
    return PoolSpec.model_validate(_merge(spec.model_dump(mode="json"), patch, PoolSpec))


def _merge(target: Mapping[str, Any], patch: Mapping[str, Any], model: type[BaseModel] | None) -> dict[str, Any]:
    """`model`: what the target is an instance of; None: any object."""
    merged = dict(target)
    for name, value in patch.items():
        if isinstance(value, dict):
            below = merged.get(name)
            merged[name] = _merge(below if isinstance(below, dict) else {}, value, model_of(model, name))
        elif value is not None or (model is not None and name not in model.model_fields):
            merged[name] = value  # also an unknown name, which the validation refuses
        else:
            merged.pop(name, None)
    return merged


def why_never_a_vm(spec: PoolSpec) -> str | None:
    """Why these settings never let the pool have a VM, and what would; None: they let it."""
    if spec.max_vms == 0:
        return "max_vms is 0: the pool never has a VM; raise max_vms"
    if spec.size == 0 and not spec.auto_replenish:
        return (
            "size is 0 and auto_replenish is off: the pool never has a VM, and replenish creates none; "
            "raise size or turn auto_replenish on"
        )
    return None


def contradictions(spec: PoolSpec, boots: BootTimes = _NOT_MEASURED) -> tuple[str, ...]:
    """Settings that cannot all hold though the pool works, and what to change. What can never work is refused by PoolSpec itself.

    `boots`: the pool's boot times as measured.
    """
    found = [why_never_a_vm(spec), _no_room_to_replace(spec), _floor_without_refill(spec), _ages_too_fast(spec, boots)]
    return tuple(note for note in found if note is not None)


def _no_room_to_replace(spec: PoolSpec) -> str | None:
    """The floor keeps every VM, and the cap allows no other."""
    if not spec.size or spec.max_vms is None or spec.min_available < spec.max_vms:
        return None
    return (
        f"size, min_available and max_vms are all {spec.size}: no VM can be replaced when the template changes or when it is too "
        "old, and a claim takes the pool below min_available until it ends; raise max_vms by 1 or lower min_available by 1"
    )


def _floor_without_refill(spec: PoolSpec) -> str | None:
    if spec.auto_replenish or not spec.min_available:
        return None
    return (
        f"auto_replenish is off: claims take the pool below min_available ({spec.min_available}), where it stays until replenish "
        "is called; turn auto_replenish on or set min_available to 0"
    )


def _ages_too_fast(spec: PoolSpec, boots: BootTimes) -> str | None:
    """VMs become too old faster than others can take their place. Only known once boots were measured."""
    age = spec.max_ready_age_seconds
    if age is None or not spec.size or boots.p50 is None:
        return None
    at_once = min(spec.max_concurrent_creates, surge_of(spec.size))
    seconds = -(-spec.size // at_once) * boots.p50
    if seconds <= age:
        return None
    return (
        f"replacing all {spec.size} VMs takes about {seconds:.0f} s ({at_once} at a time, {boots.p50:.0f} s each), so that VMs become "
        f"older than max_ready_age_seconds ({age}); raise it to {math.ceil(seconds)} or more"
    )


def revision_of(fingerprint: str, spec: PoolSpec) -> str:
    """Changes with anything that a VM of the pool is made from. When it changes, the pool rotates its VMs."""
    if spec.start_from is None:
        return fingerprint
    return hashlib.sha256(f"{fingerprint} {spec.path} {spec.source}".encode()).hexdigest()
