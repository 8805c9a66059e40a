"""Nodes, the check of a placement, and pinned and hugepage VMs, over HTTP against a dev cluster that has what they need."""

import pytest
import pytest_asyncio

from app.devcluster import DevCluster, DevClusterConfig, Durations, NodeShape
from tests.support.clusters import COLD_BOOT_SECONDS
from tests.support.postgres import clone_database
from tests.support.service import TEMPLATE, serve, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
PLAIN = NodeShape(cpu=5, memory="16Gi", hugepages_2mi="0", cpumanager=False)
ABLE = {
    "able": NodeShape(cpu=9, memory="32Gi", hugepages_2mi="6Gi", hugepages_1gi="8Gi", zone="zone-x"),
    "plain": PLAIN,
}
UNABLE = {"plain": PLAIN}
# As users write them, less the disk that the tests have no image for.
PINNED = {
    "spec": {
        "domain": {
            "cpu": {"cores": 2, "sockets": 1, "dedicatedCpuPlacement": True},
            "resources": {"requests": {"memory": "2Gi", "cpu": "2"}},
        }
    }
}
HUGEPAGES = {
    "spec": {
        "domain": {
            "memory": {"hugepages": {"pageSize": "2Mi"}},
            "resources": {"requests": {"memory": "2Gi", "cpu": "2"}},
        }
    }
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def start(postgres, template_database, tmp_path_factory):
    """Serves on a cluster of these nodes."""

    async def serving(named):
        config = DevClusterConfig(
            durations=Durations.for_cold_boot(COLD_BOOT_SECONDS), nodes=0, named_nodes=named, jitter_share=0
        )
        async with (
            DevCluster(config) as cluster,
            clone_database(postgres, template_database) as url,
            serve(url, cluster, tmp_path_factory.mktemp("service")) as server,
        ):
            await until(lambda: seen(server, len(named)))
            yield server, cluster

    return serving


async def seen(server, count):
    page = (await server.client.get("/v1/nodes")).json()
    return len(page["items"]) == count and page["observation"]["stale_reason"] is None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def able(start):
    async for running in start(ABLE):
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unable(start):
    async for running in start(UNABLE):
        yield running


async def check(server, **body):
    answer = await server.client.post("/v1/placements/check", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def remove(server, name):
    """The pool and its VMs, until the nodes have their room again."""
    await server.client.delete(f"/v1/pools/{name}?force=true")

    async def is_gone():
        page = (await server.client.get("/v1/nodes")).json()
        gone = (await server.client.get(f"/v1/pools/{name}")).status_code == 404
        return gone and all(item["pods"]["used"] == 0 for item in page["items"])

    await until(is_gone)


async def node(server, name="able"):
    return (await server.client.get(f"/v1/nodes/{name}")).json()


class TestWhereTheNodesHaveWhatIsNeeded:
    async def test_the_pinned_vm_starts_there_and_its_cpus_are_shown(self, able):
        server, _ = able
        asked = await check(server, template=PINNED, count=4)
        assert (asked["fits"], asked["now"], asked["unchecked"]) == (False, 3, [])
        assert asked["missing"][1] == "plain: label kubevirt.io/cpumanager is 'false', 'true' needed"
        assert asked["fragment"]["domain"]["resources"] == {
            "requests": {"memory": "2Gi", "cpu": "2"},
            "limits": {"memory": "2Gi", "cpu": "2"},
        }
        assert asked["demand"]["cpus"] == 2.015
        await server.fill("pinned", template=PINNED, warm_when="running")
        claim = await server.claim_one("pinned")
        assert claim["vm"]["node"] == "able"

        async def is_pinned():
            found = await node(server)
            return found if found["cpus"]["pinned"] == 4 and found["vms"].get("claimed") == 1 else None

        found = await until(is_pinned)
        assert found["cpus"] == {"capacity": 9, "allocatable": 8, "pinned": 4, "shared": 0.03, "free": 3.97}
        assert claim["vm"]["id"] in {vm["id"] for vm in found["vms_on_it"]}
        assert {vm["pool"] for vm in found["vms_on_it"]} == {"pinned"}
        await remove(server, "pinned")

    async def test_the_hugepages_vm_starts_there_and_its_pages_are_shown(self, able):
        server, _ = able
        before = (await node(server))["hugepages"]["2Mi"]
        assert before["free"] == 3072
        asked = await check(server, vm=HUGEPAGES)
        assert (asked["fits"], asked["now"]) == (True, 3)
        await server.fill("huge", template=HUGEPAGES, warm_when="running")

        async def are_taken():
            return (await node(server))["hugepages"]["2Mi"]["free"] == 2048

        await until(are_taken)
        assert (await node(server, "plain"))["hugepages"] == {}
        await remove(server, "huge")

    async def test_a_pool_whose_size_the_nodes_could_never_have_is_refused_and_told_how_many_fit(self, able):
        server, _ = able
        spec = {
            "template": {"image": "registry.local/disk:1", "cpu": 1, "memory": "3Gi"},
            "placement": {"hugepages": "1Gi"},
        }
        refused = await server.put("grand", size=3, **spec)
        assert (refused.status_code, refused.json()["code"]) == (422, "unschedulable")
        assert "at most 2 of the 3 VMs of this pool fit on these nodes" in refused.json()["detail"]
        assert refused.json()["errors"][0]["field"] == "size"
        assert (await check(server, count=3, **spec))["when_empty"] == 2

    async def test_a_pool_whose_nodes_are_taken_fills_as_far_as_they_go_and_degrades_where_they_shrink(self, able):
        server, cluster = able
        gib = {"image": "registry.local/disk:1", "cpu": 1, "memory": "3Gi"}
        spec = {"template": gib, "placement": {"hugepages": "1Gi"}}
        cluster.change_node("able", {"hugepages_1gi": "9Gi"})

        async def nine():
            return (await node(server))["hugepages"]["1Gi"]["allocatable"] == 9

        await until(nine)
        await server.fill("other", size=1, **spec)
        assert (await server.put("many", size=3, **spec)).status_code == 201

        async def is_short():
            status = (await server.pool("many"))["status"]
            return status if status["counts"]["ready"] == 2 and "room for 0 more" in (status["reason"] or "") else None

        status = await until(is_short)
        assert status["phase"] == "filling"
        assert "able: 1Gi hugepages: 0 free of 9, 3 needed" in status["reason"]
        assert sum(status["counts"][state] for state in ("planned", "creating", "booting")) == 0
        await server.client.delete("/v1/pools/other")

        async def is_full():
            return (await server.pool("many"))["status"]["phase"] == "ready"

        await until(is_full)
        cluster.change_node("able", {"hugepages_1gi": "8Gi"})

        async def is_degraded():
            status = (await server.pool("many"))["status"]
            return status if status["phase"] == "degraded" else None

        status = await until(is_degraded)
        assert status["reason"].startswith("at most 2 of its 3 VMs fit on these nodes, even with nothing else on them")
        assert status["counts"]["ready"] == 3
        await remove(server, "many")

    async def test_a_preference_is_heard(self, able):
        server, _ = able
        await server.fill(
            "near", size=2, template=TEMPLATE, placement={"node_selector": {"kubernetes.io/hostname": "able"}}
        )
        answer = await server.claim("near", prefer={"zone": "zone-x"})
        assert (answer.status_code, answer.json()["vm"]["node"]) == (201, "able")
        odd = await server.claim("near", prefer={"zone": "a", "node": "b"})
        assert odd.status_code == 422
        assert "say one of them" in odd.json()["detail"]
        odd = await server.claim("near", prefer="zone-x")
        assert (odd.status_code, odd.json()["errors"][0]["field"]) == (422, "prefer")
        assert '{"spread": true}' in odd.json()["detail"]
        assert (await server.claim("near", prefer="pack")).status_code == 201
        await remove(server, "near")


class TestWhereTheyHaveNot:
    @pytest.mark.parametrize(
        ("template", "words"),
        [
            (PINNED, "plain: label kubevirt.io/cpumanager is 'false', 'true' needed"),
            (HUGEPAGES, "plain: 2Mi hugepages: 0 free of 0, 1024 needed"),
        ],
    )
    async def test_both_are_refused_in_words_before_anything_is_made(self, unable, template, words):
        server, _ = unable
        asked = await check(server, template=template)
        assert (asked["fits"], asked["when_empty"], asked["missing"]) == (False, 0, [words])
        refused = await server.put("never", template=template)
        assert (refused.status_code, refused.json()["code"]) == (422, "unschedulable")
        assert words in refused.json()["detail"]
        assert {"field": "placement", "message": words} in refused.json()["errors"]
        assert (await server.client.get("/v1/pools/never")).status_code == 404
        claimed = await server.client.post("/v1/claim", json={"vm": template})
        assert (claimed.status_code, claimed.json()["code"]) == (422, "unschedulable")

    async def test_a_claim_that_is_allowed_to_waits_for_a_node(self, unable):
        server, _ = unable
        claimed = await server.client.post("/v1/claim", json={"vm": PINNED, "allow_unschedulable": True})
        assert (claimed.status_code, claimed.json()["state"]) == (202, "pending")
        assert (await server.client.delete(f"/v1/claims/{claimed.json()['id']}")).json()["state"] == "released"

    async def test_so_does_a_manifest(self, unable):
        server, _ = unable
        document = {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "metadata": {"name": "someday"},
            "spec": {
                "runStrategy": "Always",
                "template": {
                    "spec": {
                        "domain": {
                            "cpu": {"cores": 2, "dedicatedCpuPlacement": True},
                            "memory": {"guest": "1Gi"},
                            "devices": {},
                        },
                        "volumes": [{"name": "boot", "containerDisk": {"image": "quay.io/example/os:1"}}],
                    }
                },
            },
        }
        refused = await server.client.post("/v1/manifests", json=document)
        assert refused.status_code == 422
        assert "label kubevirt.io/cpumanager" in refused.json()["detail"]
        document["metadata"]["annotations"] = {"emberpool.io/allow-unschedulable": "true"}
        applied = await server.client.post("/v1/manifests", json=document)
        assert applied.status_code == 200, applied.text
        (found,) = (await server.client.get("/v1/claims", params={"label": "name=someday"})).json()["items"]
        assert found["state"] == "pending"
        await server.client.delete(f"/v1/claims/{found['id']}")

    async def test_a_pool_that_is_allowed_to_wait_is_degraded_until_a_node_comes(self, unable):
        server, cluster = unable
        written = await server.put("someday", template=PINNED, warm_when="running", allow_unschedulable=True)
        assert written.status_code == 201

        async def is_degraded():
            status = (await server.pool("someday"))["status"]
            return status if status["phase"] == "degraded" and status["counts"]["booting"] else None

        status = await until(is_degraded)
        assert status["reason"].startswith("no node could take a VM of it, even with nothing else on it: plain: label")
        cluster.add_node("late", ABLE["able"])

        async def is_there():
            return (await server.pool("someday"))["status"]["counts"]["ready"]

        await until(is_there)
        await remove(server, "someday")


class TestAnswers:
    async def test_nodes_are_pages(self, able):
        server, _ = able
        first = (await server.client.get("/v1/nodes", params={"limit": 1})).json()
        assert [item["name"] for item in first["items"]] == ["able"]
        second = (await server.client.get("/v1/nodes", params={"limit": 1, "after": first["next"]})).json()
        assert [(item["name"], item["zone"] is not None) for item in second["items"]] == [("plain", True)]
        assert second["next"] is None
        assert first["observation"]["age_seconds"] < 60
        assert (first["items"][0]["takes_vms"], first["items"][0]["cpumanager"]) == (True, True)

    async def test_a_node_that_is_not_there(self, able):
        answer = await able[0].client.get("/v1/nodes/nope")
        assert (answer.status_code, answer.json()["code"]) == (404, "node-not-found")

    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            ({}, 422, "set exactly one of template, vm and pool"),
            ({"template": TEMPLATE, "vm": TEMPLATE}, 422, "set exactly one of"),
            ({"pool": "nope"}, 404, "no pool is named"),
            ({"pool": "nope", "placement": {}}, 422, "a pool has its own"),
            ({"template": TEMPLATE, "count": 0}, 422, "count"),
            ({"template": TEMPLATE, "placement": {"numa_passthrough": True}}, 422, "placement.numa_passthrough"),
            ({"template": TEMPLATE, "placement": {"hugepages": "3Mi"}}, 422, "placement.hugepages"),
        ],
    )
    async def test_questions_that_make_no_sense_are_refused(self, able, body, status, words):
        answer = await able[0].client.post("/v1/placements/check", json=body)
        assert answer.status_code == status
        assert words in answer.text

    async def test_a_pool_can_be_asked_for(self, able):
        server, _ = able
        await server.put("small", size=0, template=TEMPLATE)
        asked = await check(server, pool="small", count=2)
        assert asked["fits"] is True
        assert asked["fragment"]["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"
        await remove(server, "small")

    async def test_an_instance_type_leaves_the_answer_open(self, able):
        template = {"instancetype": {"name": "u1.small"}, "template": {"spec": {"domain": {}}}}
        asked = await check(able[0], template=template)
        assert (asked["fits"], asked["now"], asked["demand"]) == (None, None, None)
        assert asked["unchecked"][0].startswith("an instance type")
