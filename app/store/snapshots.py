"""Snapshots and their takes: what is asked for, and what the cluster has of it."""

import json

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.paths import FromSnapshot, SnapshotDisk

_LATEST = text("""
    SELECT t.disks FROM snapshot s JOIN snapshot_take t ON t.snapshot_id = s.id AND t.state = 'ready'
    WHERE s.name = :name AND s.deleted_at IS NULL ORDER BY t.number DESC LIMIT 1
""")


async def start_of(tx: AsyncConnection, name: str) -> FromSnapshot | str:
    """The disks of the latest ready take; a string says why there are none."""
    row = (await tx.execute(_LATEST, {"name": name})).first()
    if row is None:
        return f"snapshot {name!r} is not ready"
    disks = row.disks if isinstance(row.disks, list) else json.loads(row.disks)
    return FromSnapshot(
        name, tuple(SnapshotDisk(**{**disk, "access_modes": tuple(disk["access_modes"])}) for disk in disks)
    )
