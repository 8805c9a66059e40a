"""VirtualMachinePools that somebody else lays hands on, with kubectl: it is told, put right, and costs no claimed VM."""

import asyncio

import pytest

from app.compute.kubevirt.kinds import VM_POOLS, VMS
from app.compute.kubevirt.vm_pools import detach_steps
from app.domain.vm_pools import Backing
from app.errors import ClusterRefused, InvalidRequest
from app.services.claims.lifecycle import release_claim
from app.services.pools.service import pause_pool, resume_pool
from tests.support.rows import eventually, fetch, own_id, scalar


@pytest.fixture
def backing():
    return Backing.VIRTUAL_MACHINE_POOL


async def scale(world, replicas):
    pool = await world.vm_pool()
    metadata = pool["metadata"]
    await world.kubectl.merge(VM_POOLS, metadata["name"], metadata["uid"], {"spec": {"replicas": replicas}})


async def change(world, spec):
    metadata = (await world.vm_pool())["metadata"]
    await world.kubectl.merge(VM_POOLS, metadata["name"], metadata["uid"], {"spec": spec})


async def incidents(world):
    rows = await fetch(world.db, "SELECT data->>'incident' AS text FROM event WHERE type = 'pool.backing' ORDER BY id")
    return [row["text"] for row in rows]


async def test_the_cluster_is_only_ever_let_create(world):
    await world.put(size=2)
    await world.agrees(ready=2)
    pool = await world.vm_pool()
    assert pool["apiVersion"] == "pool.kubevirt.io/v1beta1"
    assert pool["spec"]["updateStrategy"] == pool["spec"]["scaleInStrategy"] == {"unmanaged": {}}
    assert "autohealing" not in pool["spec"]
    pool_id = str(await scalar(world.db, "SELECT id FROM pool"))
    unique = {"emberpool.io/pool-id": pool_id, "emberpool.io/installation": await own_id(world.db)}
    assert pool["spec"]["selector"] == {"matchLabels": unique}
    assert pool["metadata"]["name"].startswith("web-")


@pytest.mark.parametrize("replicas", [5, 0])
async def test_scaled_by_somebody_it_comes_back_to_its_size(world, replicas):
    await world.put(size=2)
    await world.agrees(ready=2)
    await world.claim()
    await world.agrees(ready=2, claimed=1)
    await scale(world, replicas)

    async def told():
        return any(f"replicas was set to {replicas}" in text for text in await incidents(world))

    await eventually(told)
    await world.agrees(ready=2, claimed=1)
    await world.keeps_the_taken()
    await world.tells("replicas was set to")


@pytest.mark.parametrize("propagation", ["Background", "Foreground", "Orphan"])
async def test_deleted_by_somebody_it_is_made_again_under_another_name(world, propagation):
    await world.put(size=2)
    await world.agrees(ready=2)
    await world.claim()
    await world.agrees(ready=2, claimed=1)
    metadata = (await world.vm_pool())["metadata"]
    await world.kubectl.delete(VM_POOLS, metadata["name"], metadata["uid"], propagation=propagation)

    async def made_again():
        left = await world.vm_pools()
        return left and all(each["metadata"]["name"] == f"{metadata['name']}-2" for each in left)

    await eventually(made_again)
    await world.agrees(ready=2, claimed=1)
    await world.keeps_the_taken()
    await world.tells("was deleted by somebody")


async def test_deleted_in_the_background_it_waits_for_us_and_no_warm_vm_is_lost(world):
    await world.put(size=3)
    await world.agrees(ready=3)
    before = set(await world.objects())
    metadata = (await world.vm_pool())["metadata"]
    await world.kubectl.delete(VM_POOLS, metadata["name"], metadata["uid"], propagation="Background")
    _, uid = await world.claim()
    assert uid in before
    await world.agrees(ready=3, claimed=1)
    assert before <= set(await world.objects()), "they are nobody's now, and warm"
    await world.keeps_the_taken()


async def test_paused_by_somebody_it_is_told_and_left_until_they_resume_it(world):
    await world.put(size=2)
    await world.agrees(ready=2)
    await change(world, {"paused": True})
    await world.tells("paused by somebody in the cluster")
    await world.claim()
    await world.settles(ready=1, claimed=1, planned=1)
    assert (await world.vm_pool())["spec"]["paused"] is True
    await change(world, {"paused": False})
    await world.agrees(ready=2, claimed=1)

    async def forgotten():
        return "paused by somebody" not in " ".join(await world.notes())

    await eventually(forgotten)


async def test_our_own_pause_is_the_clusters_too_and_ends_with_ours(world):
    await world.put(size=1)
    await world.agrees(ready=1)
    await pause_pool(world.db, "web")

    async def paused():
        return (await world.vm_pool())["spec"].get("paused")

    await eventually(paused)
    await change(world, {"paused": False})
    await eventually(paused)
    await resume_pool(world.db, "web")

    async def resumed():
        return not await paused()

    await eventually(resumed)
    await world.claim()
    await world.agrees(ready=1, claimed=1)


async def test_strategies_that_could_delete_are_put_back(world):
    await world.put(size=2)
    await world.agrees(ready=2)
    pool = (await world.vm_pool())["metadata"]
    steps = [{"op": "replace", "path": "/spec/scaleInStrategy", "value": {"proactive": {}}}]
    await world.kubectl.patch(VM_POOLS, pool["name"], steps)

    async def back():
        return (await world.vm_pool())["spec"]["scaleInStrategy"] == {"unmanaged": {}}

    await eventually(back)
    await world.tells("strategies were changed")
    await world.agrees(ready=2)


