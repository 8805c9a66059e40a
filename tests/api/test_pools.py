"""Pools over HTTP: written, read, refilled, paused, deleted."""

import asyncio

import pytest

from tests.support.service import TEMPLATE, Refused, check, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def patch(server, name, body, **headers):
    return await server.client.patch(f"/v1/pools/{name}", json=body, headers=headers)


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
    check(await patch(server, "deleted", {"size": 2}), Refused(409, "pool-being-deleted", says="force=true"))
    for verb in ("pause", "resume", "replenish", "rotate"):
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
        ("POST", "/v1/pools/none/rotate"),
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


async def test_a_patch_changes_the_size_alone(server):
    before = (await server.put("patched", size=0, max_vms=5, default_lease_seconds=60)).json()
    changed = await patch(server, "patched", {"size": 3}, **{"Content-Type": "application/merge-patch+json"})
    assert (changed.status_code, changed.headers["emberpool-outcome"]) == (200, "changed")
    assert changed.json()["spec"] == {**before["spec"], "size": 3}
    assert (changed.json()["generation"], changed.json()["revision"]) == (2, before["revision"])
    again = await patch(server, "patched", {"size": 3}, **{"Content-Type": "application/json; charset=utf-8"})
    assert (again.status_code, again.headers["emberpool-outcome"], again.json()["generation"]) == (200, "unchanged", 2)
    assert (await patch(server, "patched", {})).headers["emberpool-outcome"] == "unchanged"


async def test_a_patch_sets_defaults_and_changes_the_template(server):
    before = (await server.put("merged", size=0, max_vms=5, min_available=0)).json()
    body = {"max_vms": None, "template": {"memory": "128Mi", "cpu": 1}}
    changed = (await patch(server, "merged", body)).json()
    assert changed["spec"]["max_vms"] is None
    assert changed["spec"]["template"] == {**TEMPLATE, "memory": "128Mi", "cpu": 1}
    assert changed["revision"] != before["revision"]
    back = (await patch(server, "merged", {"template": {"memory": "64Mi", "cpu": None}})).json()
    assert (back["spec"]["template"], back["revision"]) == (TEMPLATE, before["revision"])


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ({"sizes": 3}, Refused(422, "invalid-request", "sizes", says="did you mean `size`?")),
        ({"spec": {"size": 3}}, Refused(422, "invalid-request", "spec", says="without `spec` around them")),
        ({"sizes": None}, Refused(422, "invalid-request", "sizes")),
        ({"placement": {"spreads": None}}, Refused(422, "invalid-request", "placement.spreads", says="`spread`")),
        ({"size": None}, Refused(422, "invalid-request", "size", says="required")),
        ({"size": "3"}, Refused(422, "invalid-request", "size", says="must be a whole number")),
        ({"size": 0}, Refused(422, "invalid-request", "min_available", says="lower it or raise size")),
        ({"size": {"a": 1}}, Refused(422, "invalid-request", "size")),
        ({"size": 10**30}, Refused(400, "malformed-body", "size")),
        ({"template": None}, Refused(422, "invalid-request", "template")),
        ({"template": {"memory": "2Gx"}}, Refused(422, "template-refused", "template.memory", says="2Gx")),
        ({"template": {"memory": None}}, Refused(422, "template-refused", "template.memory")),
        ({"template": {"cpu": 10**30}}, Refused(400, "malformed-body", "template.cpu", says="64 bits")),
        ({"backing": "VirtualMachinePool"}, Refused(422, "invalid-request", "backing", says="cannot be changed")),
        ({"start_from": {"snapshot": "none"}}, Refused(422, "invalid-request", "start_from.snapshot")),
        ([{"size": 3}], Refused(422, "invalid-request", "", says="must be an object")),
        (None, Refused(422, "invalid-request", "")),
    ],
    ids=str,
)
async def test_a_wrong_patch_is_refused_as_a_wrong_body_of_put_is(server, body, refused):
    await server.put("sound", size=1, min_available=1)
    before = await server.pool("sound")
    check(await patch(server, "sound", body), refused)
    after = await server.pool("sound")
    assert (after["spec"], after["generation"]) == (before["spec"], before["generation"])


async def test_a_patch_of_endless_depth_is_refused(server):
    await server.put("deep", size=0)
    for field in ("template", "size", "placement"):
        body = f'{{"{field}": ' + '{"a": ' * 900 + "1" + "}" * 901
        answer = await server.client.patch(
            "/v1/pools/deep", content=body, headers={"Content-Type": "application/merge-patch+json"}
        )
        assert answer.status_code in {400, 422}, answer.text
        assert answer.json()["code"] in {"template-refused", "malformed-body", "invalid-request"}
    assert (await server.pool("deep"))["generation"] == 1


async def test_a_patch_is_json_and_of_a_pool_that_exists(server):
    check(await patch(server, "nobody", {"size": 1}, **{"If-Match": "*"}), Refused(404, "pool-not-found"))
    yaml = {"content": "size: 1", "headers": {"Content-Type": "application/yaml"}}
    refused = Refused(415, "unsupported-media-type", says="application/merge-patch+json")
    check(await server.client.patch("/v1/pools/nobody", **yaml), refused)
    merge = {"content": "{}", "headers": {"Content-Type": "application/merge-patch+json"}}
    check(await server.client.put("/v1/pools/nobody", **merge), Refused(415, "unsupported-media-type"))


