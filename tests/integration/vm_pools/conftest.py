"""A service without HTTP on a dev cluster, and an administrator with kubectl beside it."""

import pytest

from app.compute.kubevirt.client import KubeVirtClient
from app.compute.kubevirt.connection import configure
from app.compute.kubevirt.gateway import connect
from app.config import Settings
from app.domain.vm_pools import Backing
from tests.support.claim_services import run_claim_service
from tests.support.vm_pool_world import World
from tests.support.worker_replicas import replicas


@pytest.fixture(params=list(Backing), ids=str)
def backing(request):
    return request.param


@pytest.fixture
async def world(db, dev_cluster, tmp_path, backing):
    """Two replicas at work."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(dev_cluster.kubeconfig_text())
    settings = Settings(
        database_url=db.url,
        kubeconfig=kubeconfig,
        plan_seconds=0.2,
        reap_seconds=0.2,
        relist_seconds=3,
        creates_per_second=100,
        backoff_base_seconds=0.05,
        backoff_cap_seconds=0.2,
        breaker_failures=3,
        orphan_grace_seconds=2,
    )
    gateway = await connect(settings)
    kubectl = KubeVirtClient(settings, await configure(settings))
    try:
        async with replicas(db, gateway, settings), run_claim_service(db.url) as claim_service:
            yield World(db, gateway, settings, claim_service, kubectl, backing, dev_cluster)
    finally:
        await gateway.close()
        await kubectl.close()
