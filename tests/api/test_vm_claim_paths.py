"""The same VM by all four paths on a dev cluster, each the fastest that there was at its moment."""

import pytest

from tests.support.service import until
from tests.support.snapshots_over_http import ready, template

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMAGE = "https://images.example.com/by-all-paths.qcow2"
VM = template(image=IMAGE)


async def claim(server, **body):
    answer = await server.client.post("/v1/claim", json={"vm": VM, "wait_seconds": 30, **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


def why_not(told, path):
    return next(each["why"] for each in told["choice"]["considered"] if each["path"] == path)


async def test_each_path_serves_it_once_it_is_the_fastest(server):
    cold = await claim(server)
    assert (cold["path"], cold["pool"]) == ("cold", None)
    assert why_not(cold, "snapshot") == "no snapshot of this shape"
    assert why_not(cold, "preload") == f"no preload brings {IMAGE} near"

    preload = {"image": {"http": {"url": IMAGE}}, "size": "2Gi", "storage_class": "standard"}
    put = await server.client.put("/v1/preloads/all-paths", json=preload)
    assert put.status_code == 201, put.text

    async def near():
        return (await server.client.get("/v1/preloads/all-paths")).json()["state"] == "ready"

    await until(near)
    preloaded = await claim(server)
    assert (preloaded["path"], preloaded["choice"]["source"]) == ("preload", "all-paths")
    assert preloaded["shape"] == cold["shape"]

    source = {"vm": cold["vm"]["name"]}
    taken = await server.client.post("/v1/snapshots", json={"name": "all-paths", "source": source, "quiesce": "freeze"})
    assert taken.status_code == 202, taken.text
    await ready(server.client, "all-paths")
    restored = await claim(server)
    assert (restored["path"], restored["choice"]["source"]) == ("snapshot", "all-paths")

    await server.fill("all-paths", template=VM)
    warm = await claim(server)
    assert (warm["path"], warm["pool"]) == ("pool", "all-paths")

    paths = (await server.client.get("/v1/paths", params={"shape": cold["shape"]})).json()["items"]
    counts = {each["path"]: each["count"] for each in paths}
    assert counts["pool"] == counts["snapshot"] == counts["preload"] == 1
    assert counts["cold"] >= 2  # the first, and the pool's own
    assert all(each["saving"] is not None for each in paths if each["path"] not in {"memory", "cold"})
    assert counts["memory"] == 0

    names = {each["vm"]["name"] for each in (cold, preloaded, restored, warm)}
    assert len(names) == 4
    for each in (cold, preloaded, restored, warm):
        await server.client.delete(f"/v1/claims/{each['id']}")
