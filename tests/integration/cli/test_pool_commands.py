"""scale, patch, rotate and delete, as people and scripts call them."""

import json

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def vms_of(server, pool, **query):
    return (await server.client.get("/v1/vms", params={"pool": pool, **query})).json()["items"]


async def test_scale_changes_the_size_alone(run, server):
    before = (await server.put("scaled", size=0, max_vms=5)).json()["spec"]
    said = await run("scale", "scaled", "--size", "2")
    assert (said.code, said.out.splitlines()[0].split()[0]) == (0, "NAME")
    assert (await server.pool("scaled"))["spec"] == {**before, "size": 2}
    stale = await run("scale", "scaled", "--size", "3", "--generation", "1")
    assert (stale.code, stale.out) == (1, "")
    assert "generation of pool 'scaled' is 2, and If-Match names 1" in stale.err
    current = await run("scale", "scaled", "--size", "3", "--generation", "2", "-o", "json")
    assert json.loads(current.out)["spec"]["size"] == 3
    above = await run("scale", "scaled", "--size", "6")
    assert (above.code, "max_vms (5) is below size (6)" in above.err) == (1, True)
    assert (await run("scale", "nobody", "--size", "1")).code == 1


async def test_patch_changes_what_it_names(run, server):
    await server.put("edited", size=0, max_vms=5)
    said = await run("patch", "edited", "-p", '{"max_vms": null, "template": {"memory": "128Mi"}}', "-o", "json")
    spec = json.loads(said.out)["spec"]
    assert (said.code, spec["max_vms"], spec["template"]["memory"]) == (0, None, "128Mi")
    unknown = await run("patch", "edited", "-p", '{"sise": 1}')
    assert (unknown.code, "sise: there is no such field" in unknown.err) == (1, True)
    for odd in ("size=3", "[1]", '{"size": NaN}', ""):
        refused = await run("patch", "edited", "-p", odd)
        assert (refused.code, "--patch:" in refused.err) == (2, True), odd


async def test_rotate_shows_how_many_remain_until_all_are_replaced(run, server):
    await server.fill("turned", size=2)
    old = {vm["id"] for vm in await vms_of(server, "turned")}
    await server.client.post("/v1/pools/turned/pause")
    first = await run("rotate", "turned")
    assert (first.code, first.err) == (0, "Rotating: 2 VMs to replace.")
    again = await run("rotate", "turned")
    assert again.code == 0
    assert "still runs: 2 VMs to replace. --restart begins anew." in again.err
    stands = await run("rotate", "turned", "--watch")
    assert stands.code == 1
    assert "pools/turned: 2 to replace, paused" in stands.err
    await server.client.post("/v1/pools/turned/resume")
    done = await run("rotate", "turned", "--restart", "--watch")
    assert done.code == 0
    assert done.err.startswith("Rotating: ")
    assert done.err.endswith("pools/turned: 0 to replace")
    assert not old & {vm["id"] for vm in await vms_of(server, "turned", state="ready")}


async def test_rotate_of_an_empty_pool_has_nothing_to_do(run, server):
    await server.put("vacant", size=0)
    said = await run("rotate", "vacant", "--watch")
    assert (said.code, said.err) == (0, "There is no VM to replace. pools/vacant: 0 to replace")


async def test_delete_discards_vms_by_name_or_id(run, server):
    await server.fill("thinned", size=2)
    one, other = await vms_of(server, "thinned")
    said = await run("delete", "vm", one["name"], other["id"], "-o", "json")
    assert said.code == 0
    assert [(vm["id"], vm["state"]) for vm in json.loads(said.out)["items"]] == [
        (one["id"], "releasing"),
        (other["id"], "releasing"),
    ]
    await server.fill("thinned", size=2)
    claim = await server.claim_one("thinned")
    refused = await run("delete", f"vm/{claim['vm']['name']}")
    assert (refused.code, f"DELETE /v1/claims/{claim['id']}" in refused.err) == (1, True)
    assert (await run("delete", "vm", "nobody")).code == 1


async def test_delete_takes_a_pool_away(run, server):
    await server.fill("unwanted", size=1)
    await server.claim_one("unwanted")
    said = await run("delete", "pool", "unwanted")
    assert (said.code, said.out.splitlines()[1].split()[:2]) == (0, ["unwanted", "deleting"])
    assert (await run("delete", "pools", "unwanted", "--force")).code == 0


async def test_delete_of_what_is_not_deleted_says_what_is(run):
    claims = await run("delete", "claim", "x")
    assert (claims.code, "ended by `emberpool release`" in claims.err) == (2, True)
    nodes = await run("delete", "node", "x")
    assert (nodes.code, "'node' cannot be deleted" in nodes.err) == (2, True)
    for odd in (["vm"], ["vm/"], ["vm/x", "y"], ["vm", ""]):
        unnamed = await run("delete", *odd)
        assert (unnamed.code, "or one KIND/NAME" in unnamed.err) == (2, True), odd
    forced = await run("delete", "vm", "x", "--force")
    assert (forced.code, "--force does not apply to VMs" in forced.err) == (2, True)
