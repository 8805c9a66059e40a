"""A dev cluster whose time stands still until a test moves it."""

import aiohttp
import pytest

from app.devcluster import DevCluster, DevClusterConfig, Durations, ManualClock
from tests.support.devcluster_bench import Bench


@pytest.fixture
def config():
    return DevClusterConfig(durations=Durations(), jitter_share=0.0)


@pytest.fixture
async def bench(config):
    clock = ManualClock()
    timeout = aiohttp.ClientTimeout(total=60)
    async with DevCluster(config, clock=clock) as cluster, aiohttp.ClientSession(timeout=timeout) as session:
        yield Bench(cluster, clock, session)
