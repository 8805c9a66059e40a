"""Rows of nodes: written by the informer, read by everybody else.

Each write gives the row a new version from one sequence. Only the leader writes, so versions are committed in their order, and
a reader that keeps what it has read needs to read only what is newer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import RowMapping, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import Uuid

from app.domain.nodes import Node, Taint
from app.store.database import Tx, first, mappings, run

WATCH = "nodes"
"""The watch of nodes: the name of its row and of its lease."""
PODS_WATCH = "pods"
"""The watch of the pods on nodes: its row is broken, with the reason, if they cannot be listed."""

_FACTS = ("labels", "taints", "cordoned", "conditions", "capacity", "allocatable", "images")
# A node that did not change is not written: every reader would read it again because of its new version.
_WRITE = text("""
    INSERT INTO node (name, uid, zone, facts, used, vms, version)
    VALUES (:name, :uid, :zone, :facts, :used, :vms, nextval('node_version'))
    ON CONFLICT (name) DO UPDATE SET uid = excluded.uid, zone = excluded.zone, facts = excluded.facts, used = excluded.used,
        vms = excluded.vms, version = excluded.version, changed_at = now()
    WHERE (node.uid, node.zone, node.facts, node.used, node.vms)
        IS DISTINCT FROM (excluded.uid, excluded.zone, excluded.facts, excluded.used, excluded.vms)
""").bindparams(
    bindparam("facts", type_=JSONB),
    bindparam("used", type_=JSONB(none_as_null=True)),
    bindparam("vms", type_=ARRAY(Uuid)),
)
_DROP = text("DELETE FROM node WHERE name = ANY(CAST(:names AS text[]))")
_KEEP = text("DELETE FROM node WHERE NOT (name = ANY(CAST(:names AS text[])))")
_COLUMNS = "name, uid, facts, used, vms, version"
_ALL = text(f"SELECT {_COLUMNS} FROM node ORDER BY name")
_PAGE = text(f"SELECT {_COLUMNS} FROM node WHERE name > :after ORDER BY name LIMIT :limit")
_ONE = text(f"SELECT {_COLUMNS} FROM node WHERE name = :name")
# One statement, so that names and rows are read at the same moment.
_NEWER = text(f"""
    SELECT n.name AS known, {", ".join(f"m.{column.strip()}" for column in _COLUMNS.split(","))}
    FROM node n LEFT JOIN node m ON m.name = n.name AND m.version > :version
""")

# VMs without a pod on a node need room that the rows of nodes do not show. These rows may be some seconds old, so VMs that have
# just become ready are counted too. A pod shows its VM by our label, or only by its instance if a VirtualMachinePool made it.
_UNPLACED = text("""
    WITH placed AS MATERIALIZED (SELECT unnest(vms) AS id FROM node)
    SELECT p.id, p.revision, count(*) AS n FROM vm v JOIN pool p ON p.id = v.pool_id
    WHERE v.ended_at IS NULL AND v.state IN ('planned', 'creating', 'booting', 'ready', 'claimed')
      AND (v.ready_at IS NULL OR v.ready_at > now() - make_interval(secs => :seconds))
      AND NOT EXISTS (SELECT 1 FROM placed WHERE placed.id = v.id)
      AND NOT EXISTS (SELECT 1 FROM placed WHERE placed.id::text = v.vmi_uid)
    GROUP BY p.id
""")

_VMS_BY_STATE = text("""
    SELECT node, state, count(*) AS n FROM vm
    WHERE ended_at IS NULL AND node = ANY(CAST(:names AS text[])) GROUP BY node, state
""")
_VMS = text("""
    SELECT v.id, v.name, v.state, p.name AS pool FROM vm v JOIN pool p ON p.id = v.pool_id
    WHERE v.ended_at IS NULL AND v.node = :name ORDER BY v.id LIMIT 1000
""")

_WAKE = text("""
    INSERT INTO plan_request (pool_id)
    SELECT pool_id FROM pool_plan WHERE waits_for_room OR capacity_problem IS NOT NULL RETURNING pool_id
