"""What the storage controllers write is what the kinds' own schemas allow, and goes when it should."""

import pytest

from app.devcluster.apiserver import schemas
from app.devcluster.apiserver.registry import RESOURCES
from tests.support.devcluster_bench import MACHINES
from tests.support.devcluster_disks import (
    CLAIMS,
    CRONS,
    DATA_VOLUMES,
    PROFILES,
    SNAPSHOTS,
    claim,
    cron,
    data_volume,
    disk_machine,
    exists,
    make,
    on_claim,
    on_data_volume,
    remove,
    vm_snapshot,
)


async def test_every_object_fits_its_schema_at_every_step(bench):
    store, complaints, kinds = bench.cluster.store, set(), set()

    def judge(resource, stored):
        if stored is None or not resource.custom:
            return
        kinds.add(resource.kind)
        checked = schemas.check(resource, stored.obj)
        told = [*checked.unknown, *(f"{item['field']}: {item['message']}" for item in checked.causes)]
        complaints.update(f"{resource.kind} {item}" for item in told)

    for resource in RESOURCES:
        for stored in store.each(resource):
            judge(resource, stored)
    store.subscribe(lambda change: judge(change.resource, change.new))
    await bench.order(kind="import-fails", name="broken", settings={"fatal": True})
    await bench.order(kind="import-fails", name="image", count=1)
    await bench.order(kind="snapshot-fails", name="bad")
    await make(bench, CLAIMS, claim("root"))
    await make(bench, DATA_VOLUMES, data_volume("image"), data_volume("broken"))
    await make(bench, DATA_VOLUMES, data_volume("lost", storage={"storageClassName": "nope"}))
    await make(bench, CRONS, cron())
    await bench.create(disk_machine("src", on_claim("root")), disk_machine("second", on_data_volume("image")))
    await bench.clock.advance(120)
    await make(bench, SNAPSHOTS, vm_snapshot("good", "src"), vm_snapshot("bad", "second", failureDeadline="5s"))
    copy = data_volume("copy", {"pvc": {"namespace": "default", "name": "broken"}}, storage={"resources": {}})
    await make(bench, DATA_VOLUMES, copy)
    restore = {
        "apiVersion": "clone.kubevirt.io/v1beta1",
        "kind": "VirtualMachineClone",
        "metadata": {"name": "c"},
        "spec": {"source": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "src"}},
    }
    await bench.clock.advance(10)
    await make(bench, "/apis/clone.kubevirt.io/v1beta1/namespaces/default/virtualmachineclones", restore)
    await bench.clock.advance(60)

    assert not complaints
    storage = {item.kind for item in RESOURCES if "snapshot" in item.group or "cdi" in item.group}
    assert storage <= kinds


async def test_a_reset_cluster_has_its_classes_and_nothing_else(bench):
    await make(bench, DATA_VOLUMES, data_volume("image"))
    await bench.clock.advance(60)

    assert (await bench.call("POST", "/devcluster/v1/reset", {}))[0] == 200
    await bench.clock.advance(5)

    assert (await bench.get(DATA_VOLUMES))["items"] == (await bench.get(CLAIMS))["items"] == []
    assert (await bench.get("/api/v1/persistentvolumes"))["items"] == []
    assert len((await bench.get(PROFILES))["items"]) == 4
    await make(bench, DATA_VOLUMES, data_volume("image"))
    await bench.clock.advance(45)
    assert (await bench.get(f"{DATA_VOLUMES}/image"))["status"]["phase"] == "Succeeded"


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("policy", ["Background", "Foreground"])
async def test_a_claim_goes_with_the_vm_that_owns_it(bench, policy, blocking):
    vm = await make(bench, MACHINES, disk_machine("vm", on_claim("vm-root")))
    await make(bench, CLAIMS, claim("vm-root", owner=vm, blocking=blocking), claim("other"))
    await bench.clock.advance(60)
    assert await bench.status("vm") == ("Running", "")

    await remove(bench, f"{MACHINES}/vm", propagationPolicy=policy)
    await bench.clock.advance(1)
    in_use = await exists(bench, f"{CLAIMS}/vm-root")
    await bench.clock.advance(30)

    assert in_use
    assert not await exists(bench, f"{CLAIMS}/vm-root")
    assert await exists(bench, f"{CLAIMS}/other")


async def test_a_claim_that_is_orphaned_stays(bench):
    vm = await make(bench, MACHINES, disk_machine("vm", on_claim("vm-root"), strategy="Halted"))
    await make(bench, CLAIMS, claim("vm-root", owner=vm))
    await bench.clock.advance(5)

    await remove(bench, f"{MACHINES}/vm", propagationPolicy="Orphan")
    await bench.clock.advance(30)

    assert "ownerReferences" not in (await bench.get(f"{CLAIMS}/vm-root"))["metadata"]
