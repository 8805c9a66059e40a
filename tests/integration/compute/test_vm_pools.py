"""VirtualMachinePools as they are sent, against what was recorded and over HTTP against the dev cluster."""

import json
from dataclasses import replace

import pytest

from app.compute.kubevirt.kinds import VM_POOLS, VMS
from app.compute.kubevirt.vm_pools import detach_steps
from app.compute.vm_pools import VmPoolOrder
from app.domain.observation import WarmWhen
from app.domain.paths import FromVolume, ImageKind, ImageRef
from app.domain.vm_pools import Change
from app.errors import ClusterConflict, ClusterNotFound, ClusterRefused
from app.ids import new_id, vm_pool_name
from tests.support.kubevirt_documents import WITH_DATA_VOLUME
from tests.support.recorded import exchange
from tests.support.rows import eventually

SHORT = {"image": "registry.example/fedora:42", "cpu": 1, "memory": "1Gi"}


def order_of(gateway, template=SHORT, *, warm_when=WarmWhen.AGENT, start=None, name=None, pool_id=None):
    expanded = gateway.expand(template, warm_when, diskless=start is not None)
    pool_id = pool_id or new_id()
    return VmPoolOrder(
        name or vm_pool_name("web", pool_id, 1), "web", pool_id, expanded.spec, expanded.fingerprint, start
    )


@pytest.fixture
async def client(gateway):
    return gateway._client


async def members(gateway, order, count):
    async def has():
        listed = await gateway.list_vms()
        found = [vm for vm in listed.observations if vm.pool_id == str(order.pool_id) and vm.owner]
        return found if len(found) == count else None

    return sorted(await eventually(has), key=lambda vm: vm.name)


def step(name):
    return exchange("pool", name)


def as_recorded(steps):
    """The labels are the recording's own."""
    text = json.dumps(steps).replace("emberpool.io~1pool-id", "rec~1pool").replace("emberpool.io~1claim", "rec~1claim")
    return json.loads(text)


def test_detaching_is_the_patch_that_was_recorded():
    listed = step("list the members")["response"]["body"]["items"]
    sent = step("detach warm-1 by one JSON patch")["request"]["body"]
    vm = next(item for item in listed if item["metadata"]["name"] == "warm-1")
    metadata = vm["metadata"]
    labels = {
        ("emberpool.io/pool-id" if key == "rec/pool" else key): value for key, value in metadata["labels"].items()
    }
    read = {**vm, "metadata": {**metadata, "labels": labels}}
    assert as_recorded(detach_steps(read, "c1")) == sent


def test_the_detached_vm_is_nobodys_and_needs_no_patch():
    vm = step("GET the detached VM")["response"]["body"]
    assert detach_steps(vm, None) is None
    assert "pool.kubevirt.io/finalizer" not in vm["metadata"]["finalizers"]


async def test_what_is_made_is_what_was_accepted(gateway, client):
    sent = step("create the pool, 3 replicas")["request"]
    order = order_of(gateway)
    seen = await gateway.vm_pools.make(order, replicas=3, paused=False)
    made = await client.get(VM_POOLS, order.name)
    assert (made["apiVersion"], made["kind"]) == (sent["body"]["apiVersion"], sent["body"]["kind"])
    spec, theirs = made["spec"], sent["body"]["spec"]
    assert {key: spec[key] for key in ("replicas", "updateStrategy", "scaleInStrategy")} == {
        key: theirs[key] for key in ("replicas", "updateStrategy", "scaleInStrategy")
    }
    assert set(spec) == set(theirs)
    (label,) = spec["selector"]["matchLabels"]
    assert spec["virtualMachineTemplate"]["metadata"]["labels"][label] == spec["selector"]["matchLabels"][label]
    assert seen.unmanaged
    assert seen.held


def test_deleting_orphans_and_names_the_uid():
    body = step("delete the pool, Orphan")["request"]["body"]
    assert body["propagationPolicy"] == "Orphan"
    assert set(body["preconditions"]) == {"uid"}


