"""What `get` can list: the routes, the filters and the columns of each kind."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from uuid import UUID

from app.cli.client.printing import Column, Json, read_columns, seconds, share, size, text, until
from app.errors import EmberpoolError
from emberpool.client import Client
from emberpool.client.schemas import ClaimState, ClaimView

LIVE_CLAIMS: Final[tuple[ClaimState, ...]] = ("bound", "pending")


class Kind(StrEnum):
    POOLS = "pools"
    CLAIMS = "claims"
    VMS = "vms"
    SNAPSHOTS = "snapshots"
    PRELOADS = "preloads"
    PATHS = "paths"
    NODES = "nodes"


_OTHER_WORDS: Final = {
    Kind.POOLS: "virtualmachinepool vmpool",
    Kind.VMS: "virtualmachine",
    Kind.SNAPSHOTS: "virtualmachinesnapshot vmsnapshot",
    Kind.PRELOADS: "datavolume dv dataimportcron dic",
    Kind.NODES: "",
    Kind.CLAIMS: "",
    Kind.PATHS: "",
}
KINDS: Final = {
    word: kind
    for kind, others in _OTHER_WORDS.items()
    for singular in (kind.removesuffix("s"), *others.split())
    for word in (singular, f"{singular}s")
}
"""A kind by each word for it, in the singular and in the plural, and by what it is in KubeVirt and CDI."""


class NotFound(EmberpoolError):
    code = "not-found"
    title = "Not found"


@dataclass(frozen=True, slots=True)
class Filters:
    """Which items to list. `everything` includes what has ended."""

    path: str | None = None
    pool: str | None = None
    state: str | None = None
    label: str | None = None
    shape: str | None = None
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """`filters` are the fields of Filters that apply to it."""

    columns: tuple[Column, ...]
    filters: frozenset[str] = field(default_factory=frozenset)


def find_all(client: Client, kind: Kind, filters: Filters) -> Iterator[Json]:
    query = {
        name: value
        for name in sorted(LISTINGS[kind].filters - {"everything"})
        if (value := getattr(filters, name)) is not None
    }
    if kind is Kind.VMS and filters.everything:
        query["ended"] = True
    if kind is Kind.CLAIMS and not filters.everything and filters.state is None:
        for state in LIVE_CLAIMS:
            yield from client.iter_claims(**query, state=state)
        return
    yield from getattr(client, f"iter_{kind}")(**query)


def find_one(client: Client, kind: Kind, name: str) -> Json:
    """By name; a claim or VM also by id. Raises NotFound."""
    match kind:
        case Kind.CLAIMS:
            return find_claim(client, name)
        case Kind.VMS:
            return _find_vm(client, name)
        case _:
            found: Json = getattr(client, f"get_{kind.removesuffix('s')}")(name)
            return found


def find_claim(client: Client, name: str) -> ClaimView:
    """By id, or by the label `name`: the claim that has not ended, else the one that ended last. Raises NotFound."""
    if is_id(name):
        return client.get_claim(name)
    for state in (*LIVE_CLAIMS, None):
        for claim in client.list_claims(label=f"name={name}", state=state, limit=1)["items"]:
            return claim
    raise NotFound(
        f"no claim has the id or the label name={name}; `emberpool get claims` lists those that have not ended"
    )


def is_id(name: str) -> bool:
    try:
        UUID(name)
    except ValueError:
        return False
    return True


def name_of(claim: Json) -> str:
    """The claim's label `name`, else its id."""
    return str(claim["labels"].get("name") or claim["id"])


def _find_vm(client: Client, name: str) -> Json:
    if is_id(name):
        return client.get_vm(name)
    for vm in client.iter_vms():
        if vm["name"] == name:
            return client.get_vm(vm["id"])
    raise NotFound(f"no VM has the id or the name {name}; `emberpool get vms` lists those that have not ended")


def _ready(pool: Json) -> str:
    return f"{pool['status']['counts']['ready']}/{pool['spec']['size']}"


def _on_its_way(pool: Json) -> str:
    counts = pool["status"]["counts"]
    return str(sum(counts[state] for state in ("planned", "creating", "booting")))


