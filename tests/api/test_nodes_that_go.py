"""Nodes that are cordoned, drained or dead, over HTTP against a dev cluster: whose VMs are handed out, and what becomes of them."""

import httpx
import pytest
import pytest_asyncio

from app.devcluster import DevCluster, DevClusterConfig, Durations
from tests.support.clusters import COLD_BOOT_SECONDS
from tests.support.postgres import clone_database
from tests.support.service import serve, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
NODES = ("node1", "node2", "node3")
DRAINED = [{"key": "kubevirt.io/drain", "effect": "NoSchedule"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(postgres, template_database, tmp_path_factory):
    config = DevClusterConfig(durations=Durations.for_cold_boot(COLD_BOOT_SECONDS), nodes=len(NODES), jitter_share=0)
    async with (
        DevCluster(config) as cluster,
        clone_database(postgres, template_database) as url,
        serve(url, cluster, tmp_path_factory.mktemp("service")) as server,
        httpx.AsyncClient(base_url=cluster.url, trust_env=False) as kube,
    ):
        yield server, kube


async def change(kube, name, **spec):
    headers = {"Content-Type": "application/merge-patch+json"}
    answer = await kube.patch(f"/api/v1/nodes/{name}", json={"spec": spec}, headers=headers)
    assert answer.status_code == 200, answer.text


async def order(kube, name, what):
    answer = await kube.post(f"/devcluster/v1/nodes/{name}/{what}", json={})
    assert answer.status_code == 200, answer.text


async def nodes_of(server, pool):
    items = (await server.client.get("/v1/vms", params={"pool": pool, "state": "ready"})).json()["items"]
    return sorted(item["node"] for item in items)


@pytest.mark.parametrize("backing", ["VirtualMachine", "VirtualMachinePool"])
async def test_vms_leave_a_cordoned_node_and_the_size_is_kept(running, backing):
    server, kube = running
    pool = f"leaves-{backing.lower()}"
    await server.fill(pool, size=3, min_available=3, warm_when="running", backing=backing)
    cordoned = (await nodes_of(server, pool))[0]
    await change(kube, cordoned, unschedulable=True)

    async def has_left():
        found = await nodes_of(server, pool)
        assert len(found) >= 3, "below the floor"
        return cordoned not in found and len(found) == 3

    await until(has_left)
    assert (await server.pool(pool))["status"]["reason"] is None
    await change(kube, cordoned, unschedulable=None)
    await server.client.delete(f"/v1/pools/{pool}?force=true")


@pytest.mark.parametrize("going", [{"unschedulable": True}, {"taints": DRAINED}], ids=["cordoned", "drained"])
async def test_where_they_cannot_be_replaced_they_are_handed_out_last_and_the_pool_says_why(running, going):
    server, kube = running
    pool = "last-" + "-".join(going).lower()
    await server.fill(pool, size=3, max_vms=3, warm_when="running")
    (stays, *others) = sorted(set(await nodes_of(server, pool)))
    for name in others:
        await change(kube, name, **going)

    async def told():
        reason = (await server.pool(pool))["status"]["reason"]
        return reason and all(name in reason for name in others) and reason

    assert (await until(told)).endswith("max_vms leaves no room to replace them; raise it by 1")
    preferred = await server.claim_one(pool, prefer={"node": others[0]})
    assert preferred["vm"]["node"] == stays, "a preference does not change that"
    for name in others:
        await change(kube, name, **dict.fromkeys(going))

    async def is_over():
        return "going" not in ((await server.pool(pool))["status"]["reason"] or "")

    await until(is_over)
    await server.client.delete(f"/v1/pools/{pool}?force=true")


async def test_a_claim_that_got_a_vm_on_a_dead_node_gets_another(running):
    server, kube = running
    await server.fill("dead", size=2, warm_when="running")
    (first, second) = await nodes_of(server, "dead")
    assert first != second
    claim = await server.claim_one("dead")
    dead = claim["vm"]["node"]
    await order(kube, dead, "kill")

    async def replaced():
        found = (await server.client.get(f"/v1/claims/{claim['id']}")).json()
        return found["state"] == "bound" and found["replacements"] and found

    found = await until(replaced)
    assert found["vm"]["node"] != dead
    assert f"its node {dead} is dead" in found["replacements"][0]["reason"]
    await order(kube, dead, "revive")
    await server.client.delete("/v1/pools/dead?force=true")