async def test_a_template_that_somebody_edits_is_written_again(world):
    await world.put(size=1)
    await world.agrees(ready=1)
    pool = (await world.vm_pool())["metadata"]
    where = "/spec/virtualMachineTemplate/spec/template/spec/domain/memory/guest"
    await world.kubectl.patch(VM_POOLS, pool["name"], [{"op": "replace", "path": where, "value": "3Gi"}])

    async def back():
        spec = (await world.vm_pool())["spec"]["virtualMachineTemplate"]["spec"]
        return spec["template"]["spec"]["domain"]["memory"]["guest"] == "128Mi"

    await eventually(back)
    assert any("template is written again" in text for text in await incidents(world))


@pytest.mark.parametrize("claimed", [False, True])
async def test_a_vm_detached_by_hand_is_kept_as_it_is(world, claimed):
    await world.put(size=2)
    await world.agrees(ready=2)
    if claimed:
        await pause_pool(world.db, "web")  # so that nothing else moves
        _, uid = await world.claim()
    else:
        uid = next(iter(await world.objects()))
    vm = (await world.objects())[uid]
    if (steps := detach_steps(vm, None)) is not None:
        try:
            await world.kubectl.patch(VMS, vm["metadata"]["name"], steps)
        except ClusterRefused:
            assert claimed, "we were faster"
    await resume_pool(world.db, "web")
    await world.agrees(ready=2, **({"claimed": 1} if claimed else {}))
    if claimed:
        await world.keeps_the_taken()
    assert uid not in await world.owned()


async def test_a_vm_that_somebody_deletes_is_another_row_than_the_one_under_its_name(world):
    await world.put(size=2)
    await world.agrees(ready=2)
    uid, vm = next(iter((await world.objects()).items()))
    name = vm["metadata"]["name"]
    await world.kubectl.delete(VMS, name, uid, propagation="Background")

    async def replaced():
        rows = await fetch(world.db, "SELECT uid, state FROM vm WHERE name = :name", name=name)
        return {row["uid"] for row in rows} > {uid} and all(
            row["state"] == "ready" for row in rows if row["uid"] != uid
        )

    async def whole():
        return uid not in await world.objects() and len(await world.objects()) == 2

    await eventually(whole)
    await world.agrees(ready=2)
    ended = await fetch(world.db, "SELECT state FROM vm WHERE uid = :uid", uid=uid)
    assert [row["state"] for row in ended] in (["deleted"], ["lost"])
    names = [vm["metadata"]["name"] for vm in (await world.objects()).values()]
    if name in names:
        await eventually(replaced)


async def test_two_who_detach_at_once_do_it_once(world):
    await world.put(size=1)
    await world.agrees(ready=1)
    uid, vm = next(iter((await world.objects()).items()))
    name = vm["metadata"]["name"]
    detach = world.gateway.vm_pools.detach
    await asyncio.gather(*(detach(name=name, uid=uid, claim_id=None) for _ in range(4)))
    assert uid not in await world.owned()
    await world.agrees(ready=1)


async def test_what_no_row_knows_goes_and_what_somebody_else_made_stays(world):
    await world.put(size=1)
    await world.agrees(ready=1)
    mine = await world.vm_pool()
    labels = {**mine["metadata"]["labels"], "emberpool.io/pool-id": "00000000-0000-7000-8000-000000000000"}
    strange = {
        "apiVersion": mine["apiVersion"],
        "kind": mine["kind"],
        "metadata": {"name": "left-behind", "namespace": "default", "labels": labels},
        "spec": {
            **mine["spec"],
            "selector": {"matchLabels": {"emberpool.io/pool-id": labels["emberpool.io/pool-id"]}},
            "virtualMachineTemplate": {
                **mine["spec"]["virtualMachineTemplate"],
                "metadata": {"labels": labels},
            },
        },
    }
    foreign = {**strange, "metadata": {"name": "theirs", "namespace": "default"}}
    foreign["spec"] = {
        **strange["spec"],
        "selector": {"matchLabels": {"app": "theirs"}},
        "virtualMachineTemplate": {
            "metadata": {"labels": {"app": "theirs"}},
            "spec": _without_labels(mine["spec"]["virtualMachineTemplate"]["spec"]),
        },
    }
    await world.kubectl.create(VM_POOLS, strange)
    await world.kubectl.create(VM_POOLS, foreign)

    async def swept():
        names = {pool["metadata"]["name"] for pool in await world.vm_pools()}
        vms = {vm["metadata"]["name"] for vm in (await world.objects()).values()}
        return "left-behind" not in names and not any(name.startswith("left-behind") for name in vms)

    await eventually(swept)
    assert "theirs" in {pool["metadata"]["name"] for pool in await world.vm_pools()}
    assert any(vm["metadata"]["name"].startswith("theirs-") for vm in (await world.objects()).values())


async def test_what_stands_behind_a_pool_stays(world):
    await world.put(size=1)
    with pytest.raises(InvalidRequest, match=r"backing cannot be changed \(it is VirtualMachinePool\)"):
        await world.put(size=1, backing=Backing.VIRTUAL_MACHINE)


async def test_a_released_vm_is_detached_before_it_goes_and_its_name_may_come_back(world):
    await world.put(size=1)
    await world.agrees(ready=1)
    for _ in range(3):
        claim_id, uid = await world.claim()
        del world.taken[uid]
        await release_claim(world.db, claim_id)
        await world.agrees(ready=1)
    rows = await fetch(world.db, "SELECT name, uid FROM vm WHERE uid IS NOT NULL")
    assert len({row["uid"] for row in rows}) == len(rows) == 4


def _without_labels(spec):
    return {**spec, "template": {"spec": spec["template"]["spec"]}}
