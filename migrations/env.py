"""Alembic's entry: one async connection, one transaction for all migrations, under time limits.

A migration that cannot get its lock soon, or runs long, gives up and changes nothing, so that it never queues the service
up behind it.
"""

import asyncio

from alembic import context
from sqlalchemy import Connection, pool, text

from app.store.database import make_engine
from app.store.schema import metadata

_LOCK_TIMEOUT = "4s"
_STATEMENT_TIMEOUT = "60s"
_COMMAND_SECONDS = 90  # after the server's own limit, which says what it was
_MIGRATION_LOCK = 0x656D6265  # two migrations at once wait for each other


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, compare_server_default=True)
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
        connection.execute(text(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT}'"))
        context.run_migrations()


async def _connect() -> None:
    url = context.config.attributes["url"]
    engine = make_engine(url, command_seconds=_COMMAND_SECONDS, poolclass=pool.NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_run)
            await connection.commit()
    finally:
        await engine.dispose()


asyncio.run(_connect())