async def test_patches_at_the_same_time_are_all_kept(server):
    await server.put("crowded", size=0)
    fields = {"size": 5, "max_vms": 9, "max_concurrent_creates": 3, "boot_timeout_seconds": 99, "auto_replenish": False}
    await server.client.post("/v1/pools/crowded/pause")
    done = await asyncio.gather(*(patch(server, "crowded", {name: value}) for name, value in fields.items()))
    assert [answer.status_code for answer in done] == [200] * len(fields)
    pool = await server.pool("crowded")
    assert {name: pool["spec"][name] for name in fields} == fields
    assert pool["generation"] == 1 + len(fields)


async def test_a_write_that_names_an_older_generation_is_refused(server):
    created = await server.put("matched", size=0)
    assert created.headers["etag"] == '"1"'
    read = await server.client.get("/v1/pools/matched")
    assert read.headers["etag"] == '"1"'
    changed = await patch(server, "matched", {"max_vms": 3}, **{"If-Match": read.headers["etag"]})
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')

    stale = await patch(server, "matched", {"max_vms": 4}, **{"If-Match": '"1"'})
    problem = check(stale, Refused(412, "precondition-failed", "If-Match", says="is 2, and If-Match names 1"))
    assert stale.headers["etag"] == '"2"'
    assert "Nothing was changed" in problem["detail"]
    body = {"size": 0, "template": TEMPLATE}
    for tags in ('"1"', '"0", "1"', 'W/"2"', '"two"'):
        put = await server.client.put("/v1/pools/matched", json=body, headers={"If-Match": tags})
        check(put, Refused(412, "precondition-failed", "If-Match"))
    assert (await server.pool("matched"))["spec"]["max_vms"] == 3
    for number, tags in enumerate(('"2"', '"1", "3"', 'W/"1",,"4",', " 5 ", "*"), start=10):
        assert (await patch(server, "matched", {"max_vms": number}, **{"If-Match": tags})).status_code == 200, tags
    for odd in ("", "two", '"7', '"7" "8"', "*, 7"):
        answer = await patch(server, "matched", {"max_vms": 3}, **{"If-Match": odd})
        check(answer, Refused(422, "invalid-request", "If-Match", says="the ETag of an answer"))
    absent = await server.client.put("/v1/pools/absent", json=body, headers={"If-Match": "*"})
    check(absent, Refused(412, "precondition-failed", says="leave If-Match out to create it"))
    assert "etag" not in absent.headers
    for verb in ("pause", "resume", "replenish", "rotate"):
        assert (await server.client.post(f"/v1/pools/matched/{verb}")).headers["etag"] == '"7"'


@pytest.mark.parametrize("backing", ["VirtualMachine", "VirtualMachinePool"])
async def test_a_rotation_replaces_the_unclaimed_vms_and_tells_how_many_remain(server, backing):
    name = f"rotates-{backing.lower()}"
    await server.fill(name, size=3, min_available=1, backing=backing)
    claim = await server.claim_one(name)
    await server.fill(name, size=3, min_available=1, backing=backing)
    old = await ready_vms(server, name)

    rotated = await server.client.post(f"/v1/pools/{name}/rotate")
    assert (rotated.status_code, rotated.headers["emberpool-outcome"]) == (202, "changed")
    assert rotated.json()["status"]["rotation"]["remaining"] == 3
    assert rotated.json()["status"]["rotation"]["requested_at"] is not None
    assert rotated.json()["generation"] == 1

    async def ended():
        pool = await server.pool(name)
        assert pool["status"]["counts"]["ready"] >= 1
        return pool["status"]["rotation"] is None and pool["status"]["counts"]["ready"] == 3

    await until(ended)
    assert not old & await ready_vms(server, name)
    kept = (await server.client.get(f"/v1/claims/{claim['id']}")).json()
    assert (kept["state"], kept["vm"]["id"]) == ("bound", claim["vm"]["id"])
    found = (await server.client.get("/v1/events", params={"pool": name, "kind": "pool", "limit": 500})).json()["items"]
    assert [event["data"] for event in found if event["type"] == "pool.rotating"] == [{"vms": 3}]


async def ready_vms(server, name):
    return {
        vm["id"] for vm in (await server.client.get("/v1/vms", params={"pool": name, "state": "ready"})).json()["items"]
    }


async def test_a_rotation_that_runs_is_not_begun_again_unless_it_is_asked_for(server):
    await server.fill("again", size=1)
    await server.client.post("/v1/pools/again/pause")
    first = await server.client.post("/v1/pools/again/rotate")
    again = await server.client.post("/v1/pools/again/rotate")
    assert (again.status_code, again.headers["emberpool-outcome"]) == (202, "unchanged")
    assert again.json()["status"]["rotation"] == first.json()["status"]["rotation"]
    anew = await server.client.post("/v1/pools/again/rotate", params={"restart": "true"})
    assert anew.headers["emberpool-outcome"] == "changed"
    assert anew.json()["status"]["rotation"]["requested_at"] > first.json()["status"]["rotation"]["requested_at"]
    # A new template while it is pending: the same VM is still to be replaced once.
    patched = (await patch(server, "again", {"template": {"memory": "128Mi"}})).json()
    assert patched["status"]["rotation"] == anew.json()["status"]["rotation"]
    await server.client.post("/v1/pools/again/resume")

    async def ended():
        return (await server.pool("again"))["status"]["rotation"] is None

    await until(ended)
    vms = (await server.client.get("/v1/vms", params={"pool": "again", "ended": "true"})).json()["items"]
    assert len(vms) == 2


async def test_a_new_template_tells_how_many_vms_are_of_the_old_one(server):
    await server.fill("retemplated", size=2)
    await server.client.post("/v1/pools/retemplated/pause")
    patched = (await patch(server, "retemplated", {"template": {"memory": "128Mi"}})).json()
    assert patched["status"]["rotation"] == {"requested_at": None, "remaining": 2}
