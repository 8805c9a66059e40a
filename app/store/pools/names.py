"""Pools by name, those included that were deleted and still have a row: their VMs, claims and events are listed under the name."""

from uuid import UUID

from sqlalchemy import text

from app.store.database import Tx, run

_NAMED = text("SELECT id FROM pool WHERE name = :name AND kind = 'pool'")


async def ids_named(tx: Tx, name: str) -> list[UUID]:
    """The ids of all pools of users that have the name, or had it."""
    return list((await run(tx, _NAMED, name=name)).scalars())
