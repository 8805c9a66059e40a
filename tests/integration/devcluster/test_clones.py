"""Clones of claims and snapshots, as the storage class can make them."""

import pytest

from tests.support.devcluster_bench import MACHINES
from tests.support.devcluster_disks import (
    CLAIMS,
    DATA_SOURCES,
    DATA_VOLUMES,
    VOLUME_SNAPSHOTS,
    condition,
    data_volume,
    disk_machine,
    exists,
    import_image,
    make,
    of_claim,
    of_snapshot,
    on_data_volume,
    progress_of,
    remove,
)

CLONE_TYPE = "cdi.kubevirt.io/cloneType"


@pytest.mark.parametrize(
    ("storage_class", "kind", "phase", "seconds"),
    [
        ("standard", "csi-clone", "CSICloneInProgress", 6),
        ("fast-ssd", "csi-clone", "CSICloneInProgress", 6),
        ("no-snapshots", "copy", "CloneInProgress", 25),
    ],
)
async def test_a_clone_is_made_as_its_class_can(bench, storage_class, kind, phase, seconds):
    await import_image(bench, storage={"storageClassName": storage_class})
    target = {"storageClassName": storage_class, "resources": {}}
    await make(bench, DATA_VOLUMES, data_volume("copy", of_claim("image"), storage=target))
    await bench.clock.advance(seconds - 1)
    under_way = (await progress_of(bench, "copy"))[0]
    await bench.clock.advance(2)

    assert under_way == phase
    assert await progress_of(bench, "copy") == ("Succeeded", "100.0%")
    cloned = await bench.get(f"{DATA_VOLUMES}/copy")
    assert cloned["metadata"]["annotations"][CLONE_TYPE] == kind
    sizes = {name: (await bench.get(f"{CLAIMS}/{name}"))["status"]["capacity"] for name in ("image", "copy")}
    assert sizes["image"] == sizes["copy"]


async def test_a_clone_between_drivers_copies_the_data(bench):
    await import_image(bench)
    local = {"storageClassName": "no-snapshots", "resources": {}}
    await make(bench, DATA_VOLUMES, data_volume("copy", of_claim("image"), storage=local))
    await bench.clock.advance(15)

    assert await progress_of(bench, "copy") == ("CloneInProgress", "50.00%")


async def test_a_clone_of_a_snapshot(bench):
    await import_image(bench)
    snapshot = {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": "cut"},
        "spec": {"source": {"persistentVolumeClaimName": "image"}},
    }
    await make(bench, VOLUME_SNAPSHOTS, snapshot)
    await make(bench, DATA_VOLUMES, data_volume("early", of_snapshot("cut")))
    await bench.clock.advance(1)
    waiting = await progress_of(bench, "early")
    await bench.clock.advance(4)
    restoring = (await progress_of(bench, "early"))[0]
    await bench.clock.advance(3)

    stored = await bench.get(f"{VOLUME_SNAPSHOTS}/cut")
    assert stored["spec"]["volumeSnapshotClassName"] == "devcluster-snapshots"
    assert (waiting, restoring) == (("CloneScheduled", "N/A"), "CloneFromSnapshotSourceInProgress")
    assert await progress_of(bench, "early") == ("Succeeded", "100.0%")


async def test_a_clone_waits_for_its_source_to_be_there_full_and_unused(bench):
    await make(bench, DATA_VOLUMES, data_volume("copy", of_claim("image")))
    await bench.clock.advance(1)
    absent = await bench.get(f"{DATA_VOLUMES}/copy")
    await make(bench, DATA_VOLUMES, data_volume("image"))
    await bench.clock.advance(30)
    waiting = await progress_of(bench, "copy")
    await bench.clock.advance(20)

    assert condition(absent, "Bound") == ("False", "CloneWithoutSource", "The source pvc image doesn't exist")
    assert waiting == ("CloneScheduled", "N/A")
    assert await progress_of(bench, "copy") == ("Succeeded", "100.0%")
    await bench.boot(disk_machine("vm", on_data_volume("image")))
    await make(bench, DATA_VOLUMES, data_volume("again", of_claim("image")))
    await bench.clock.advance(30)
    assert await progress_of(bench, "again") == ("CloneScheduled", "N/A")
    await remove(bench, f"{MACHINES}/vm")
    await bench.clock.advance(30)
    assert await progress_of(bench, "again") == ("Succeeded", "100.0%")


async def test_a_clone_that_is_too_small_is_refused(bench):
    await import_image(bench)
    small = {"resources": {"requests": {"storage": "5Gi"}}}
    await make(bench, DATA_VOLUMES, data_volume("copy", of_claim("image"), storage=small))
    await bench.clock.advance(1)

    reason, message = condition(await bench.get(f"{DATA_VOLUMES}/copy"), "Bound")[1:]
    assert reason == "CloneValidationFailed"
    assert message.endswith("target resources requests storage size is smaller than the source")


