"""Leases: a token and an expiry by which one worker at a time has a row, or a named job, to itself.

A lease is acquired, renewed, and released. The holder checks its token in the transaction of every write, so that a worker
whose lease ran out cannot overwrite what the next holder did. A worker that dies releases nothing: its leases expire.
"""

from uuid import UUID

from sqlalchemy import text

from app.store.database import Tx, any_row, run

IS_FREE = "(lease_expires_at IS NULL OR lease_expires_at < now())"
ACQUIRE = "lease_token = :token, lease_expires_at = now() + make_interval(secs => :seconds)"
RELEASE = "lease_token = NULL, lease_expires_at = NULL"
"""Parts of the statements of tables with lease columns: `lease_token`, `lease_expires_at`, and `due_at`, from which on the row
is work.
"""


class RowLeases:
    """What workers do alike with the leases of any table. `among`: a condition that an index of the table knows."""

    def __init__(self, table: str, *, key: str = "id", among: str = "true") -> None:
        self._lock = text(f"SELECT 1 FROM {table} WHERE {key} = :id AND lease_token = :token FOR UPDATE")
        self._release = text(
            f"UPDATE {table} SET lease_expires_at = now(), due_at = now() WHERE {among} AND lease_token = :token"
        )

    async def holds(self, tx: Tx, row_id: UUID, *, token: UUID) -> bool:
        """Whether the token still holds the row, which is then locked until `tx` ends."""
        return await any_row(tx, self._lock, id=row_id, token=token)

    async def release(self, tx: Tx, *, token: UUID) -> None:
        """Gives back everything that the token holds: another worker can acquire it at once."""
        await run(tx, self._release, token=token)


_ACQUIRE = text("""
    INSERT INTO lease (name, holder, token, expires_at)
    VALUES (:name, :holder, :token, now() + make_interval(secs => :seconds))
    ON CONFLICT (name) DO UPDATE
        SET holder = excluded.holder, token = excluded.token, expires_at = excluded.expires_at
        WHERE lease.expires_at < now() OR lease.token = excluded.token
    RETURNING true
""")
_HOLDS = text("SELECT 1 FROM lease WHERE name = :name AND token = :token FOR SHARE")
_RELEASE = text("DELETE FROM lease WHERE name = :name AND token = :token")


async def acquire(tx: Tx, name: str, *, holder: str, token: UUID, seconds: float) -> bool:
    """Acquires or renews the lease of a named job for `seconds`. False if another token holds it."""
    return (await run(tx, _ACQUIRE, name=name, holder=holder, token=token, seconds=seconds)).scalar() is True


async def holds(tx: Tx, name: str, *, token: UUID) -> bool:
    """Whether the token still holds the lease. Nobody else can acquire it until `tx` ends: what `tx` writes comes before
    everything that the next holder writes.
    """
    return await any_row(tx, _HOLDS, name=name, token=token)


async def release(tx: Tx, name: str, *, token: UUID) -> None:
    """Lets another acquire it at once. Does nothing if the token no longer holds it."""
    await run(tx, _RELEASE, name=name, token=token)


_TRY_WRITE = text(
    "INSERT INTO lease (name, holder, token, expires_at) VALUES ('readiness', '', gen_random_uuid(), now())"
)


async def try_write(tx: Tx) -> None:
    """Writes a row and takes it back: raises where the database can be read but not written."""
    async with tx.begin_nested() as attempt:
        await run(tx, _TRY_WRITE)
        await attempt.rollback()
