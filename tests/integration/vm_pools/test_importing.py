"""VirtualMachinePools that were there before, taken over as they run."""

import pytest

from app.compute.kubevirt.kinds import VM_POOLS, VMIS
from app.domain.observation import WarmWhen
from app.domain.vm_pools import Backing
from app.errors import ClusterNotFound, Conflict, InvalidRequest
from app.services.claims.lifecycle import release_claim
from app.services.pools.vm_pool_import import import_vm_pool
from tests.support.claim_services import new_claim, stays_connected
from tests.support.rows import eventually, scalar

LABELS = {"app": "theirs"}


@pytest.fixture
def backing():
    return Backing.VIRTUAL_MACHINE_POOL


def their_pool(replicas=3, **spec):
    domain = {
        "cpu": {"cores": 1},
        "memory": {"guest": "128Mi"},
        "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]},
    }
    inner = {
        "domain": domain,
        "readinessProbe": {"guestAgentPing": {}},
        "volumes": [{"name": "root", "containerDisk": {"image": "registry.example/theirs:1"}}],
    }
    return {
        "apiVersion": "pool.kubevirt.io/v1beta1",
        "kind": "VirtualMachinePool",
        "metadata": {"name": "theirs", "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": LABELS},
            "virtualMachineTemplate": {
                "metadata": {"labels": LABELS},
                "spec": {"runStrategy": "Always", "template": {"metadata": {"labels": LABELS}, "spec": inner}},
            },
            **spec,
        },
    }


async def make_theirs(world, **given):
    """Theirs, with all its guests up; the UIDs of their VMs."""
    body = their_pool(**given)
    await world.kubectl.create(VM_POOLS, body)

    async def up():
        vms = [vm for vm in (await world.objects()).values() if vm["metadata"]["name"].startswith("theirs-")]
        return len(vms) == body["spec"]["replicas"] and all((vm.get("status") or {}).get("ready") for vm in vms)

    await eventually(up)
    return {uid for uid, vm in (await world.objects()).items() if vm["metadata"]["name"].startswith("theirs-")}


async def instances(world):
    found, _ = await world.kubectl.list_all(VMIS, selector="")
    return {vmi["metadata"]["name"]: vmi["metadata"]["uid"] for vmi in found}


def take(world, *, name="mine", dry_run=False, vm_pool="theirs"):
    return import_vm_pool(
        world.db, world.gateway, vm_pool=vm_pool, name=name, warm_when=WarmWhen.AGENT, dry_run=dry_run
    )


async def test_a_dry_run_says_what_would_change_and_changes_nothing(world):
    await make_theirs(world, autohealing={"startUpFailureThreshold": 3})
    before = await world.vm_pools()
    done = await take(world, dry_run=True)
    assert (done.pool, done.spec.size, len(done.vms)) == (None, 3, 3)
    told = " ".join(done.changes)
    for words in (
        "updateStrategy becomes unmanaged",
        "scaleInStrategy becomes",
        "autohealing is removed",
        "3 running VMs become",
    ):
        assert words in told
    assert await world.vm_pools() == before
    assert await scalar(world.db, "SELECT count(*) FROM pool") == 0


async def test_its_vms_become_the_pools_as_they_run(world):
    uids = await make_theirs(world, autohealing={"startUpFailureThreshold": 3})
    before = await instances(world)
    done = await take(world)
    assert done.pool is not None
    await world.agrees(ready=3)
    assert set(await world.objects()) == uids, "none is replaced"
    assert await instances(world) == before, "none is restarted"
    spec = (await world.vm_pool())["spec"]
    assert spec["updateStrategy"] == spec["scaleInStrategy"] == {"unmanaged": {}}
    assert "autohealing" not in spec
    assert spec["selector"] == {"matchLabels": LABELS}
    answer = await world.claim_service.claim(new_claim("mine", wait=20), stays_connected)
    claimed = await scalar(world.db, "SELECT v.uid FROM claim c JOIN vm v ON v.id = c.vm_id")
    assert claimed in uids
    await world.agrees(ready=3, claimed=1)
    await release_claim(world.db, answer.claim.id)
    await world.agrees(ready=3)
    made = [vm for uid, vm in (await world.objects()).items() if uid not in uids]
    assert made, "what was claimed is replaced from the pool's template"
    assert all(vm["metadata"]["labels"]["app"] == "theirs" for vm in made)


async def test_what_cannot_be_taken_over_is_refused_in_words(world):
    await make_theirs(world, replicas=1)
    await world.put("web", size=0)

    async def made():
        return len(await world.vm_pools()) == 2

    await eventually(made)
    ours = next(each["metadata"]["name"] for each in await world.vm_pools() if each["metadata"]["name"] != "theirs")
    with pytest.raises(ClusterNotFound, match="no VirtualMachinePool nobody"):
        await take(world, vm_pool="nobody")
    with pytest.raises(Conflict, match="belongs to a pool already"):
        await take(world, vm_pool=ours)
    with pytest.raises(Conflict, match="there is a pool 'web' already"):
        await take(world, name="web")


async def test_more_replicas_than_a_pool_may_have_are_refused(world):
    await world.kubectl.create(VM_POOLS, {**their_pool(replicas=100_000, paused=True)})
    with pytest.raises(InvalidRequest, match="cannot be a pool: size"):
        await take(world)
