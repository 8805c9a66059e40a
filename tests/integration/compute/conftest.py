"""The dev cluster, quick, and a gateway to it."""

import pytest

from app.compute.kubevirt import reflector
from app.compute.kubevirt.gateway import connect
from app.config import Settings
from app.devcluster import DevCluster, DevClusterConfig, Durations


@pytest.fixture
async def cluster():
    async with DevCluster(DevClusterConfig(durations=Durations.for_cold_boot(0.2))) as running:
        yield running


@pytest.fixture
async def connected(cluster, tmp_path, monkeypatch):
    """Makes gateways to the cluster, with the settings that a test wants. Their pauses are next to none."""
    monkeypatch.setattr(reflector, "_BACKOFF_BASE", 0.001)
    made = []

    async def make(**settings):
        path = tmp_path / "kubeconfig"
        path.write_text(cluster.kubeconfig_text())
        gateway = await connect(Settings(kubeconfig=path, **settings))
        made.append(gateway)
        return gateway

    yield make
    for gateway in made:
        await gateway.close()


@pytest.fixture
async def gateway(connected):
    return await connected()
