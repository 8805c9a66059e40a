"""Snapshots over HTTP: taken on a dev cluster, started from, refreshed, refused and deleted."""

import pytest

from app.compute.kubevirt.kinds import PVCS, VM_SNAPSHOTS, VMS, VOLUME_SNAPSHOTS
from tests.support.service import Refused, check, until
from tests.support.snapshots_over_http import kubernetes, ready, template

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def service(server):
    return server.client


async def gone(client, name):
    async def look():
        return (await client.get(f"/v1/snapshots/{name}")).status_code == 404

    await until(look)


async def test_of_a_pool_then_a_pool_from_it(server, service):
    await server.put("src", size=0, template=template())
    body = {"name": "src-ready", "source": {"pool": "src"}}
    answer = await service.post("/v1/snapshots", json=body)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == "/v1/snapshots/src-ready"
    assert answer.json()["state"] == "taking"
    again = await service.post("/v1/snapshots", json=body)
    assert (again.status_code, again.headers["Emberpool-Outcome"]) == (200, "unchanged")

    # A pool may be written before what it starts from is ready: it says so, and its VM waits.
    written = await server.put("fed", size=1, template=template(), start_from={"snapshot": "src-ready"})
    assert written.status_code == 201, written.text

    snapshot = await ready(service, "src-ready")
    assert [disk["name"] for disk in snapshot["included"]] == ["root"]
    assert snapshot["bytes"] == 2 * 1024**3
    assert [volume["name"] for volume in snapshot["excluded"]] == ["scratch"]
    assert "container disk" in snapshot["excluded"][0]["reason"]
    assert snapshot["age_seconds"] >= 0
    assert snapshot["used"]["pools"] == ["fed"]

    async def fed():
        pool = await server.pool("fed")
        return pool["status"]["counts"]["ready"] == 1

    await until(fed)
    snapshot = (await service.get("/v1/snapshots/src-ready")).json()
    assert snapshot["used"]["count"] == 1
    assert snapshot["boot_seconds"]["count"] == 1
    async with kubernetes(server) as cluster:
        claims, _ = await cluster.list_all(PVCS)
        sources = [(each["spec"].get("dataSource") or {}).get("name") for each in claims]
        assert snapshot["included"][0]["volume_snapshot"] in sources
    listed = (await service.get("/v1/snapshots", params={"shape": snapshot["shape"], "source": "src"})).json()
    assert [each["name"] for each in listed["items"]] == ["src-ready"]
    assert (await service.get("/v1/snapshots", params={"shape": "0" * 64})).json()["items"] == []

    problem = check(await service.delete("/v1/snapshots/src-ready"), Refused(409, "snapshot-in-use"))
    assert "'fed'" in problem["detail"]
    assert (await service.delete("/v1/snapshots/src-ready", params={"force": True})).status_code == 202
    await gone(service, "src-ready")
    async with kubernetes(server) as cluster:
        assert (await cluster.list_all(VM_SNAPSHOTS, selector=""))[0] == []
        assert (await cluster.list_all(VOLUME_SNAPSHOTS, selector=""))[0] == []


async def test_a_changed_template_refreshes_it(server, service):
    await server.put("fresh", size=0, template=template())
    await service.post("/v1/snapshots", json={"name": "fresh", "source": {"pool": "fresh"}, "refresh": True})
    first = await ready(service, "fresh")
    await server.put("fresh", size=0, template=template(memory="128Mi"))
    second = await ready(service, "fresh", number=2)
    assert second["shape"] != first["shape"]

    async def one_left():
        takes = (await service.get("/v1/snapshots/fresh")).json()["takes"]
        return [take["state"] for take in takes] == ["ready", "retired"]

    await until(one_left)
    refreshed = await service.post("/v1/snapshots/fresh/refresh")
    assert refreshed.status_code == 202
    assert refreshed.json()["ready"]
    await ready(service, "fresh", number=3)
    await service.delete("/v1/snapshots/fresh")
    await gone(service, "fresh")


