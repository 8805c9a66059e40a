"""An API and a worker, each with the account that docker/kubernetes.yaml gives it: together they do all that the service does."""

import pytest

from app.devcluster import DevCluster, DevClusterConfig, Durations
from app.telemetry import CLUSTER_CALLS
from tests.support.manifest_rights import API_RIGHTS, CLUSTER_RIGHTS, NAMESPACE, WORKER_RIGHTS, account
from tests.support.service import TEMPLATE, serve, until
from tests.support.snapshots_over_http import ready, template

PRELOAD = {"image": {"http": {"url": "https://images.example/a.qcow2"}}, "size": "1Gi"}


@pytest.fixture
async def cluster():
    """One that refuses whatever the accounts have no right to."""
    tokens = {
        "api": account("api", API_RIGHTS),
        "worker": account("worker", WORKER_RIGHTS, in_cluster=CLUSTER_RIGHTS),
    }
    config = DevClusterConfig(
        durations=Durations.for_cold_boot(0.2), namespaces=("default", NAMESPACE), tokens=tokens, nodes=2
    )
    async with DevCluster(config) as cluster:
        yield cluster


def refused() -> float:
    (metric,) = CLUSTER_CALLS.collect()
    return sum(each.value for each in metric.samples if each.labels.get("outcome") == "cluster-forbidden")


def given(cluster, folder, role):
    folder.mkdir()
    kubeconfig = folder / "account"
    kubeconfig.write_text(cluster.kubeconfig_text(role), encoding="utf-8")
    return {"folder": folder, "role": role, "namespace": NAMESPACE, "kubeconfig": kubeconfig}


async def test_an_api_and_a_worker_with_their_own_accounts_are_refused_nothing(database_url, cluster, tmp_path):
    before = refused()
    async with (
        serve(database_url, cluster, **given(cluster, tmp_path / "api", "api")) as api,
        serve(database_url, cluster, **given(cluster, tmp_path / "worker", "worker")),
    ):
        for name, spec in (("plain", {}), ("backed", {"backing": "VirtualMachinePool"})):
            await api.fill(name, **spec)
            claim = await api.claim_one(name)
            console = await api.client.get(f"/v1/vms/{claim['vm']['id']}/console")
            assert console.status_code == 200, console.text
            released = await api.client.delete(f"/v1/claims/{claim['id']}")
            assert released.status_code == 200, released.text
        described = await api.client.post("/v1/claim", json={"vm": {**TEMPLATE, "memory": "96Mi"}, "wait_seconds": 60})
        assert described.status_code == 201, described.text
        assert (await api.client.put("/v1/preloads/near", json=PRELOAD)).status_code == 201
        await api.put("disks", size=0, template=template())
        taken = await api.client.post("/v1/snapshots", json={"name": "taken", "source": {"pool": "disks"}})
        assert taken.status_code == 202, taken.text
        await ready(api.client, "taken")

        async def whole():
            near = (await api.client.get("/v1/preloads/near")).json()
            nodes = (await api.client.get("/v1/nodes")).json()["items"]
            return near["state"] == "ready" and len(nodes) == 2

        await until(whole)
        assert (await api.client.get("/readyz")).json()["status"] == "ready"
    assert refused() == before
