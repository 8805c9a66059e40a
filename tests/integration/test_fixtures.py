"""The shared fixtures: each test has a migrated database and a cluster that no other test sees."""

import aiohttp
import asyncpg
import pytest

from app.store.migrations import head
from tests.support.postgres import clone_database


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_has_a_migrated_database_of_its_own(database_url, turn):
    connection = await asyncpg.connect(database_url)
    try:
        assert await connection.fetchval("SELECT version_num FROM alembic_version") == head()
        await connection.execute("CREATE TABLE mark ()")  # a second time in the same database, this would fail
    finally:
        await connection.close()


async def test_an_empty_database_is_empty(empty_database_url):
    connection = await asyncpg.connect(empty_database_url)
    try:
        assert await connection.fetchval("SELECT to_regclass('alembic_version')") is None
    finally:
        await connection.close()


async def test_a_database_is_dropped_even_while_somebody_is_connected(postgres, template_database):
    async with clone_database(postgres, template_database) as url:
        left_open = await asyncpg.connect(url)
        name = await left_open.fetchval("SELECT current_database()")
    admin = await asyncpg.connect(postgres.url("postgres"))
    try:
        assert not await admin.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", name)
    finally:
        await admin.close()
        left_open.terminate()


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_has_a_cluster_of_its_own(dev_cluster, turn):
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mark"}}
    async with (
        aiohttp.ClientSession(raise_for_status=True) as session,
        session.post(f"{dev_cluster.url}/api/v1/namespaces", json=namespace) as response,
    ):
        assert response.status == 201  # in the same cluster, a second one would be a conflict
