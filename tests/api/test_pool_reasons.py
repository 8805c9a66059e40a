"""What a pool and its claims say is wrong: told where it is written, and while it lasts."""

import pytest

from tests.support.service import TEMPLATE, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
DISK = {"image": "https://images.example/gone.qcow2", "memory": "64Mi", "root_disk": "1Gi"}
LEAVE_NO_ROOM = (
    "min_available and max_vms leave no room to replace them; raise max_vms by 1 or lower min_available by 1"
)
FAULTS = {
    "import": ({"kind": "import-fails", "settings": {"message": "404 Not Found"}}, DISK, "import: 404 Not Found"),
    "image": ({"kind": "image-error", "settings": {"message": "no such image"}}, TEMPLATE, "no such image"),
    "crash": ({"kind": "boot-fails"}, TEMPLATE, "CrashLoopBackOff"),
}


async def test_a_pool_that_cannot_rotate_says_so_when_it_is_written_and_as_long_as_it_lasts(server):
    await server.fill("floor", size=1, min_available=1, max_vms=1)
    written = await server.put("floor", size=1, min_available=1, max_vms=1, template={**TEMPLATE, "memory": "65Mi"})
    assert "size, min_available and max_vms are all 1" in written.json()["status"]["notes"][0]

    async def held():
        return (await server.pool("floor"))["status"]["reason"]

    assert await until(held) == f"1 VM of the old template: {LEAVE_NO_ROOM}"
    await server.put("floor", size=1, min_available=1, max_vms=2, template={**TEMPLATE, "memory": "65Mi"})

    async def rotated():
        status = (await server.pool("floor"))["status"]
        return status["rotation"] is None and status["counts"]["ready"] == 1 and status

    status = await until(rotated)
    assert (status["phase"], status["reason"], status["notes"]) == ("ready", None, [])


async def test_a_manifest_is_told_the_same(server):
    document = """
        apiVersion: pool.kubevirt.io/v1
        kind: VirtualMachinePool
        metadata: {name: told}
        spec:
          size: 1
          minAvailable: 1
          autoReplenish: false
          template: {image: registry.local/disk:1, memory: 64Mi}
    """
    applied = await server.client.post(
        "/v1/manifests?dry_run=true", content=document, headers={"Content-Type": "application/yaml"}
    )
    assert applied.status_code == 200, applied.text
    assert any("auto_replenish is off" in note for note in applied.json()["documents"][0]["notes"])


@pytest.mark.parametrize(("fault", "template", "ails"), FAULTS.values(), ids=FAULTS)
async def test_a_pool_and_a_claim_that_waits_say_what_ails_the_vms(server, cluster, request, fault, template, ails):
    name = f"ails-{request.node.callspec.id}"
    given = cluster.faults.order(**fault, name=f"{name}-*")
    await server.put(name, size=1, warm_when="running", template=template)
    claim = (await server.claim(name, headers={"Idempotency-Key": name})).json()

    async def told():
        status = (await server.pool(name))["status"]
        waiting = (await server.client.get(f"/v1/claims/{claim['id']}")).json()
        (listed,) = (await server.client.get("/v1/claims", params={"pool": name})).json()["items"]
        reasons = [status["reason"], waiting["reason"], listed["reason"]]
        ails_all = status["phase"] in ({"filling", "stalled"} if fault["kind"] == "boot-fails" else {"degraded"})
        return ails_all and all(ails in (reason or "") for reason in reasons)

    await until(told)
    cluster.faults.lift(given.id)
    await server.client.delete(f"/v1/pools/{name}", params={"force": "true"})


OWN = {"name": "root", "dataVolume": {"name": "root"}}
ABSENT = {
    "data source": (
        OWN,
        {"sourceRef": {"kind": "DataSource", "namespace": "golden", "name": "fedora"}},
        "DataSource fedora",
    ),
    "cloned PVC": (OWN, {"source": {"pvc": {"namespace": "golden", "name": "fedora"}}}, "source pvc fedora"),
    "cloned snapshot": (
        OWN,
        {"source": {"snapshot": {"namespace": "golden", "name": "fedora"}}},
        "source snapshot fedora",
    ),
    "PVC": (
        {"name": "root", "persistentVolumeClaim": {"claimName": "absent"}},
        None,
        "PVC default/absent does not exist",
    ),
    "DataVolume": ({"name": "root", "dataVolume": {"name": "absent"}}, None, "PVC default/absent does not exist"),
}


def machine_on(volume, source):
    storage = {"resources": {"requests": {"storage": "1Gi"}}}
    templates = [{"metadata": {"name": "root"}, "spec": {**source, "storage": storage}}] if source else []
    disks = [{"name": "root", "disk": {"bus": "virtio"}, **({} if source else {"shareable": True})}]
    domain = {"devices": {"disks": disks}, "memory": {"guest": "64Mi"}}
    inner = {"spec": {"domain": domain, "volumes": [volume]}}
    return {"runStrategy": "Always", "dataVolumeTemplates": templates, "template": inner}


@pytest.mark.parametrize(("volume", "source", "ails"), ABSENT.values(), ids=ABSENT)
async def test_what_waits_for_something_that_does_not_exist_says_for_what(server, request, volume, source, ails):
    name = f"absent-{request.node.callspec.id.replace(' ', '-').lower()}"
    template = machine_on(volume, source)
    written = await server.put(name, size=1, warm_when="running", template=template)
    assert written.status_code == 201, written.text
    other = {**template, "template": {**template["template"], "metadata": {"labels": {"for": "claim"}}}}
    answer = await server.client.post("/v1/claim", json={"vm": other}, headers={"Idempotency-Key": name})
    assert answer.status_code in {201, 202}, answer.text

    async def told():
        status = (await server.pool(name))["status"]
        claim = (await server.client.get(f"/v1/claims/{answer.json()['id']}")).json()
        reasons = [status["reason"], claim["reason"]]
        return status["phase"] == "degraded" and all(ails in (reason or "") for reason in reasons)

    await until(told)
    await server.client.delete(f"/v1/claims/{answer.json()['id']}")
    await server.client.delete(f"/v1/pools/{name}", params={"force": "true"})
