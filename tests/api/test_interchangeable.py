"""VMs of a pool are interchangeable, and a warm VM is the one that was asked for: over HTTP on a dev cluster."""

import copy

import pytest
import yaml

from app.compute.kubevirt.kinds import PODS, PVCS, VMIS, VMS
from tests.support.service import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ON_A_PVC = {"name": "root", "persistentVolumeClaim": {"claimName": "data"}}
AN_IMAGE = {"name": "root", "containerDisk": {"image": "registry.local/machine:1"}}
ROUTED = {"name": "default", "masquerade": {}}
ONE_MACHINE = [
    {"hostname": "db-1"},
    {"domain": {"firmware": {"uuid": "00000000-1111-4222-8333-444444444444"}}},
    {
        "domain": {"devices": {"interfaces": [{**ROUTED, "macAddress": "02:00:00:00:00:08"}]}},
        "networks": [{"name": "default", "pod": {}}],
    },
]


def template(volume=AN_IMAGE, metadata=None, **fields):
    fields = copy.deepcopy(fields)
    domain = {"memory": {"guest": "64Mi"}, "devices": {}, **fields.pop("domain", {})}
    found = {"spec": {"domain": domain, "volumes": [volume], **fields}}
    return found if metadata is None else {"metadata": metadata, **found}


def pool_document(name, vmi, replicas=3):
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": {"pool": name}},
        "virtualMachineTemplate": {
            "metadata": {"labels": {"pool": name}},
            "spec": {"runStrategy": "Always", "template": vmi},
        },
    }
    return {
        "apiVersion": "pool.kubevirt.io/v1beta1",
        "kind": "VirtualMachinePool",
        "metadata": {"name": name},
        "spec": spec,
    }


async def describe(server, vm, **body):
    return await server.client.post("/v1/claim", json={"vm": vm, "warm_when": "running", "wait_seconds": 30, **body})


async def apply(server, *documents):
    return await server.client.post(
        "/v1/manifests", content=yaml.safe_dump_all(documents), headers={"content-type": "application/yaml"}
    )


def cluster(server):
    return server.services.gateway._client


@pytest.mark.parametrize("more", [{"size": 3}, {"size": 1}, {"size": 0}, {"size": 1, "max_vms": 1}])
async def test_no_pool_shares_a_disk_whatever_its_size(server, more):
    answer = await server.put("shares", template=template(ON_A_PVC), **more)
    assert answer.status_code == 422
    (problem,) = answer.json()["errors"]
    assert problem["field"] == "template.spec.volumes[0].persistentVolumeClaim.claimName"
    assert (
        "PersistentVolumeClaim data exists once, and each VM needs a disk of its own: use dataVolumeTemplates"
        in problem["message"]
    )
    assert (await server.client.get("/v1/pools/shares")).status_code == 404


async def test_a_manifest_is_refused_where_it_names_the_disk(server):
    answer = await apply(server, pool_document("shares", template(ON_A_PVC)))
    assert answer.status_code == 422
    (problem,) = answer.json()["errors"]
    assert problem["field"].endswith("template.spec.volumes[0].persistentVolumeClaim.claimName")
    assert problem["field"].startswith("documents[0].spec.virtualMachineTemplate")


async def test_what_is_meant_to_be_shared_is_allowed(server):
    shared = template(ON_A_PVC, domain={"devices": {"disks": [{"name": "root", "disk": {}, "shareable": True}]}})
    assert (await server.put("may-share", size=0, template=shared)).status_code == 201


@pytest.mark.parametrize("fields", ONE_MACHINE)
async def test_no_pool_makes_one_machine_twice(server, fields):
    for more in ({"size": 2}, {"size": 1}, {"size": 1, "max_vms": 2}):
        answer = await server.put("twice", template=template(**fields), **more)
        assert answer.status_code == 422, answer.text
        assert "leave it out, or set max_vms to 1" in answer.json()["errors"][0]["message"]
    assert (await server.put("once", size=1, max_vms=1, template=template(**fields))).status_code in {200, 201}


@pytest.mark.parametrize(
    ("vm", "why"),
    [
        (template(ON_A_PVC), "PersistentVolumeClaim data exists once"),
        (template(hostname="remembered"), "vm.spec.hostname: is the name of one machine"),
    ],
)
async def test_a_vm_that_cannot_be_a_second_time_is_not_remembered(server, vm, why):
    answer = await describe(server, vm, remember=True, wait_seconds=0)
    remembered = (await server.client.get(f"/v1/claims/{answer.json()['id']}")).json()["remembered"]
    assert remembered["pool"] is None
    assert why in remembered["reason"]
    await server.client.delete(f"/v1/claims/{answer.json()['id']}")