def vm_of(*, owners=1, finalizers=("pool.kubevirt.io/finalizer", "other"), labels=None):
    references = [{"kind": "VirtualMachinePool", "name": "web", "uid": "pool-uid", "controller": True}]
    references += [{"kind": "ConfigMap", "name": "x", "uid": "x-uid"}] * (owners - 1)
    return {
        "metadata": {
            "name": "web-0",
            "uid": "vm-uid",
            "ownerReferences": references[::-1],
            "finalizers": list(finalizers),
            **({"labels": labels} if labels is not None else {}),
        }
    }


def test_other_owners_and_other_finalizers_stay():
    steps = detach_steps(vm_of(owners=2), None)
    assert {"op": "test", "path": "/metadata/ownerReferences/1/uid", "value": "pool-uid"} in steps
    assert {"op": "remove", "path": "/metadata/ownerReferences/1"} in steps
    assert {"op": "replace", "path": "/metadata/finalizers", "value": ["other"]} in steps


def test_without_the_controllers_finalizer_none_is_written():
    steps = detach_steps(vm_of(finalizers=("other",)), None)
    assert not any("finalizers" in step["path"] for step in steps)


def test_a_vm_without_labels_gets_them_for_its_claim():
    steps = detach_steps(vm_of(), "c1")
    assert steps[-2:] == [
        {"op": "add", "path": "/metadata/labels", "value": {}},
        {"op": "add", "path": "/metadata/labels/emberpool.io~1claim", "value": "c1"},
    ]


async def test_its_vms_say_whose_they_are_and_of_which_template(gateway):
    order = order_of(gateway)
    seen = await gateway.vm_pools.make(order, replicas=2, paused=False)
    first, second = await members(gateway, order, 2)
    assert (first.name, second.name) == (f"{order.name}-0", f"{order.name}-1")
    assert (first.owner, first.pool, first.pool_id, first.revision, first.vm_id) == (
        seen.uid,
        "web",
        str(order.pool_id),
        order.revision,
        None,
    )
    again = await gateway.vm_pools.make(order, replicas=9, paused=False)
    assert (again.uid, again.replicas) == (seen.uid, 2), "the answer was lost, and the call is made again"
    with pytest.raises(ClusterConflict, match="not ours"):
        await gateway.vm_pools.make(order_of(gateway, name=order.name), replicas=1, paused=False)


async def test_a_detached_vm_keeps_running_and_another_has_its_place(gateway, client):
    order = order_of(gateway)
    await gateway.vm_pools.make(order, replicas=1, paused=False)
    (vm,) = await members(gateway, order, 1)
    claim_id = str(new_id())
    await gateway.vm_pools.detach(name=vm.name, uid=vm.uid, claim_id=claim_id)
    found = await client.get(VMS, vm.name)
    assert "ownerReferences" not in found["metadata"]
    assert found["metadata"]["labels"]["emberpool.io/claim"] == claim_id
    assert "emberpool.io/pool-id" not in found["metadata"]["labels"]
    (other,) = await members(gateway, order, 1)
    assert other.name == f"{order.name}-1"
    await gateway.vm_pools.detach(name=vm.name, uid=vm.uid, claim_id=claim_id)  # again: nothing is left to be done
    with pytest.raises(ClusterNotFound):
        await gateway.vm_pools.detach(name=vm.name, uid="another", claim_id=None)


async def test_a_write_to_what_somebody_else_wrote_is_refused(gateway, client):
    order = order_of(gateway)
    seen = await gateway.vm_pools.make(order, replicas=0, paused=False)
    await client.merge(VM_POOLS, order.name, seen.uid, {"spec": {"replicas": 4}})
    with pytest.raises(ClusterRefused):
        await gateway.vm_pools.change(order, seen, Change(replicas=1))
    now = await gateway.vm_pools.look(order.name)
    changed = await gateway.vm_pools.change(order, now, Change(replicas=1, paused=True))
    assert (changed.replicas, changed.paused, changed.generation > now.generation) == (1, True, True)


