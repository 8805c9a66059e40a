"""Snapshots as sources of VMs: what VMs can start from now, and which snapshots have a certain shape."""

import json
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from app.domain.paths import FromSnapshot, SnapshotDisk
from app.store.database import Tx, run

# A VM keeps the take that it began with: its disks are made one by one, and the worker after one that died must go on with the
# same take. A take is removed only once no such VM is left.
_LATEST = text("""
    WITH moment AS (SELECT coalesce(CAST(:asked_at AS timestamptz), now()) AS asked_at)
    SELECT t.disks FROM moment m CROSS JOIN snapshot s
    LEFT JOIN snapshot_take t ON t.snapshot_id = s.id
        AND (t.state = 'ready' OR t.state = 'retiring' AND t.state_since > m.asked_at)
    WHERE s.name = :name AND s.deleted_at IS NULL AND (s.deleting_at IS NULL OR s.deleting_at > m.asked_at)
    ORDER BY t.ready_at <= m.asked_at DESC NULLS LAST, t.number DESC LIMIT 1
""")
# Only the newest ready take of a snapshot counts: VMs start from that one.
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


async def start_of(tx: Tx, name: str, *, asked_at: datetime | None = None) -> FromSnapshot | str | None:
    """The disks of the latest ready take. A string says why there are none yet. None: there is no snapshot of that name.

    For a VM that the cluster was first asked for at `asked_at` it is the take that was the latest at that time, if any.
    """
    row = (await run(tx, _LATEST, name=name, asked_at=asked_at)).first()
    if row is None:
        return None
    if row.disks is None:
        return f"snapshot {name!r} is not ready"
    disks = row.disks if isinstance(row.disks, list) else json.loads(row.disks)
    return FromSnapshot(
        name, tuple(SnapshotDisk(**{**disk, "access_modes": tuple(disk["access_modes"])}) for disk in disks)
    )


async def ready_for_shape(tx: Tx, shape: str, *, limit: int = 10) -> list[SnapshotOption]:
    """Snapshots from which VMs of that shape can start, the newest first."""
    rows = await run(tx, _FOR_SHAPE, shape=shape, limit=limit)
    return [SnapshotOption(row.name, row.shape, row.ready_at) for row in rows]


async def under_way_for_shape(tx: Tx, shape: str, *, limit: int = 10) -> list[str]:
    """Names of the snapshots that have a take of that shape under way."""
    return [row.name for row in await run(tx, _UNDER_WAY, shape=shape, limit=limit)]