async def test_a_clone_through_a_data_source(bench):
    source = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataSource",
        "metadata": {"name": "fedora"},
        "spec": {"source": of_claim("image")},
    }
    await make(bench, DATA_SOURCES, source)
    reference = {"kind": "DataSource", "name": "fedora", "namespace": "default"}
    await make(bench, DATA_VOLUMES, data_volume("copy", reference=reference))
    await bench.clock.advance(1)
    empty = condition(await bench.get(f"{DATA_SOURCES}/fedora"), "Ready")
    await make(bench, DATA_VOLUMES, data_volume("image"))
    await bench.clock.advance(10)
    importing = condition(await bench.get(f"{DATA_SOURCES}/fedora"), "Ready")
    await bench.clock.advance(45)

    assert empty == ("False", "NotFound", "PVC not found")
    assert importing == ("False", "ImportInProgress", "Import DataVolume phase ImportInProgress")
    told = await bench.get(f"{DATA_SOURCES}/fedora")
    assert condition(told, "Ready") == ("True", "Ready", "DataSource is ready to be consumed")
    assert told["status"]["source"]["pvc"]["name"] == "image"
    assert await progress_of(bench, "copy") == ("Succeeded", "100.0%")


async def test_a_guest_of_a_clone_boots_warm_only_where_the_original_was_booted(bench):
    await import_image(bench, "fresh")
    await import_image(bench, "used")
    await bench.boot(disk_machine("first", on_data_volume("used")))
    await remove(bench, f"{MACHINES}/first")
    await bench.clock.advance(30)
    for name in ("fresh", "used"):
        await make(bench, DATA_VOLUMES, data_volume(f"of-{name}", of_claim(name)))
    await bench.clock.advance(10)
    await bench.create(*(disk_machine(f"on-{name}", on_data_volume(f"of-{name}")) for name in ("fresh", "used")))
    await bench.clock.advance(11)

    assert await bench.status("on-used") == ("Running", "")
    assert await bench.status("on-fresh") == ("Running", "ContainersNotReady")


async def test_a_vm_of_a_data_volume_template_clones_an_image(bench):
    await import_image(bench)
    spec = {"source": of_claim("image"), "storage": {"resources": {"requests": {"storage": "10Gi"}}}}
    template = {"metadata": {"name": "vm-root"}, "spec": spec}
    await bench.create(disk_machine("vm", on_data_volume("vm-root"), templates=[template]))
    await bench.clock.advance(3)
    assert (await bench.get(f"{MACHINES}/vm"))["status"]["printableStatus"] == "Provisioning"

    await bench.clock.advance(40)

    assert await bench.status("vm") == ("Running", "")
    await remove(bench, f"{MACHINES}/vm", propagationPolicy="Foreground")
    await bench.clock.advance(30)
    assert not await exists(bench, f"{DATA_VOLUMES}/vm-root")
    assert not await exists(bench, f"{CLAIMS}/vm-root")
    assert await exists(bench, f"{CLAIMS}/image")


async def test_a_vm_waits_for_the_data_source_that_its_template_clones(bench):
    reference = {"kind": "DataSource", "name": "fedora"}
    template = {"metadata": {"name": "root"}, "spec": {"sourceRef": reference, "storage": {}}}
    await bench.create(disk_machine("x", on_data_volume("root"), templates=[template]))
    await bench.clock.advance(1)
    missing = failure_of(await bench.get(f"{MACHINES}/x"))
    source = {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataSource", "metadata": {"name": "fedora"}}
    await make(bench, DATA_SOURCES, {**source, "spec": {"source": {}}})
    await bench.clock.advance(1)
    empty = failure_of(await bench.get(f"{MACHINES}/x"))
    await import_image(bench)
    await remove(bench, f"{DATA_SOURCES}/fedora")
    await make(bench, DATA_SOURCES, {**source, "spec": {"source": of_claim("image")}})
    await bench.clock.advance(90)

    told = "Error encountered while creating DataVolumes: "
    not_found = 'unable to create DataVolume manifest: datasources.cdi.kubevirt.io "fedora" not found'
    assert missing == ("FailedCreate", told + not_found)
    assert empty == ("FailedCreate", f"{told}DataVolume sourceRef not supported")
    assert failure_of(await bench.get(f"{MACHINES}/x")) is None
    assert (await bench.status("x"))[0] == "Running"


def failure_of(vm):
    found = [item for item in vm["status"]["conditions"] if item["type"] == "Failure"]
    return (found[0]["reason"], found[0]["message"]) if found else None