""")


@dataclass(frozen=True, slots=True)
class NewerNodes:
    """`names`: all nodes. `changed`: those that are newer than the given version. `version`: the newest of them."""

    names: frozenset[str]
    changed: tuple[Node, ...]
    version: int


@dataclass(frozen=True, slots=True)
class Unplaced:
    """VMs of one pool that have no pod on a node yet. VMs of an older template count as VMs of `revision`."""

    pool_id: UUID
    revision: str
    count: int


@dataclass(frozen=True, slots=True)
class VmOnNode:
    id: UUID
    name: str
    state: str
    pool: str


async def write(tx: Tx, nodes: Sequence[Node]) -> None:
    """Writes those of the nodes that changed."""
    if nodes:
        await tx.execute(_WRITE, [_row(node) for node in sorted(nodes, key=lambda node: node.name)])


async def drop(tx: Tx, names: Sequence[str]) -> None:
    if names:
        await run(tx, _DROP, names=list(names))


async def keep_only(tx: Tx, names: Sequence[str]) -> None:
    """Deletes all other nodes, because a whole list did not show them."""
    await run(tx, _KEEP, names=list(names))


async def read_all(tx: Tx) -> list[Node]:
    return [_read(row) for row in await mappings(tx, _ALL)]


async def read_newer(tx: Tx, version: int) -> NewerNodes:
    """All names, and the nodes that are newer than `version` (0: all)."""
    rows = await mappings(tx, _NEWER, version=version)
    newest = max((row["version"] for row in rows if row["name"] is not None), default=version)
    changed = tuple(_read(row) for row in rows if row["name"] is not None)
    return NewerNodes(frozenset(row["known"] for row in rows), changed, newest)


async def page(tx: Tx, *, after: str, limit: int) -> list[Node]:
    """By name, those after `after`."""
    return [_read(row) for row in await mappings(tx, _PAGE, after=after, limit=limit)]


async def get(tx: Tx, name: str) -> Node | None:
    row = await first(tx, _ONE, name=name)
    return _read(row) if row else None


async def unplaced(tx: Tx, *, seconds: float) -> list[Unplaced]:
    """By pool, the VMs that are not ready, or ready for less than `seconds`, and that no node is known to have (see `Node.vms`)."""
    rows = await run(tx, _UNPLACED, seconds=seconds)
    return [Unplaced(row.id, row.revision, row.n) for row in rows]


async def count_vms(tx: Tx, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Our VMs on each of these nodes, by state."""
    found: dict[str, dict[str, int]] = {name: {} for name in names}
    for row in await run(tx, _VMS_BY_STATE, names=list(names)):
        found[row.node][row.state] = row.n
    return found


async def vms_on(tx: Tx, name: str) -> list[VmOnNode]:
    """Our VMs on one node, the oldest first, at most a thousand."""
    return [VmOnNode(row.id, row.name, row.state, row.pool) for row in await run(tx, _VMS, name=name)]


async def wake_waiting(tx: Tx) -> int:
    """Every pool that the nodes have no room for is due for planning. Returns how many."""
    return len((await run(tx, _WAKE)).all())


def _row(node: Node) -> dict[str, object]:
    facts = {name: getattr(node, name) for name in _FACTS}
    facts["taints"] = [[taint.key, taint.value, taint.effect] for taint in node.taints]
    used = None if node.used is None else {"pods": node.used, "pinned": node.pinned, "repels": node.repels}
    vms = sorted(found for text_id in node.vms if (found := _as_id(text_id)) is not None)
    return {"name": node.name, "uid": node.uid, "zone": node.zone, "facts": facts, "used": used, "vms": vms}


def _as_id(value: str) -> UUID | None:
    """None if the label is not an id: somebody changed it."""
    try:
        return UUID(value)
    except ValueError:
        return None


def _read(row: RowMapping) -> Node:
    facts, used = row["facts"], row["used"] or {}
    given = {
        **{name: facts[name] for name in _FACTS},
        "taints": tuple(Taint(*taint) for taint in facts["taints"]),
        "images": tuple((name, size) for name, size in facts["images"]),
        "vms": frozenset(str(vm_id) for vm_id in row["vms"]),
    }
    pinned, repels = used.get("pinned", 0), used.get("repels", False)
    return Node(name=row["name"], uid=row["uid"], used=used.get("pods"), pinned=pinned, repels=repels, **given)
