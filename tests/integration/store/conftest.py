"""Fixtures of the store's tests."""

import pytest

from app.store.database import Database
from tests.support.query_plans import fill


@pytest.fixture
async def big(database_url):
    """A database of its own: emptying this one would take longer than making it. (database, pool)"""
    database = Database(database_url)
    yield database, await fill(database)
    await database.close()