async def test_of_a_vm_of_others_frozen_as_it_runs(server, service):
    async with kubernetes(server) as cluster:
        disk = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "theirs"},
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        await cluster.create(PVCS, disk)
        volumes = [{"name": "root", "persistentVolumeClaim": {"claimName": "theirs"}}]
        vmi = {
            "domain": {
                "memory": {"guest": "64Mi"},
                "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]},
            },
            "volumes": volumes,
        }
        vm = {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "metadata": {"name": "ubuntu-template"},
            "spec": {"runStrategy": "Always", "template": {"spec": vmi}},
        }
        await cluster.create(VMS, vm)

        async def running():
            return (await cluster.get(VMS, "ubuntu-template")).get("status", {}).get("ready")

        await until(running)
        answer = await service.post("/v1/snapshots", json={"name": "theirs", "source": {"vm": "ubuntu-template"}})
        assert answer.status_code == 202, answer.text
        found = await ready(service, "theirs")
        assert found["takes"][0]["vm"] == "ubuntu-template"
        assert await running()
        shape = server.services.gateway.expand({"spec": vmi}, "ready").shape
        assert found["shape"] == shape
    await service.delete("/v1/snapshots/theirs")
    await gone(service, "theirs")


async def test_what_cannot_be_snapshotted_is_refused_with_the_reason(server, service):
    await server.put("containers", size=0)
    answer = await service.post("/v1/snapshots", json={"name": "no", "source": {"pool": "containers"}})
    check(answer, Refused(422, "snapshot-refused", "source.pool", "a container disk is read from its image"))
    answer = await service.post("/v1/snapshots", json={"name": "no", "source": {"vm": "nobody"}})
    check(answer, Refused(404, "vm-not-found", says="'nobody' does not exist"))
    answer = await service.post("/v1/snapshots", json={"name": "no", "source": {"pool": "nobody"}})
    check(answer, Refused(404, "pool-not-found"))
    answer = await service.post("/v1/snapshots", json={"name": "no", "source": {"vm": "a"}, "quiesce": "stop"})
    check(answer, Refused(422, "invalid-request", "quiesce", "not stopped for a snapshot"))
    check(await service.get("/v1/snapshots/no"), Refused(404, "snapshot-not-found"))
    check(await service.post("/v1/snapshots/no/refresh"), Refused(404, "snapshot-not-found"))
    check(await service.delete("/v1/snapshots/no"), Refused(404, "snapshot-not-found"))


async def test_a_storage_class_without_snapshots_fails_it_and_says_so(server, service):
    await server.put("plain", size=0, template=template(storage_class="no-snapshots"))
    await service.post("/v1/snapshots", json={"name": "plain", "source": {"pool": "plain"}})

    async def failed():
        found = (await service.get("/v1/snapshots/plain")).json()
        return found if found["takes"][0]["state"] == "failed" else None

    found = await until(failed)
    assert found["state"] == "failed"
    assert not found["ready"]
    await service.delete("/v1/snapshots/plain")
    await gone(service, "plain")
    async with kubernetes(server) as cluster:
        assert (await cluster.list_all(VM_SNAPSHOTS))[0] == []


async def test_another_body_under_the_name_is_refused_by_what_differs(server, service):
    await server.put("twice", size=0, template=template())
    await service.post("/v1/snapshots", json={"name": "twice", "source": {"pool": "twice"}})
    answer = await service.post("/v1/snapshots", json={"name": "twice", "source": {"pool": "twice"}, "keep": 3})
    check(answer, Refused(409, "conflict", "keep", "the snapshot has 1, the request has 3"))
    await service.delete("/v1/snapshots/twice", params={"force": True})
    answer = await service.post("/v1/snapshots", json={"name": "twice", "source": {"pool": "twice"}})
    if answer.status_code != 202:  # it may be gone already
        check(answer, Refused(409, "snapshot-being-deleted"))
    await until(lambda: _deleted(service, "twice"))


