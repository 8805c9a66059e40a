"""One service for the tests of a module; those that break something have their own (`tests.support.service.serve`)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from app.devcluster import DevCluster, DevClusterConfig, Durations
from app.embedded.postgres import Postgres
from tests.support.clusters import COLD_BOOT_SECONDS
from tests.support.postgres import clone_database
from tests.support.service import Server, serve


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[DevCluster]:
    async with DevCluster(DevClusterConfig(durations=Durations.for_cold_boot(COLD_BOOT_SECONDS))) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(
    postgres: Postgres, template_database: str, cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """Shared by the tests of one module, each of which uses pools of its own. They say so: `asyncio(loop_scope="module")`."""
    folder: Path = tmp_path_factory.mktemp("service")
    async with clone_database(postgres, template_database) as url, serve(url, cluster, folder) as server:
        yield server
