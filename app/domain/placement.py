"""Where a VM may run and on what terms: what users request, and which of these requests contradict each other.

The rules are KubeVirt's (v1.9.0, its VMI admitter and its renderer of launcher pods); the gateway writes them into a VM's spec.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator
from typing_extensions import TypeAliasType

_MOST_THREADS = 2
_LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
_NAME = r"^[A-Za-z0-9]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?$"
PATTERNS_IN_WORDS = {
    _LABEL_VALUE: "must be the value of a label: up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends",
    _NAME: "must be a name of letters, digits, '-', '_' and '.', with a letter or digit at both ends",
}
"""The message for each pattern that does not match."""
_WORDS = ("spread", "pack")
_HOW_TO_PREFER = 'say one of them: {"zone": ...}, {"node": ...}, {"spread": true} or {"pack": true}'
Flag = Annotated[bool, Strict()]
LabelValue = Annotated[str, Field(pattern=_LABEL_VALUE, max_length=63)]
NodeSelector = TypeAliasType(
    "NodeSelector",
    Annotated[dict[Annotated[str, Field(min_length=1, max_length=317)], LabelValue], Field(max_length=32)],
)
"""A label's name has up to 317 characters: a domain of 253, a slash, and 63."""
Toleration = TypeAliasType("Toleration", Annotated[dict[str, Any], Field(max_length=8)])
Affinity = TypeAliasType("Affinity", Annotated[dict[str, Any], Field(max_length=8)])
Tolerations = Annotated[list[Toleration], Field(max_length=32)]


class PageSize(StrEnum):
    MI2 = "2Mi"
    GI1 = "1Gi"


class Spread(StrEnum):
    """What to spread the VMs of a pool over. A preference: a VM runs wherever there is room."""

    NODES = "nodes"
    ZONES = "zones"
    NONE = "none"


