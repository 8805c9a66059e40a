"""Snapshots on a cluster that fails them: the state is clear, nothing is left behind, and asking again helps."""

import pytest

from app.compute.kubevirt.kinds import VM_SNAPSHOTS, VMS
from tests.support.service import serve, until
from tests.support.snapshots_over_http import kubernetes, ready, template


@pytest.fixture
async def server(database_url, dev_cluster, tmp_path):
    async with serve(database_url, dev_cluster, tmp_path) as server:
        yield server


async def failed(server, name):
    async def look():
        found = (await server.client.get(f"/v1/snapshots/{name}")).json()
        return found if found["takes"][0]["state"] == "failed" else None

    return await until(look)


async def nothing_is_left(server):
    async with kubernetes(server) as cluster:
        assert (await cluster.list_all(VM_SNAPSHOTS, selector=""))[0] == []

        async def empty():
            return not (await cluster.list_all(VMS))[0]

        await until(empty)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"kind": "snapshot-fails"}, "snapshot deadline exceeded"),
        ({"kind": "snapshot-hangs"}, "snapshot deadline exceeded"),
        ({"kind": "volume-excluded"}, "without a single volume"),
    ],
)
async def test_a_snapshot_that_the_storage_does_not_make(server, dev_cluster, fault, says):
    dev_cluster.faults.order(**fault)
    await server.put("src", size=0, template=template())
    body = {"name": "bad", "source": {"pool": "src"}, "timeout_seconds": 3}
    answer = await server.client.post("/v1/snapshots", json=body)
    assert answer.status_code == 202, answer.text
    found = await failed(server, "bad")
    assert found["state"] == "failed"
    assert says in found["reason"]
    await nothing_is_left(server)
    dev_cluster.faults.lift_all()
    await server.client.post("/v1/snapshots/bad/refresh")
    await ready(server.client, "bad", number=2)


async def test_a_vm_that_never_boots(server, dev_cluster):
    dev_cluster.faults.order(kind="boot-fails")
    await server.put("src", size=0, template=template())
    await server.client.post("/v1/snapshots", json={"name": "bad", "source": {"pool": "src"}})
    found = await failed(server, "bad")
    assert "no VM could be booted for it: 5 failed in a row" in found["reason"]
    await nothing_is_left(server)


@pytest.mark.parametrize("resource", ["virtualmachinesnapshots", "volumesnapshots", "virtualmachines"])
async def test_a_cluster_that_is_away_for_a_while(server, dev_cluster, resource):
    await server.put("src", size=0, template=template())
    dev_cluster.faults.order(kind="error", resource=resource, verbs=["create", "get", "patch"], count=4)
    answer = await server.client.post("/v1/snapshots", json={"name": "good", "source": {"pool": "src"}})
    assert answer.status_code == 202, answer.text
    await ready(server.client, "good")
