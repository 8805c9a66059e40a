"""Snapshots as sources of VMs: what VMs can start from now, and which snapshots have a certain shape."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from app.domain.paths import FromSnapshot, MemoryImage, SnapshotDisk
from app.ids import vm_name
from app.store.database import Tx, any_row, run

# A VM keeps the take that it began with: its disks are made one by one, and the worker after one that died must go on with the
# same take. A take is removed only once no such VM is left.
_LATEST = text("""
    WITH moment AS (SELECT coalesce(CAST(:asked_at AS timestamptz), now()) AS asked_at)
    SELECT t.id, t.disks, t.fingerprint, t.vm_spec, t.stale_reason FROM moment m CROSS JOIN snapshot s
    LEFT JOIN snapshot_take t ON t.snapshot_id = s.id
        AND (t.state = 'ready' OR t.state = 'retiring' AND t.state_since > m.asked_at)
    WHERE s.name = :name AND s.deleted_at IS NULL AND (s.deleting_at IS NULL OR s.deleting_at > m.asked_at)
    ORDER BY t.ready_at <= m.asked_at DESC NULLS LAST, t.number DESC LIMIT 1
""")
# Only the newest ready take of a snapshot counts: VMs start from that one.
_FOR_SHAPE = text("""
    SELECT s.name, t.shape, t.ready_at FROM snapshot_take t JOIN snapshot s ON s.id = t.snapshot_id
    WHERE t.shape = :shape AND t.state = 'ready' AND s.deleting_at IS NULL AND s.deleted_at IS NULL
      AND s.memory = :memory AND t.stale_reason IS NULL
      AND NOT EXISTS (SELECT 1 FROM snapshot_take n
                      WHERE n.snapshot_id = t.snapshot_id AND n.state = 'ready' AND n.number > t.number)
    ORDER BY t.ready_at DESC LIMIT :limit
""")
_UNDER_WAY = text("""
    SELECT s.name FROM snapshot_take t JOIN snapshot s ON s.id = t.snapshot_id
    WHERE t.shape = :shape AND t.state IN ('planned', 'booting', 'stopping', 'taking') AND s.memory = :memory
      AND s.deleting_at IS NULL AND s.deleted_at IS NULL ORDER BY t.created_at LIMIT :limit
""")


_ANY_MEMORY = text("SELECT 1 FROM snapshot WHERE memory AND deleted_at IS NULL LIMIT 1")
_KEEPS_MEMORY = text("SELECT 1 FROM snapshot WHERE name = :name AND memory AND deleted_at IS NULL")


@dataclass(frozen=True, slots=True)
class StaleMemory:
    """The memory of snapshot `name` cannot be restored any more, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class SnapshotOption:
    """A snapshot that VMs of a shape can start from now."""

    name: str
    shape: str
    ready_at: datetime


async def start_of(tx: Tx, name: str, *, asked_at: datetime | None = None) -> FromSnapshot | StaleMemory | str | None:
    """The disks of the latest ready take, and its memory if it has any. A string says why there are none yet. None: there is no
    snapshot of that name.

    For a VM that the cluster was first asked for at `asked_at` it is the take that was the latest at that time, if any.
    """
    row = (await run(tx, _LATEST, name=name, asked_at=asked_at)).first()
    if row is None:
        return None
    if row.disks is None:
        return f"snapshot {name!r} is not ready"
    if row.stale_reason is not None:
        return StaleMemory(name, row.stale_reason)
    disks = row.disks if isinstance(row.disks, list) else json.loads(row.disks)
    return FromSnapshot(
        name,
        tuple(SnapshotDisk(**{**disk, "access_modes": tuple(disk["access_modes"])}) for disk in disks),
        _read_memory(name, row),
    )


async def keep_memory(tx: Tx) -> bool:
    """Whether any snapshot keeps memory."""
    return await any_row(tx, _ANY_MEMORY)


async def keeps_memory(tx: Tx, name: str) -> bool:
    """Whether VMs that start from the snapshot start from its memory."""
    return await any_row(tx, _KEEPS_MEMORY, name=name)


async def ready_for_shape(tx: Tx, shape: str, *, memory: bool = False, limit: int = 10) -> list[SnapshotOption]:
    """Snapshots of the disks, or those with memory, from which VMs of that shape can start, the newest first."""
    rows = await run(tx, _FOR_SHAPE, shape=shape, memory=memory, limit=limit)
    return [SnapshotOption(row.name, row.shape, row.ready_at) for row in rows]


async def under_way_for_shape(tx: Tx, shape: str, *, memory: bool = False, limit: int = 10) -> list[str]:
    """Names of the snapshots of the disks, or of those with memory, that have a take of that shape under way."""
    return [row.name for row in await run(tx, _UNDER_WAY, shape=shape, memory=memory, limit=limit)]


def _read_memory(name: str, row: Any) -> MemoryImage | None:
    """A take has the name of its snapshot and its own id in the cluster."""
    return MemoryImage(vm_name(name, row.id), row.vm_spec) if row.fingerprint is not None else None
