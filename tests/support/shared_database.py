"""One clone of the template for many tests, emptied before each: a clone of its own costs a test half a second, this a few
milliseconds. What many rows have filled is cut off, or every later test would read past the dead ones. A test that takes the
server or the database away uses `database_url` instead.
"""

import asyncio

import asyncpg
import pytest

from app.store.database import Database
from app.store.schema import metadata
from tests.support import store_invariants as invariants
from tests.support.postgres import clone_database

_TABLES = [table.name for table in metadata.sorted_tables]
_ANEW = ";INSERT INTO installation DEFAULT VALUES"
_EMPTY = ";".join(f"DELETE FROM {name}" for name in reversed(_TABLES)) + _ANEW
_CUT = f"TRUNCATE {', '.join(_TABLES)}{_ANEW}"
_BYTES = """
    SELECT coalesce(max(pg_relation_size(oid)), 0) FROM pg_class
    WHERE relkind IN ('r', 'i') AND relnamespace = 'public'::regnamespace
"""
_MANY_BYTES = 1_000_000
_SECONDS = 30  # for statements of milliseconds, so that one that hangs tells its name
# A test that failed may have left a transaction open; nobody else is connected to this database.
_ALONE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture(scope="session")
def shared_database_url(postgres, template_database):
    clone = clone_database(postgres, template_database)
    with asyncio.Runner() as runner:
        url = runner.run(clone.__aenter__())
        try:
            yield url
        finally:
            runner.run(clone.__aexit__(None, None, None))


@pytest.fixture
async def db(shared_database_url):
    """Connected and empty. When the test is over its rows are checked once more."""
    connection = await asyncpg.connect(shared_database_url, timeout=_SECONDS, command_timeout=_SECONDS)
    try:
        await connection.execute(_ALONE)
        await connection.execute(_CUT if await connection.fetchval(_BYTES) > _MANY_BYTES else _EMPTY)
    finally:
        await connection.close()
    database = Database(shared_database_url, pool_size=20)
    yield database
    await invariants.check(database)
    await database.close()
