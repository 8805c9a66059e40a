"""Memory on a cluster that cannot keep it, or cannot restore it any more: claims get their VM, and the state is clear."""

import pytest

from app.compute.kubevirt.kinds import VM_SNAPSHOTS
from tests.support.service import Refused, check, serve, until
from tests.support.snapshots_over_http import kubernetes, ready, template

SOURCE = {"source": {"pool": "src"}, "memory": True}


def whole():
    """A VM all of whose disks can be in a snapshot."""
    found = template()
    vmi = found["spec"]["template"]["spec"]
    vmi["volumes"] = [volume for volume in vmi["volumes"] if "containerDisk" not in volume]
    return found


@pytest.fixture
async def server(database_url, dev_cluster, tmp_path):
    async with serve(database_url, dev_cluster, tmp_path) as server:
        await server.put("src", size=0, template=whole())
        yield server


async def state(server, wanted, name="kept"):
    async def look():
        found = (await server.client.get(f"/v1/snapshots/{name}")).json()
        return found if found["state"] == wanted else None

    return await until(look)


async def bound(server, **body):
    asked = await server.client.post("/v1/claim", json={"vm": whole(), **body})
    assert asked.status_code in {201, 202}, asked.text

    async def look():
        found = (await server.client.get(f"/v1/claims/{asked.json()['id']}")).json()
        assert found["state"] in {"pending", "bound"}, found["reason"]
        return found if found["state"] == "bound" else None

    return await until(look)


async def test_memory_that_the_cluster_cannot_keep_leaves_nothing_behind(server, dev_cluster):
    dev_cluster.faults.order(kind="memory-save-fails", settings={"message": "no space left on device"})
    answer = await server.client.post("/v1/snapshots", json={"name": "kept", **SOURCE})
    assert answer.status_code == 202, answer.text
    found = await state(server, "failed")
    assert found["reason"] == "KubeVirt could not take it: MemoryNotKept: no space left on device"
    async with kubernetes(server) as cluster:

        async def nothing_is_left():
            return (await cluster.list_all(VM_SNAPSHOTS, selector=""))[0] == []

        await until(nothing_is_left)
    dev_cluster.faults.lift_all()
    await server.client.post("/v1/snapshots/kept/refresh")
    await ready(server.client, "kept", number=2)


async def test_after_a_mismatch_claims_move_on_and_the_snapshot_is_stale_until_it_is_taken_again(server, dev_cluster):
    await server.client.post("/v1/snapshots", json={"name": "kept", **SOURCE})
    await ready(server.client, "kept")
    dev_cluster.faults.order(kind="memory-mismatch")
    claim = await bound(server, paths=["memory", "cold"])
    assert claim["path"] == "cold"
    assert [each["path"] for each in claim["choice"]["tried"]] == ["memory"]
    assert "the memory was kept with another QEMU" in claim["choice"]["tried"][0]["reason"]
    stale = await state(server, "stale")
    assert (stale["ready"], "another QEMU" in stale["stale_reason"]) == (False, True)
    assert "POST .../refresh takes it again" in stale["reason"]
    body = {"vm": whole(), "start_from": {"snapshot": "kept"}}
    problem = check(await server.client.post("/v1/claim", json=body), Refused(503, "no-path"))
    assert "take it again with POST /v1/snapshots/kept/refresh" in problem["detail"]

    dev_cluster.faults.lift_all()
    await server.client.post("/v1/snapshots/kept/refresh")
    await ready(server.client, "kept", number=2)
    again = await bound(server, start_from={"snapshot": "kept"})
    assert again["path"] == "memory"


async def test_a_stale_snapshot_that_refreshes_itself_feeds_its_pool_again(server, dev_cluster):
    await server.client.post("/v1/snapshots", json={"name": "kept", **SOURCE, "refresh": True})
    await ready(server.client, "kept")
    dev_cluster.faults.order(kind="memory-mismatch", count=1)
    written = await server.put("fed", size=1, template=whole(), start_from={"snapshot": "kept"})
    assert written.status_code == 201, written.text
    await ready(server.client, "kept", number=2)

    async def fed():
        return (await server.pool("fed"))["status"]["counts"]["ready"] == 1

    await until(fed)
    assert (await bound(server))["path"] == "pool"
