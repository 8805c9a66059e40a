"""VMs that become ready as the watch makes them, with whoever waits served in the same transaction and once more after it."""

from collections.abc import Sequence
from uuid import UUID

from app.domain.states import VmState
from app.lifecycle.readiness import follow_ready, make_ready
from app.store.database import Database
from app.store.rows import PoolRow
from app.store.vms import observed
from tests.support.rows import eventually, make_vms, scalar


async def supply(db: Database, pool: PoolRow, count: int) -> list[UUID]:
    """In one batch, in the order of their places."""
    return await warm(db, pool, await make_vms(db, pool, count, VmState.BOOTING))


async def warm(db: Database, pool: PoolRow, booting: Sequence[UUID]) -> list[UUID]:
    async with db.begin() as tx:
        await make_ready(tx, list((await observed.by_ids(tx, booting)).values()))
    async with db.begin() as tx:
        await follow_ready(tx, [pool.id], [])
    return list(booting)


async def waiting(db: Database, pool: PoolRow, count: int) -> None:
    """Until so many claims stand in the pool's queue."""

    async def are() -> bool:
        query = "SELECT count(*) FROM claim_queue WHERE pool_id = :id"
        return bool(await scalar(db, query, id=pool.id) == count)

    await eventually(are)
