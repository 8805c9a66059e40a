"""The whole inner part on a dev cluster over HTTP: a pool fills, a VM is claimed and released, and the pool refills."""

from app.compute.kubevirt.gateway import connect
from app.config import Settings
from app.domain.claims import WarmClaim
from app.services.claims.lifecycle import release_claim
from app.services.pools.service import put_pool
from tests.support import store_invariants as invariants
from tests.support.claim_services import new_claim, run_claim_service, stays_connected
from tests.support.clusters import dev_cluster
from tests.support.rows import eventually, fetch, scalar, spec
from tests.support.worker_replicas import replicas, settles

__all__ = ["dev_cluster"]

TEMPLATE = {"image": "registry.example/guest:1", "cpu": 1, "memory": "128Mi"}


async def test_a_pool_on_a_cluster_fills_is_claimed_from_and_refills(db, dev_cluster, tmp_path):
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(dev_cluster.kubeconfig_text())
    settings = Settings(
        database_url=db.url, kubeconfig=kubeconfig, plan_seconds=0.1, reap_seconds=0.1, creates_per_second=100
    )
    gateway = await connect(settings)
    try:
        async with replicas(db, gateway, settings), run_claim_service(db.url) as claim_service:
            await put_pool(db, gateway, "web", spec(size=2, min_available=1, template=TEMPLATE))
            await settles(db, ready=2)
            answer = await claim_service.claim(new_claim(labels={"job": "1"}), stays_connected)
            assert isinstance(answer, WarmClaim)
            assert answer.node
            assert answer.addresses
            await settles(db, ready=2, claimed=1)

            async def labelled():
                listed = await gateway.list_vms()
                return str(answer.claim.id) in {vm.claim_id for vm in listed.observations}

            await eventually(labelled)
            await release_claim(db, answer.claim.id)
            await settles(db, ready=2)

            async def gone():
                listed = await gateway.list_vms()
                return {vm.name for vm in listed.observations} == {
                    row["name"] for row in await fetch(db, "SELECT name FROM vm WHERE ended_at IS NULL")
                }

            await eventually(gone)
            await invariants.check(db)
        assert await scalar(db, "SELECT count(*) FROM vm WHERE state = 'ready' AND boot_seconds > 0") == 2
    finally:
        await gateway.close()
