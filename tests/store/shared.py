"""One clone of the template for many tests, emptied before each: a clone of its own costs a test half a second, this a few
milliseconds. A test that takes the server or the database away uses `database_url` instead.
"""

import asyncio

import asyncpg
import pytest

from app.store.database import Database
from app.store.schema import metadata
from tests.postgres import clone_database
from tests.store import invariants

_EMPTY = ";".join(f"DELETE FROM {table.name}" for table in reversed(metadata.sorted_tables))
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
    connection = await asyncpg.connect(shared_database_url)
    try:
        await connection.execute(_ALONE)
        await connection.execute(_EMPTY)
    finally:
        await connection.close()
    database = Database(shared_database_url, pool_size=20)
    yield database
    await invariants.check(database)
    await database.close()
