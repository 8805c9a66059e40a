"""Fixtures of the tests of claims that describe their VM."""

from contextlib import AsyncExitStack

import pytest

from app.compute.kubevirt.gateway import connect
from app.config import Settings
from tests.support.described_claims import Process


@pytest.fixture
async def start(db, gateway):
    """Starts processes of the service, which are closed after the test."""
    async with AsyncExitStack() as stack:

        def start(**settings) -> Process:
            process = Process(db, gateway, **settings)
            stack.push_async_callback(process.close)
            return process

        yield start


@pytest.fixture
def process(start) -> Process:
    return start()


@pytest.fixture
async def dev_gateway(dev_cluster, tmp_path):
    """A dev cluster, whose shapes are of specs as they are sent."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(dev_cluster.kubeconfig_text())
    gateway = await connect(Settings(kubeconfig=kubeconfig))
    yield gateway
    await gateway.close()
