"""A database that can be read and not written, as a server that was demoted."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from sqlalchemy import make_url


@asynccontextmanager
async def read_only(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Read-only for all sessions that begin before this ends, or before `reset`; one that began so stays so."""
    connection = await asyncpg.connect(url)
    await connection.execute(f'ALTER DATABASE "{make_url(url).database}" SET default_transaction_read_only = on')
    try:
        yield connection
    finally:
        await reset(connection, url)
        await connection.close()


async def reset(connection: asyncpg.Connection, url: str) -> None:
    await connection.execute(f'ALTER DATABASE "{make_url(url).database}" RESET default_transaction_read_only')
