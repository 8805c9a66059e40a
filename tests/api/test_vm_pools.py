"""Pools that are VirtualMachinePools, and those that are taken over, over HTTP."""

import pytest

from app.store import vm_pools
from app.store.pools import rows as pools
from tests.support.service import TEMPLATE, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
BACKED = {"size": 1, "backing": "VirtualMachinePool", "template": TEMPLATE}


async def ready(server, name, count=1):
    async def full():
        return (await server.pool(name))["status"]["counts"]["ready"] == count

    await until(full)


async def test_a_pool_says_what_stands_behind_it_and_is_claimed_from_as_any(server):
    created = await server.client.put("/v1/pools/backed", json=BACKED)
    assert (created.status_code, created.json()["spec"]["backing"]) == (201, "VirtualMachinePool")
    await ready(server, "backed")
    claim = await server.client.post("/v1/claim", json={"pool": "backed"})
    assert claim.status_code == 201, claim.text
    assert claim.json()["vm"]["name"].startswith("backed-")
    await ready(server, "backed")


async def test_what_stands_behind_it_cannot_be_changed(server):
    body = {"size": 0, "template": TEMPLATE}
    assert (await server.client.put("/v1/pools/plain", json=body)).status_code == 201
    refused = await server.client.put("/v1/pools/plain", json={**body, "backing": "VirtualMachinePool"})
    assert refused.status_code == 422
    assert [error["field"] for error in refused.json()["errors"]] == ["backing"]
    assert "cannot be changed" in refused.json()["detail"]


async def test_a_snapshot_and_a_virtual_machine_pool_do_not_go_together(server):
    body = {**BACKED, "start_from": {"snapshot": "ready"}}
    refused = await server.client.put("/v1/pools/both", json=body)
    assert refused.status_code == 422
    assert [error["field"] for error in refused.json()["errors"]] == ["backing"]
    assert "cannot start its VMs from a snapshot" in refused.json()["detail"]


async def test_an_import_of_nothing_and_one_of_our_own_are_refused(server):
    missing = await server.client.post("/v1/pools/import", json={"vm_pool": "nobody", "dry_run": True})
    assert (missing.status_code, missing.json()["code"]) == (404, "cluster-object-not-found")
    elsewhere = await server.client.post("/v1/pools/import", json={"vm_pool": "nobody", "namespace": "elsewhere"})
    assert elsewhere.status_code == 422
    dotted = await server.client.post("/v1/pools/import", json={"vm_pool": "web.servers"})
    assert [error["field"] for error in dotted.json()["errors"]] == ["name"]


async def test_what_others_did_is_told_whatever_the_phase(server):
    await server.client.put("/v1/pools/told", json=BACKED)
    await ready(server, "told")
    async with server.services.db.begin() as tx:
        pool = await pools.get(tx, "told")
        await vm_pools.write_incident(tx, pool.id, "replicas was set to 9 in the cluster")

    async def told():
        status = (await server.pool("told"))["status"]
        return status["phase"] == "ready" and "replicas was set to 9 in the cluster" in status["notes"]

    await until(told)


async def test_a_manifest_may_ask_for_it(server):
    manifest = {
        "apiVersion": "pool.kubevirt.io/v1",
        "kind": "VirtualMachinePool",
        "metadata": {"name": "by-manifest", "annotations": {"emberpool.io/backing": "VirtualMachinePool"}},
        "spec": {"size": 1, "template": TEMPLATE},
    }
    applied = await server.client.post("/v1/manifests", json=manifest)
    assert applied.status_code == 200, applied.text
    assert (await server.pool("by-manifest"))["spec"]["backing"] == "VirtualMachinePool"
    await ready(server, "by-manifest")