class Placement(BaseModel):
    """Which nodes a VM may run on, and which resources it gets there."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"dedicated_cpus": True, "hugepages": "1Gi"}]}
    )

    dedicated_cpus: Flag = Field(
        default=False, description="Give the VM exclusive CPUs, on nodes with the static CPU manager policy."
    )
    isolate_emulator_thread: Flag = Field(
        default=False,
        description="Give the emulator a CPU of its own, so that it does not disturb the guest. Requires dedicated CPUs.",
    )
    numa_passthrough: Flag = Field(
        default=False, description="Pass the host's NUMA topology to the guest. Requires dedicated CPUs and hugepages."
    )
    realtime: Flag = Field(
        default=False, description="Use real-time scheduling. Requires dedicated CPUs and NUMA passthrough."
    )
    hugepages: PageSize | None = Field(
        default=None, description="Back the guest's memory with huge pages of this size."
    )
    cpu_model: Annotated[str, Field(pattern=_NAME, max_length=253)] | None = Field(
        default=None, description="CPU model that the node must support.", examples=["Skylake-Server"]
    )
    node_selector: NodeSelector = Field(default_factory=dict, description="Labels that the node must have.")
    affinity: Affinity | None = Field(default=None, description="Same as `spec.affinity` of a pod.")
    tolerations: Tolerations = Field(default_factory=list, description="Same as `spec.tolerations` of a pod.")
    spread: Spread | None = Field(
        default=None,
        description=(
            "What to spread the pool's VMs over, if there is room: `nodes`, `zones` or `none`. Default: `nodes`, unless the template "
            "has its own spread constraints."
        ),
    )


def _or_a_word(schema: dict[str, Any]) -> None:
    """Changes the schema of an object into one that also accepts a word."""
    whole = {key: schema.pop(key) for key in ("type", "properties", "additionalProperties") if key in schema}
    schema["anyOf"] = [
        whole | {"title": "PreferredVm"},
        {"type": "string", "enum": list(_WORDS), "title": "PreferWord"},
    ]
    schema["examples"] = [{"zone": "zone-a"}, "spread"]


class Prefer(BaseModel):
    """Which warm VM a claim prefers. A preference, not a requirement: the service looks at the VMs that have been ready longest, and
    takes the first of them if none matches. `spread` and `pack` can also be given as a string.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_or_a_word)

    zone: Annotated[str, Field(min_length=1, max_length=63)] | None = Field(
        default=None, description="Prefer a VM in this zone."
    )
    node: Annotated[str, Field(min_length=1, max_length=253)] | None = Field(
        default=None, description="Prefer a VM on this node."
    )
    spread: Flag = Field(default=False, description="Prefer the node with the fewest of the pool's latest claims.")
    pack: Flag = Field(default=False, description="Prefer the node with the most of the pool's latest claims.")

    @model_validator(mode="before")
    @classmethod
    def _from_a_word(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value not in _WORDS:
            raise ValueError(_HOW_TO_PREFER)
        return {value: True}

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if sum((self.zone is not None, self.node is not None, self.spread, self.pack)) != 1:
            raise ValueError(_HOW_TO_PREFER)
        return self


@dataclass(frozen=True, slots=True)
class WarmPlace:
    """Where a warm VM is, and its position in the queue."""

    seq: int
    node: str | None
    zone: str | None = None


def prefer_among(places: Sequence[WarmPlace], prefer: Prefer, claimed: Mapping[str, int]) -> list[int]:
    """The queue positions of VMs that match the preference, the best first. `claimed`: the number of the pool's latest claims
    with their VM on each node.
    """
    in_line = sorted(places, key=lambda place: place.seq)
    if prefer.zone is not None:
        return [place.seq for place in in_line if place.zone == prefer.zone]
    if prefer.node is not None:
        return [place.seq for place in in_line if place.node == prefer.node]
    sign = 1 if prefer.spread else -1
    return [place.seq for place in sorted(in_line, key=lambda place: sign * claimed.get(place.node or "", 0))]


class Aspect(StrEnum):
    """The part of a VM that a contradiction is about."""

    DEDICATED = "dedicated_cpus"
    ISOLATED = "isolate_emulator_thread"
    NUMA = "numa_passthrough"
    REALTIME = "realtime"
    HUGEPAGES = "hugepages"
    THREADS = "threads"
    CPU_REQUEST = "cpu_request"
    CPU_LIMIT = "cpu_limit"
    GUEST_MEMORY = "guest_memory"
    MEMORY_REQUEST = "memory_request"
    MEMORY_LIMIT = "memory_limit"


@dataclass(frozen=True, slots=True)
class Terms:
    """What one VM requests. Memory and pages are in bytes, CPU in CPUs; None means not given.

    `vcpus` is None if an instance type decides them. `pod_cpus`: the CPUs of a pinned VM's pod, which are its vCPUs and those for
    I/O threads and the emulator.
    """

    vcpus: int | None = 1
    threads: int | None = None
    pod_cpus: int | None = None
    dedicated: bool = False
    isolated: bool = False
    numa: bool = False
    realtime: bool = False
    page: Fraction | None = None
    guest_memory: Fraction | None = None
    memory_request: Fraction | None = None
    memory_limit: Fraction | None = None
    cpu_request: Fraction | None = None
    cpu_limit: Fraction | None = None


@dataclass(frozen=True, slots=True)
class Contradiction:
    """`message` follows the name of the field."""

    aspect: Aspect
    message: str


def contradictions(terms: Terms, *, full_cores_only: bool = False) -> tuple[Contradiction, ...]:
    """Every pair of requests that no node can fulfil together.

    `full_cores_only`: the CPU managers of the nodes assign whole cores of two threads (`full-pcpus-only`) and refuse a pod with an
    odd number of CPUs.
    """
    return (*_needs(terms), *_pinned(terms, full_cores_only=full_cores_only), *_pages(terms))


def _needs(terms: Terms) -> Iterator[Contradiction]:
    given = {"dedicated CPUs": terms.dedicated, "hugepages": terms.page is not None, "NUMA passthrough": terms.numa}
    for aspect, asked, needs in (
        (Aspect.ISOLATED, terms.isolated, ("dedicated CPUs",)),
        (Aspect.NUMA, terms.numa, ("dedicated CPUs", "hugepages")),
        (Aspect.REALTIME, terms.realtime, ("dedicated CPUs", "NUMA passthrough")),
    ):
        lacking = [need for need in needs if not given[need]]
        if asked and lacking:
            yield Contradiction(aspect, f"needs {' and '.join(lacking)}: ask for them too, or leave it out")


def _pinned(terms: Terms, *, full_cores_only: bool) -> Iterator[Contradiction]:
    if not terms.dedicated:
        return
    if terms.threads is not None and terms.threads > _MOST_THREADS:
        yield Contradiction(
            Aspect.THREADS,
            f"must be 1 or 2 where CPUs are dedicated; got {terms.threads}: use cores or sockets instead",
        )
    amounts = ((Aspect.CPU_REQUEST, terms.cpu_request), (Aspect.CPU_LIMIT, terms.cpu_limit))
    whole = True
    for aspect, amount in amounts:
        if amount is not None and amount.denominator != 1:
            whole = False
            yield Contradiction(aspect, f"must be whole CPUs where they are dedicated; got {float(amount):g}")
    if whole and None not in {terms.cpu_request, terms.cpu_limit} and terms.cpu_request != terms.cpu_limit:
        yield Contradiction(
            Aspect.CPU_LIMIT,
            f"must be the request where CPUs are dedicated; it is {terms.cpu_limit}, and the request {terms.cpu_request}",
        )
    elif whole and terms.vcpus is not None:
        given = {amount for _, amount in amounts if amount is not None}
        if given and terms.vcpus not in given:
            aspect = Aspect.CPU_REQUEST if terms.cpu_request is not None else Aspect.CPU_LIMIT
            yield Contradiction(
                aspect,
                f"must be the VM's CPUs where they are dedicated; it is {given.pop()}, and the VM has {terms.vcpus}: leave it out",
            )
    if None not in {terms.memory_request, terms.memory_limit} and terms.memory_request != terms.memory_limit:
        yield Contradiction(
            Aspect.MEMORY_LIMIT,
            "must be the request where CPUs are dedicated: leave one of them out, and the other counts for both",
        )
    if full_cores_only and terms.pod_cpus is not None and terms.pod_cpus % 2:
        yield Contradiction(
            Aspect.DEDICATED,
            f"takes an odd number of CPUs here ({terms.pod_cpus}), and the nodes assign whole cores of two: take one CPU more, "
            "or one less",
        )


def _pages(terms: Terms) -> Iterator[Contradiction]:
    page = terms.page
    if page is None or page <= 0:
        return
    given = (
        (Aspect.GUEST_MEMORY, terms.guest_memory),
        (Aspect.MEMORY_REQUEST, terms.memory_request),
        (
            Aspect.MEMORY_LIMIT,
            terms.memory_limit if terms.guest_memory is None and terms.memory_request is None else None,
        ),
    )
    for aspect, amount in given:
        if amount is not None and amount % page:
            below = amount // page * page
            nearest = [in_words(each) for each in (below, below + page) if each]
            yield Contradiction(
                aspect, f"must be a multiple of the page of {in_words(page)}; write {' or '.join(nearest)}"
            )


def in_words(amount: Fraction | int) -> str:
    """Bytes with the largest binary suffix that leaves them whole; a fraction of a byte is rounded up."""
    number = math.ceil(amount)
    for suffix, scale in (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if number and number % scale == 0:
            return f"{number // scale}{suffix}"
    return str(number)
