"""Snapshots with memory over HTTP: kept on a dev cluster, told, started from, and refused where they cannot be."""

import copy

import pytest

from app.compute.kubevirt.memory import GROUP
from tests.support.service import Refused, check, until
from tests.support.snapshots_over_http import ready, template

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def service(server):
    return server.client


def whole(*, memory="64Mi", user_data=None):
    """A VM all of whose disks can be in a snapshot."""
    found = copy.deepcopy(template(memory=memory))
    vmi = found["spec"]["template"]["spec"]
    vmi["volumes"] = [volume for volume in vmi["volumes"] if "containerDisk" not in volume]
    if user_data is not None:
        vmi["volumes"].append({"name": "seed", "cloudInitNoCloud": {"userData": user_data}})
    return found


async def served(service, claim):
    async def look():
        found = (await service.get(f"/v1/claims/{claim['id']}")).json()
        assert found["state"] in {"pending", "bound"}, found["reason"]
        return found if found["state"] == "bound" else None

    return await until(look)


async def test_memory_is_kept_told_and_started_from(server, service):
    await server.put("src", size=0, template=whole(user_data="#cloud-config\n"))
    body = {"name": "running", "source": {"pool": "src"}, "memory": True}
    answer = await service.post("/v1/snapshots", json=body)
    assert answer.status_code == 202, answer.text
    assert (answer.json()["memory"], answer.json()["memory_bytes"]) == (True, None)
    snapshot = await ready(service, "running")
    assert snapshot["memory_bytes"] == 64 * 1024**2
    assert (bool(snapshot["fingerprint"]), snapshot["stale_reason"]) == (True, None)

    wanted = {"vm": whole(user_data="#cloud-config\n")}
    asked = await service.post("/v1/claim", json=wanted)
    assert asked.status_code in {201, 202}, asked.text
    claim = await served(service, asked.json())
    assert (claim["path"], claim["choice"]["source"]) == ("memory", "running")
    assert claim["choice"]["reason"].startswith("from the memory of snapshot 'running'")
    paths = (await service.get("/v1/paths", params={"path": "memory"})).json()["items"]
    assert [each["count"] for each in paths if each["shape"] is None] == [1]
    vm = (await service.get(f"/v1/vms/{claim['vm']['id']}")).json()
    assert vm["path"] == "memory"


async def test_another_machine_or_other_user_data_is_refused_by_the_field(server, service):
    await server.put("kept", size=0, template=whole(memory="96Mi", user_data="#cloud-config\nhostname: a\n"))
    await service.post("/v1/snapshots", json={"name": "kept", "source": {"pool": "kept"}, "memory": True})
    await ready(service, "kept")
    start = {"start_from": {"snapshot": "kept"}}
    larger = whole(memory="128Mi", user_data="#cloud-config\nhostname: a\n")
    problem = check(await service.post("/v1/claim", json={"vm": larger, **start}), Refused(422, "template-refused"))
    assert [each["field"] for each in problem["errors"]] == ["vm.spec.template.spec.domain.memory.guest"]
    other = whole(memory="96Mi", user_data="#cloud-config\nhostname: b\n")
    problem = check(await service.post("/v1/claim", json={"vm": other, **start}), Refused(422, "template-refused"))
    assert "cloud-init of volume seed differs, and cannot be applied" in problem["errors"][0]["message"]
    pool = {"size": 1, "template": larger, **start}
    problem = check(await service.put("/v1/pools/larger", json=pool), Refused(422, "template-refused"))
    assert [each["field"] for each in problem["errors"]] == ["template.spec.template.spec.domain.memory.guest"]


async def test_a_vm_with_a_container_disk_is_refused(server, service):
    await server.put("image", size=0, template=template())
    body = {"name": "image", "source": {"pool": "image"}, "memory": True}
    problem = check(await service.post("/v1/snapshots", json=body), Refused(422, "snapshot-refused"))
    assert problem["errors"][0]["field"] == "source.pool"
    assert "scratch: a container disk is read from its image at each boot" in problem["detail"]


async def test_a_cluster_that_keeps_no_memory_refuses_it_with_what_to_do(server, service, monkeypatch):
    await server.put("plain", size=0, template=whole())
    snapshots = server.services.gateway.snapshots

    async def versions(group):
        assert group == GROUP
        return ()  # as every KubeVirt cluster answers

    monkeypatch.setattr(snapshots._client, "versions", versions)
    body = {"name": "plain", "source": {"pool": "plain"}, "memory": True}
    problem = check(await service.post("/v1/snapshots", json=body), Refused(422, "snapshot-refused"))
    assert problem["errors"][0]["field"] == "memory"
    assert "keeps no memory of VMs, as KubeVirt does not. Leave memory out" in problem["detail"]
