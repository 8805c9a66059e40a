"""A dev cluster of a test's own, reached over HTTP as a real one would be."""

from collections.abc import AsyncIterator

import pytest

from app.devcluster import DevCluster, DevClusterConfig, Durations

COLD_BOOT_SECONDS = 0.1


@pytest.fixture
async def dev_cluster() -> AsyncIterator[DevCluster]:
    """Serves until the test ends; a VM boots in about a tenth of a second. Orders for faults go to `dev_cluster.faults`."""
    async with DevCluster(DevClusterConfig(durations=Durations.for_cold_boot(COLD_BOOT_SECONDS))) as cluster:
        yield cluster
