"""Whole processes for a test: a dev cluster and replicas of the service on one database, gone after the test however it ends."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from tests.support.postgres import database_url, empty_database_url, postgres, template_database
from tests.support.processes import Cluster, Service

__all__ = ["cluster", "database_url", "empty_database_url", "postgres", "replica", "session", "template_database"]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """No connection is kept: each request finds out anew whether its replica is there."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:
        yield session


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A dev cluster of its own process, serving; a VM boots in some tenths of a second."""
    cluster = Cluster(tmp_path, cold_boot_seconds=0.3)
    try:
        await cluster.serve()
        yield cluster
    finally:
        await cluster.close()


@pytest.fixture
async def replica(tmp_path: Path, cluster: Cluster, database_url: str) -> AsyncIterator[Callable[..., Service]]:
    """`replica(name, role=..., setting=...)`: a replica on the test's database and cluster, not started yet."""
    async with AsyncExitStack() as stack:

        def make(name: str, *, role: str = "all", **settings: object) -> Service:
            given = {"database_url": database_url, "kubeconfig": cluster.kubeconfig, **settings}
            service = Service(tmp_path, name, role=role, **given)
            stack.push_async_callback(service.close)
            return service

        yield make