async def test_two_claims_on_one_disk_get_it_one_after_the_other(server):
    pvc = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    await cluster(server).create(PVCS, PVCS.manifest({"name": "data", "namespace": "default"}, pvc))
    first = (await describe(server, template(ON_A_PVC))).json()
    assert first["state"] == "bound"
    second = (await describe(server, template(ON_A_PVC, domain={"cpu": {"cores": 2}}), wait_seconds=0)).json()

    async def waits():
        found = (await server.client.get(f"/v1/claims/{second['id']}")).json()
        return found if first["vm"]["name"] in (found["reason"] or "") else None

    assert "PersistentVolumeClaim data exists once and is in use by VM" in (await until(waits))["reason"]
    await server.client.delete(f"/v1/claims/{first['id']}")

    async def bound():
        return (await server.client.get(f"/v1/claims/{second['id']}")).json()["state"] == "bound"

    await until(bound)


async def test_a_warm_vm_gets_the_labels_of_what_the_claim_describes_and_its_own(server):
    await server.fill("marked", warm_when="running", template=template(metadata={"labels": {"pool": "marked"}}))
    answer = (await describe(server, template(metadata={"labels": {"app": "web"}}), labels={"team": "blue"})).json()
    assert (answer["path"], answer["pool"]) == ("pool", "marked")
    name = answer["vm"]["name"]

    async def everywhere():
        vm = await cluster(server).get(VMS, name)
        vmi = await cluster(server).get(VMIS, name)
        (pod,), _ = await cluster(server).list_all(PODS, selector=f"kubevirt.io/created-by={vmi['metadata']['uid']}")
        found = [each["metadata"]["labels"] for each in (vm, vm["spec"]["template"], vmi, pod)]
        wanted = {"app": "web", "team": "blue", "emberpool.io/claim": answer["id"]}
        return found if all(wanted.items() <= each.items() for each in found) else None

    assert not any("pool" in each for each in await until(everywhere))


IGNITION = "kubevirt.io/ignitiondata"


@pytest.mark.parametrize(
    "other",
    [
        template(metadata={"annotations": {IGNITION: "b"}}),
        template(metadata={"annotations": {IGNITION: "a", "k8s.v1.cni.cncf.io/networks": "b"}}),
        template(metadata={"annotations": {IGNITION: "a"}}, evictionStrategy="LiveMigrate"),
        template(metadata={"annotations": {IGNITION: "a"}}, terminationGracePeriodSeconds=300),
        template(metadata={"annotations": {IGNITION: "a"}}, subdomain="web"),
        {"runStrategy": "Once", "template": template(metadata={"annotations": {IGNITION: "a"}})},
    ],
)
async def test_another_vm_than_the_pools_is_made_for_itself(server, other):
    pooled = template(metadata={"annotations": {IGNITION: "a"}})
    await server.fill("ignited", warm_when="running", template=pooled)
    assert (await describe(server, other)).json()["path"] != "pool"
    assert (await describe(server, pooled)).json()["path"] == "pool"


async def test_a_vm_that_was_exported_is_made_as_a_new_machine(server):
    spec = {"runStrategy": "Always", "template": template(domain={"firmware": {"uuid": "1-2", "serial": "SN"}})}
    document = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": "exported", "uid": "1"},
        "spec": spec,
    }
    (made,) = (await apply(server, document)).json()["documents"]
    told = "what identifies the VM that this was exported from was left out: spec.template.spec.domain.firmware.uuid"
    assert any(note.startswith(told) for note in made["notes"])
    (again,) = (await apply(server, document)).json()["documents"]
    assert again["action"] == "unchanged"
    document["metadata"] = {"name": "written"}
    (kept,) = (await apply(server, document)).json()["documents"]
    assert not any("was left out" in note for note in kept["notes"])


async def test_the_cluster_attaches_the_disks_of_a_long_form(server):
    await server.fill("attached", warm_when="running", template=template())
    (vm,) = [
        each for each in (await cluster(server).list_all(VMS))[0] if each["metadata"]["name"].startswith("attached-")
    ]
    assert vm["spec"]["template"]["spec"]["domain"]["devices"] == {}
    vmi = await cluster(server).get(VMIS, vm["metadata"]["name"])
    assert vmi["spec"]["domain"]["devices"]["disks"] == [{"name": "root", "disk": {"bus": "sata"}}]