async def _deleted(service, name):
    await service.delete(f"/v1/snapshots/{name}", params={"force": True})
    return (await service.get(f"/v1/snapshots/{name}")).status_code == 404


async def test_pools_must_start_from_what_is_there(server):
    answer = await server.put("lost", size=1, template=template(), start_from={"snapshot": "nowhere"})
    check(answer, Refused(422, "invalid-request", "start_from.snapshot", "there is no snapshot 'nowhere'"))


def template_with_state():
    """One whose VMs have a persistent TPM."""
    keeping = template()
    vm_spec = keeping if "template" in keeping else keeping["spec"]
    vm_spec["template"]["spec"]["domain"].setdefault("devices", {})["tpm"] = {"persistent": True}
    return keeping


async def test_a_vm_that_keeps_state_does_not_start_from_a_snapshot(server, service):
    await server.put("stateless", size=0, template=template())
    taken = await service.post("/v1/snapshots", json={"name": "stateless", "source": {"pool": "stateless"}})
    assert taken.status_code == 202, taken.text
    keeping = template_with_state()
    body = {"size": 1, "template": keeping, "start_from": {"snapshot": "stateless"}}
    refused = await service.put("/v1/pools/keeping", json=body)
    check(refused, Refused(422, "invalid-request", "start_from.snapshot", says="persistent TPM or EFI"))
    claimed = await service.post("/v1/claim", json={"vm": keeping, "start_from": {"snapshot": "stateless"}})
    check(claimed, Refused(422, "invalid-request", "start_from.snapshot", says="persistent TPM or EFI"))
    assert (await service.get("/v1/pools/keeping")).status_code == 404


async def test_a_vm_that_reads_the_labels_of_its_volume_does_not_start_from_a_copy_of_it(server, service):
    await server.put("labelled", size=0, template=template())
    taken = await service.post("/v1/snapshots", json={"name": "labelled", "source": {"pool": "labelled"}})
    assert taken.status_code == 202, taken.text
    written = template()
    spec = written if "template" in written else written["spec"]
    inferring = {**spec, "instancetype": {"inferFromVolume": spec["template"]["spec"]["volumes"][0]["name"]}}
    claimed = await service.post("/v1/claim", json={"vm": inferring, "start_from": {"snapshot": "labelled"}})
    check(claimed, Refused(422, "invalid-request", "start_from.snapshot", says="from the labels of a volume"))


async def test_the_state_in_a_snapshot_is_listed_as_excluded_and_becomes_no_disk(server, service):
    keeping = template_with_state()
    await server.put("stateful", size=0, template=keeping)
    await service.post("/v1/snapshots", json={"name": "stateful", "source": {"pool": "stateful"}})
    snapshot = await ready(service, "stateful")
    assert [disk["name"] for disk in snapshot["included"]] == ["root"]
    (state,) = [each for each in snapshot["excluded"] if each["name"].startswith("persistent-state-for-")]
    assert "TPM" in state["reason"]
    answer = await service.put(
        "/v1/pools/of-state", json={"size": 1, "template": template(), "start_from": {"snapshot": "stateful"}}
    )
    assert answer.status_code == 201, answer.text

    async def filled():
        return (await server.pool("of-state"))["status"]["counts"]["ready"] == 1

    await until(filled)
    async with kubernetes(server) as cluster:
        taken, _ = await cluster.list_all(VOLUME_SNAPSHOTS, selector="")
        of_state = {each["metadata"]["name"] for each in taken if "persistent-state-for-" in each["metadata"]["name"]}
        claims, _ = await cluster.list_all(PVCS, selector="")
        assert of_state
        assert not of_state & {(each["spec"].get("dataSource") or {}).get("name") for each in claims}
    await service.delete("/v1/pools/of-state", params={"force": True})
    await service.delete("/v1/snapshots/stateful", params={"force": True})
    await gone(service, "stateful")
