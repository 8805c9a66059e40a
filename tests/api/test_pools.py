"""Pools over HTTP: written, read, refilled, paused, deleted."""

import pytest

from tests.support.service import TEMPLATE, Refused, check, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_pool_is_created_once_and_then_changed(server):
    created = await server.put("written", size=1)
    assert created.status_code == 201
    assert created.headers["emberpool-outcome"] == "created"
    assert created.json()["generation"] == 1

    again = await server.put("written", size=1)
    assert (again.status_code, again.headers["emberpool-outcome"]) == (200, "unchanged")
    assert again.json()["generation"] == 1

    changed = await server.put("written", size=2, min_available=1)
    assert (changed.status_code, changed.headers["emberpool-outcome"]) == (200, "changed")
    assert changed.json()["generation"] == 2
    assert changed.json()["spec"]["min_available"] == 1
    assert (await server.pool("written"))["spec"] == changed.json()["spec"]


async def test_a_pool_tells_how_it_stands(server):
    pool = await server.fill("stands", size=2, min_available=1)
    status = pool["status"]
    assert (status["phase"], status["reason"], status["fill"]) == ("ready", None, 1.0)
    assert status["counts"]["ready"] == 2
    assert status["boot_seconds"]["count"] == 2
    assert 0 < status["boot_seconds"]["p50"] <= status["boot_seconds"]["p95"]
    assert status["refill_per_minute"] > 0


async def test_pools_are_listed_by_name_a_page_at_a_time(server):
    for name in ("page-a", "page-b", "page-c"):
        await server.put(name, size=0)
    seen, after = [], {}
    while True:
        page = (await server.client.get("/v1/pools", params={"limit": 2, **after})).json()
        assert len(page["items"]) <= 2
        seen += [pool["name"] for pool in page["items"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert seen == sorted(seen)
    assert [name for name in seen if name.startswith("page-")] == ["page-a", "page-b", "page-c"]


async def test_a_pool_without_auto_replenish_is_refilled_on_request(server):
    await server.fill("asked", size=1, auto_replenish=False)
    await server.claim_one("asked")
    pool = await server.pool("asked")
    assert (pool["status"]["phase"], pool["status"]["reason"]) == (
        "drained",
        "auto_replenish is off: call replenish to refill it",
    )

    refilling = await server.client.post("/v1/pools/asked/replenish")
    assert refilling.status_code == 202

    async def full():
        return (await server.pool("asked"))["status"]["phase"] == "ready"

    await until(full)


async def test_a_paused_pool_hands_out_and_does_not_refill_until_it_is_resumed(server):
    await server.fill("paused", size=1)
    paused = await server.client.post("/v1/pools/paused/pause")
    assert (paused.status_code, paused.json()["status"]["phase"]) == (200, "paused")
    await server.claim_one("paused")
    refused = check(await server.claim("paused"), Refused(503, "no-warm-vm", says="it is paused"))
    assert refused["title"] == "No VM is ready"

    resumed = await server.client.post("/v1/pools/paused/resume")
    assert resumed.status_code == 200

    async def full():
        return (await server.pool("paused"))["status"]["phase"] == "ready"

    await until(full)


async def test_a_deleted_pool_goes_once_its_claims_have_ended(server):
    await server.fill("deleted", size=1)
    claim = await server.claim_one("deleted")
    answer = await server.client.delete("/v1/pools/deleted")
    assert (answer.status_code, answer.json()["status"]["phase"]) == (202, "deleting")
    check(await server.put("deleted"), Refused(409, "pool-being-deleted", says="force=true"))
    check(await server.claim("deleted"), Refused(409, "pool-being-deleted"))
    for verb in ("pause", "resume", "replenish"):
        check(await server.client.post(f"/v1/pools/deleted/{verb}"), Refused(409, "pool-being-deleted"))
    assert (await server.client.get(f"/v1/claims/{claim['id']}")).json()["state"] == "bound"

    forced = await server.client.delete("/v1/pools/deleted", params={"force": "true"})
    assert forced.status_code == 202

    async def gone():
        return (await server.client.get("/v1/pools/deleted")).status_code == 404

    await until(gone)
    ended = (await server.client.get(f"/v1/claims/{claim['id']}")).json()
    assert ended["state"] == "released"
    assert "by force" in ended["reason"]
    assert (await server.put("deleted", size=0)).status_code == 201  # the name is free


async def test_a_template_that_never_boots_stalls_the_pool_until_it_is_resumed(server, cluster):
    fault = cluster.faults.order(kind="boot-fails", name="stalls-*")
    await server.put("stalls", size=1)

    async def stalled():
        pool = await server.pool("stalls")
        return pool["status"]["phase"] == "stalled" and pool

    pool = await until(stalled)
    assert pool["status"]["reason"].startswith("5 failures in a row: ")
    assert pool["status"]["last_failure"]
    check(await server.claim("stalls"), Refused(503, "no-warm-vm", says="it is stalled"))

    cluster.faults.lift(fault.id)
    assert (await server.client.post("/v1/pools/stalls/resume")).status_code == 200

    async def full():
        return (await server.pool("stalls"))["status"]["phase"] == "ready"

    await until(full)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/pools/none"),
        ("DELETE", "/v1/pools/none"),
        ("POST", "/v1/pools/none/replenish"),
        ("POST", "/v1/pools/none/pause"),
        ("POST", "/v1/pools/none/resume"),
    ],
)
async def test_a_pool_that_does_not_exist(server, method, path):
    check(
        await server.client.request(method, path),
        Refused(404, "pool-not-found", says="PUT /v1/pools/none creates it"),
    )


async def test_the_template_is_kept_as_it_was_written(server):
    spec = {"spec": {"domain": {"memory": {"guest": "64Mi"}}}}
    assert (await server.put("kept", size=0, template=spec)).json()["spec"]["template"] == spec
    assert (await server.put("kept", size=0, template=TEMPLATE)).json()["spec"]["template"] == TEMPLATE
