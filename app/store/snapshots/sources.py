"""Snapshots and their takes as others read them: what VMs can start from, and what has the shape that is wished for."""

import json
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.paths import FromSnapshot, SnapshotDisk

# What a VM that was asked for before may have begun with stays its own: its disks are made one by one, and a worker that comes
# after one that died must go on with the same take. Whoever retires a take waits for such VMs.
_LATEST = text("""
    WITH moment AS (SELECT coalesce(CAST(:asked_at AS timestamptz), now()) AS asked_at)
    SELECT t.disks FROM moment m CROSS JOIN snapshot s
    LEFT JOIN snapshot_take t ON t.snapshot_id = s.id
        AND (t.state = 'ready' OR t.state = 'retiring' AND t.state_since > m.asked_at)
    WHERE s.name = :name AND s.deleted_at IS NULL AND (s.deleting_at IS NULL OR s.deleting_at > m.asked_at)
    ORDER BY t.ready_at <= m.asked_at DESC NULLS LAST, t.number DESC LIMIT 1
""")
# A snapshot serves the shape of its newest ready take alone: that is the one that VMs start from.
_FOR_SHAPE = text("""
    SELECT s.name, t.shape, t.ready_at FROM snapshot_take t JOIN snapshot s ON s.id = t.snapshot_id
    WHERE t.shape = :shape AND t.state = 'ready' AND s.deleting_at IS NULL AND s.deleted_at IS NULL
      AND NOT EXISTS (SELECT 1 FROM snapshot_take n
                      WHERE n.snapshot_id = t.snapshot_id AND n.state = 'ready' AND n.number > t.number)
    ORDER BY t.ready_at DESC LIMIT :limit
""")
_UNDER_WAY = text("""
    SELECT s.name FROM snapshot_take t JOIN snapshot s ON s.id = t.snapshot_id
    WHERE t.shape = :shape AND t.state IN ('planned', 'booting', 'stopping', 'taking')
      AND s.deleting_at IS NULL AND s.deleted_at IS NULL ORDER BY t.created_at LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class SnapshotOption:
    """A snapshot that VMs of a shape can start from now."""

    name: str
    shape: str
    ready_at: datetime


async def start_of(tx: AsyncConnection, name: str, *, asked_at: datetime | None = None) -> FromSnapshot | str | None:
    """The disks of the latest ready take; a string says why there are none yet; None: no snapshot of that name is left.

    For a VM that the cluster was first asked for at `asked_at` it is the latest of then, where there was one.
    """
    row = (await tx.execute(_LATEST, {"name": name, "asked_at": asked_at})).first()
    if row is None:
        return None
    if row.disks is None:
        return f"snapshot {name!r} is not ready"
    disks = row.disks if isinstance(row.disks, list) else json.loads(row.disks)
    return FromSnapshot(
        name, tuple(SnapshotDisk(**{**disk, "access_modes": tuple(disk["access_modes"])}) for disk in disks)
    )


async def ready_for_shape(tx: AsyncConnection, shape: str, *, limit: int = 10) -> list[SnapshotOption]:
    """Snapshots whose disks VMs of that shape boot from, the newest first."""
    rows = await tx.execute(_FOR_SHAPE, {"shape": shape, "limit": limit})
    return [SnapshotOption(row.name, row.shape, row.ready_at) for row in rows]


async def under_way_for_shape(tx: AsyncConnection, shape: str, *, limit: int = 10) -> list[str]:
    """Names of the snapshots of which a take of that shape is being made."""
    return [row.name for row in await tx.execute(_UNDER_WAY, {"shape": shape, "limit": limit})]