async def test_a_template_that_is_written_again_is_no_change(gateway):
    order = order_of(gateway)
    seen = await gateway.vm_pools.make(order, replicas=0, paused=False)
    same = await gateway.vm_pools.change(order, seen, Change(template=True, restore=True))
    assert same.generation == seen.generation


async def test_disks_are_named_after_it_and_after_each_vm(gateway, client):
    order = order_of(gateway, WITH_DATA_VOLUME, warm_when=WarmWhen.READY)
    await gateway.vm_pools.make(order, replicas=2, paused=False)
    await members(gateway, order, 2)
    for index in (0, 1):
        spec = (await client.get(VMS, f"{order.name}-{index}"))["spec"]
        (template,) = spec["dataVolumeTemplates"]
        name = template["metadata"]["name"]
        assert name.startswith(order.name)
        assert name.endswith(f"-{index}")
        volumes = spec["template"]["spec"]["volumes"]
        assert name in {(volume.get("dataVolume") or {}).get("name") for volume in volumes}


async def test_its_vms_can_start_from_a_preload(gateway, client):
    image = ImageRef(ImageKind.HTTP, "https://registry.example/disk.qcow2")
    start = FromVolume("ubuntu", image, "ubuntu-1", "2Gi", None, (), None)
    bare = {"cpu": 1, "memory": "1Gi"}
    order = order_of(gateway, bare, start=start)
    cold = replace(order, start=None)
    assert gateway.vm_pools.fingerprint(order) != gateway.vm_pools.fingerprint(cold)
    await gateway.vm_pools.make(order, replicas=0, paused=True)
    spec = (await client.get(VM_POOLS, order.name))["spec"]["virtualMachineTemplate"]["spec"]
    (template,) = spec["dataVolumeTemplates"]
    assert template["spec"]["source"] == {"pvc": {"name": "ubuntu-1", "namespace": "default"}}


async def test_a_check_makes_nothing_and_passes_refusals_on(gateway):
    order = order_of(gateway)
    await gateway.vm_pools.check(order)
    assert await gateway.vm_pools.look(order.name) is None
    order.spec["template"]["spec"]["domain"]["memory"]["guest"] = "nonsense"
    with pytest.raises(ClusterRefused):
        await gateway.vm_pools.check(order)


async def test_without_such_a_kind_it_says_so(gateway, client, monkeypatch):
    async def none(_group):
        return ()

    monkeypatch.setattr(client, "versions", none)
    with pytest.raises(ClusterNotFound, match=r"serves pool\.kubevirt\.io in none of v1beta1, v1alpha1"):
        await gateway.vm_pools.check(order_of(gateway))


async def test_an_older_cluster_is_spoken_to_in_its_version(gateway, client, monkeypatch):
    asked = []

    async def older(_group):
        return ("v1alpha1",)

    async def create(kind, body, *, dry_run=False):
        asked.append((kind.api_version, body["apiVersion"]))
        return body

    monkeypatch.setattr(client, "versions", older)
    monkeypatch.setattr(client, "create", create)
    await gateway.vm_pools.check(order_of(gateway))
    assert asked == [("pool.kubevirt.io/v1alpha1", "pool.kubevirt.io/v1alpha1")]


async def test_a_cluster_that_does_not_know_the_kind_yet_says_nothing_of_what_is_there(gateway, client, monkeypatch):
    async def unknown(*_args, **_given):
        raise ClusterNotFound("404 page not found")

    assert await gateway.vm_pools.look("nobody") is None
    monkeypatch.setattr(client, "get", unknown)
    monkeypatch.setattr(client, "list_all", unknown)
    with pytest.raises(ClusterNotFound):
        await gateway.vm_pools.look("nobody")


async def test_a_group_that_is_not_served_has_no_versions(client):
    assert await client.versions("pool.kubevirt.io") == ("v1beta1",)
    assert await client.versions("nothing.example") == ()
