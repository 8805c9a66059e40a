"""Alembic's entry: one connection, one process at a time, one transaction for each migration, under time limits.

A migration that waits for a lock on a table holds up all that come after it. So it waits for a moment only, gives the table free,
and tries again a little later, for as long as the caller said.
"""

import asyncio
import time
from typing import Any

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import DatabaseUnavailable
from app.store import migrations
from app.store.database import make_engine
from app.store.postgres_errors import is_locked
from app.store.schema import metadata

_STATEMENT_TIMEOUT = "60s"
_COMMAND_SECONDS = 90  # after the server's own limit, which says what it was
_MIGRATION_LOCK = 0x656D6265
_PAUSE_SECONDS = 0.5


async def _migrate(*, url: str, lock_seconds: float, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    engine = make_engine(url, command_seconds=_COMMAND_SECONDS, poolclass=pool.NullPool)
    try:
        async with engine.connect() as connection:
            await _wait_for_others(connection, deadline)
            await connection.execute(text(f"SET lock_timeout = {round(lock_seconds * 1000)}"))
            await connection.execute(text(f"SET statement_timeout = '{_STATEMENT_TIMEOUT}'"))
            found = await migrations.current(connection)
            await connection.commit()
            if found is None or found <= migrations.head():
                await _run(connection, deadline)
    finally:
        await engine.dispose()  # and with its connection the lock


async def _wait_for_others(connection: AsyncConnection, deadline: float) -> None:
    """Asks again and again rather than wait in the database, where the snapshot of one that waits holds up vacuum."""
    while not (await connection.execute(text(f"SELECT pg_try_advisory_lock({_MIGRATION_LOCK})"))).scalar():
        await connection.commit()
        if time.monotonic() > deadline:
            raise DatabaseUnavailable("another process migrates it and does not finish; wait for it, or end it")
        await asyncio.sleep(_PAUSE_SECONDS)


async def _run(connection: AsyncConnection, deadline: float) -> None:
    """What was migrated before a lock could not be had stays: the next attempt goes on from there."""
    while True:
        try:
            await connection.run_sync(_run_migrations)
        except Exception as error:
            await connection.rollback()
            if not is_locked(error):
                raise
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(
                    "a migration needs a table that something works on without a pause; pg_stat_activity shows it. "
                    "Wait for it, or end it, and run `emberpool migrate` again"
                ) from error
        else:
            return
        await asyncio.sleep(_PAUSE_SECONDS)


def _run_migrations(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_server_default=True,
        transaction_per_migration=True,
        on_version_apply=_note_whom_it_serves,
    )
    with context.begin_transaction():
        context.run_migrations()


def _note_whom_it_serves(*, ctx: Any, step: Any, heads: set[str], **_: object) -> None:
    """In the transaction of each migration: what the table says is so, whatever happens later. What the rows need by then (see
    `migrations.require`) they need after an upgrade too.
    """
    connection = ctx.connection
    if connection.execute(text("SELECT to_regclass('schema_compat')")).scalar() is None:
        return  # before the migration that creates it
    (revision,) = heads
    before = connection.execute(text("DELETE FROM schema_compat RETURNING serves_from")).scalar()
    needed = before if step.is_upgrade and before is not None else ""
    connection.execute(
        text("INSERT INTO schema_compat (revision, serves_from) VALUES (:revision, :serves_from)"),
        {"revision": revision, "serves_from": max(migrations.serves_from(revision), needed)},
    )


asyncio.run(_migrate(**context.config.attributes["emberpool"]))