def _wait(claim: Json) -> str:
    if claim["state"] == "pending":
        return seconds((claim["estimate"] or {}).get("seconds"))
    return seconds(claim["timings"]["wait"])


def _source(snapshot: Json) -> str:
    source = (snapshot.get("spec") or snapshot).get("source") or {}
    return text(next((f"{kind}/{name}" for kind, name in source.items() if name), None))


def _memory(snapshot: Json) -> str:
    """What the memory takes; `none` for a snapshot of the disks alone."""
    return size(snapshot["memory_bytes"]) if snapshot.get("memory") else "none"


def _image(preload: Json) -> str:
    image = (preload.get("spec") or preload).get("image") or {}
    given = next((value for value in image.values() if value), None)
    return text(given if isinstance(given, str) else (given or {}).get("url") or (given or {}).get("name"))


def _percent(preload: Json) -> str:
    percent = (preload.get("progress") or {}).get("percent")
    return share(percent / 100 if percent is not None else None)


def _saving(path: Json) -> str:
    """Over all shapes there is none: each path has served other shapes, and an image that is small needs no other path."""
    return share(path["saving"] if path["shape"] else None)


def _pages(node: Json) -> str:
    return text([f"{page}:{found['free']}/{found['allocatable']}" for page, found in node["hugepages"].items()])


LISTINGS: Final[dict[Kind, Listing]] = {
    Kind.POOLS: Listing(
        read_columns(
            "NAME:name PHASE:status.phase READY COMING CLAIMED:status.counts.claimed WAITING:status.counts.waiting "
            "BOOT:status.boot_seconds.p50|seconds AGE:created_at|since REASON:status.reason",
            {"READY": _ready, "COMING": _on_its_way},
        )
    ),
    Kind.CLAIMS: Listing(
        read_columns(
            "NAME:labels.name STATE:state POOL:pool PATH:path VM:vm.name NODE:vm.node ADDRESSES:vm.addresses WAIT LEASE ID:id",
            {
                "WAIT": _wait,
                "LEASE": lambda claim: until(claim["lease_expires_at"] if claim["ended_at"] is None else None),
            },
        ),
        frozenset({"pool", "state", "label", "shape", "everything"}),
    ),
    Kind.VMS: Listing(
        read_columns(
            "NAME:name STATE:state POOL:pool NODE:node ADDRESSES:addresses BOOT:boot_seconds|seconds AGE:created_at|since "
            "HEALTH:health"
        ),
        frozenset({"pool", "state", "everything"}),
    ),
    Kind.SNAPSHOTS: Listing(
        read_columns(
            "NAME:name STATE:state SOURCE SIZE:bytes|size MEMORY USED:used.count AGE:ready_at|since SHAPE:shape REASON:reason",
            {"SOURCE": _source, "MEMORY": _memory},
        )
    ),
    Kind.PRELOADS: Listing(
        read_columns(
            "NAME:name STATE:state PROGRESS IMAGE USED:used REASON:reason", {"PROGRESS": _percent, "IMAGE": _image}
        )
    ),
    Kind.PATHS: Listing(
        read_columns(
            "PATH:path COUNT:count P50:p50|took P95:p95|took SAVING EXPECTED:expected|share SHAPE",
            {"SAVING": _saving, "SHAPE": lambda path: path["shape"] or "(all)"},
        ),
        frozenset({"shape", "path"}),
    ),
    Kind.NODES: Listing(
        read_columns(
            "NAME:name ZONE:zone TAKES-VMS FREE-CPUS FREE-MEMORY:memory.free|size FREE-HUGEPAGES PODS:pods.used VMS",
            {
                "TAKES-VMS": lambda node: "yes" if node["takes_vms"] else "no",
                "FREE-CPUS": lambda node: f"{node['cpus']['free']:g}/{node['cpus']['allocatable']:g}",
                "FREE-HUGEPAGES": _pages,
                "VMS": lambda node: str(sum(node["vms"].values())),
            },
        )
    ),
}
