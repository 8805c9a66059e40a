"""Images imported into claims, clones of them, and what goes wrong with both."""

import pytest

from tests.support.devcluster_bench import MACHINES, machine
from tests.support.devcluster_disks import (
    CLAIMS,
    DATA_SOURCES,
    DATA_VOLUMES,
    PROFILES,
    SNAPSHOTS,
    VOLUME_SNAPSHOTS,
    claim,
    condition,
    data_volume,
    disk_machine,
    exists,
    make,
    on_claim,
    on_data_volume,
    remove,
    vm_snapshot,
)

CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
CLONE_TYPE = "cdi.kubevirt.io/cloneType"
SOURCES = {
    "http": {"url": "https://images.example.com/fedora.qcow2"},
    "registry": {"url": "docker://quay.io/containerdisks/fedora:42"},
    "s3": {"url": "s3://bucket/fedora.qcow2"},
    "gcs": {"url": "gs://bucket/fedora.qcow2"},
}


def of_claim(name):
    return {"pvc": {"namespace": "default", "name": name}}


def of_snapshot(name):
    return {"snapshot": {"namespace": "default", "name": name}}


async def look(bench, name):
    volume = await bench.get(f"{DATA_VOLUMES}/{name}")
    return volume.get("status", {}).get("phase"), volume.get("status", {}).get("progress")


async def pod_phase(bench, name):
    """Of the importer, as its claim tells it."""
    return (await bench.get(f"{CLAIMS}/{name}"))["metadata"]["annotations"]["cdi.kubevirt.io/storage.pod.phase"]


async def load(bench, name="image", **options):
    """An image that has been imported."""
    await make(bench, DATA_VOLUMES, data_volume(name, **options))
    await bench.clock.advance(45)
    assert await look(bench, name) == ("Succeeded", "100.0%")


@pytest.mark.parametrize("kind", SOURCES)
async def test_an_import_tells_phase_progress_and_conditions(bench, kind):
    await make(bench, DATA_VOLUMES, data_volume("image", {kind: SOURCES[kind]}))
    await bench.clock.advance(0.1)
    pending = await bench.get(f"{DATA_VOLUMES}/image")
    await bench.clock.advance(1)
    scheduled = await look(bench, "image")
    pods = [await pod_phase(bench, "image")]
    await bench.clock.advance(20)
    half = await bench.get(f"{DATA_VOLUMES}/image")
    pods.append(await pod_phase(bench, "image"))
    await bench.clock.advance(25)
    done = await bench.get(f"{DATA_VOLUMES}/image")
    pods.append(await pod_phase(bench, "image"))

    assert (pending["status"]["phase"], pending["status"]["progress"]) == ("Pending", "N/A")
    assert condition(pending, "Bound") == ("False", "Pending", "PVC image Pending")
    assert scheduled == ("ImportScheduled", "N/A")
    assert (half["status"]["phase"], half["status"]["progress"]) == ("ImportInProgress", "50.00%")
    assert condition(half, "Running") == ("True", "Pod is running", "")
    assert condition(half, "Ready")[0] == "False"
    assert (done["status"]["phase"], done["status"]["progress"]) == ("Succeeded", "100.0%")
    assert [condition(done, kind)[0] for kind in ("Bound", "Running", "Ready")] == ["True", "False", "True"]
    assert done["status"]["claimName"] == "image"
    assert pods == ["Pending", "Running", "Succeeded"]


async def test_an_empty_disk_takes_no_time(bench):
    await make(bench, DATA_VOLUMES, data_volume("scratch", {"blank": {}}))
    await bench.clock.advance(2)

    assert await look(bench, "scratch") == ("Succeeded", "100.0%")


async def test_what_a_volume_leaves_open_comes_from_its_storage_profile(bench):
    await make(
        bench,
        DATA_VOLUMES,
        data_volume("shared"),
        data_volume("plain", storage={"storageClassName": "no-snapshots"}),
        data_volume("given", storage={"accessModes": ["ReadWriteOnce"]}),
        data_volume("exact", pvc={"accessModes": ["ReadWriteOnce"], "storageClassName": "fast-ssd"}),
    )
    await bench.clock.advance(1)

    specs = {item["metadata"]["name"]: item["spec"] for item in (await bench.get(CLAIMS))["items"]}
    told = {
        name: (
            spec["storageClassName"],
            spec["accessModes"],
            spec["volumeMode"],
            spec["resources"]["requests"]["storage"],
        )
        for name, spec in specs.items()
    }
    assert told == {
        "shared": ("standard", ["ReadWriteMany"], "Block", "10Gi"),
        # 6 % more for the file system's own use, in bytes.
        "plain": ("no-snapshots", ["ReadWriteOnce"], "Filesystem", "11381663335"),
        "given": ("standard", ["ReadWriteOnce"], "Block", "10Gi"),
        "exact": ("fast-ssd", ["ReadWriteOnce"], "Filesystem", "10Gi"),
    }


async def test_each_storage_class_has_a_profile(bench):
    profiles = {item["metadata"]["name"]: item["status"] for item in (await bench.get(PROFILES))["items"]}

    told = {name: (item["cloneStrategy"], item.get("snapshotClass")) for name, item in profiles.items()}
    assert told == {
        "standard": ("csi-clone", "devcluster-snapshots"),
        "fast-ssd": ("csi-clone", "devcluster-snapshots"),
        "no-snapshots": ("copy", None),
        "local-wait": ("csi-clone", "local-snapshots"),
    }
    assert profiles["standard"]["claimPropertySets"][0] == {"accessModes": ["ReadWriteMany"], "volumeMode": "Block"}
    assert profiles["standard"]["dataImportCronSourceFormat"] == "pvc"


async def test_a_profile_follows_its_class_and_its_own_spec(bench):
    status, _ = await bench.call(
        "PATCH",
        f"{PROFILES}/no-snapshots",
        {"spec": {"claimPropertySets": [{"accessModes": ["ReadWriteMany"], "volumeMode": "Filesystem"}]}},
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert status == 200
    await make(bench, DATA_VOLUMES, data_volume("plain", storage={"storageClassName": "no-snapshots"}))
    await bench.clock.advance(1)
    assert (await bench.get(f"{CLAIMS}/plain"))["spec"]["accessModes"] == ["ReadWriteMany"]

    await remove(bench, f"{CLASSES}/no-snapshots")
    await bench.clock.advance(1)
    assert not await exists(bench, f"{PROFILES}/no-snapshots")


async def test_an_unknown_class_leaves_claims_and_volumes_waiting_until_it_comes(bench):
    await make(bench, CLAIMS, claim("lost", storage_class="nope"))
    exact = {"accessModes": ["ReadWriteOnce"], "storageClassName": "nope"}
    await make(bench, DATA_VOLUMES, data_volume("exact", pvc=exact))
    await make(bench, DATA_VOLUMES, data_volume("open", storage={"storageClassName": "nope"}))
    await bench.clock.advance(100)

    assert (await bench.get(f"{CLAIMS}/lost"))["status"] == {"phase": "Pending"}
    assert await look(bench, "exact") == ("Pending", "N/A")
    told = await bench.get(f"{DATA_VOLUMES}/open")
    assert "phase" not in told["status"]
    message = "PVC spec is missing accessMode and no storageClass to choose profile"
    assert condition(told, "Bound") == ("False", "ErrClaimNotValid", message)
    assert not await exists(bench, f"{CLAIMS}/open")

    await make(
        bench,
        CLASSES,
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "nope"},
            "provisioner": "csi.devcluster",
        },
    )
    await bench.clock.advance(45)

    assert (await bench.get(f"{CLAIMS}/lost"))["status"]["phase"] == "Bound"
    assert await look(bench, "exact") == await look(bench, "open") == ("Succeeded", "100.0%")


async def test_a_class_that_cdi_does_not_know_needs_access_modes(bench):
    unknown = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "csi.example.com"}
    await make(bench, CLASSES, {**unknown, "metadata": {"name": "odd"}})
    await make(bench, DATA_VOLUMES, data_volume("open", storage={"storageClassName": "odd"}))
    await bench.clock.advance(5)

    told = condition(await bench.get(f"{DATA_VOLUMES}/open"), "Bound")
    assert told == ("False", "ErrClaimNotValid", "no accessMode specified in StorageProfile odd")


async def test_a_claim_that_names_no_class_gets_the_default(bench):
    await make(bench, CLAIMS, claim("one", storage_class=""))
    await bench.clock.advance(1)

    stored = await bench.get(f"{CLAIMS}/one")
    assert (stored["spec"]["storageClassName"], stored["status"]["phase"]) == ("standard", "Bound")


async def test_an_import_on_a_class_that_waits_needs_the_annotation_or_a_user(bench):
    local = {"storageClassName": "local-wait"}
    await make(bench, DATA_VOLUMES, data_volume("now", storage=local, immediate=True))
    await make(bench, DATA_VOLUMES, data_volume("later", storage=local))
    await bench.clock.advance(45)
    assert await look(bench, "now") == ("Succeeded", "100.0%")
    assert await look(bench, "later") == ("PendingPopulation", "N/A")

    await bench.create(disk_machine("vm", on_data_volume("later")))
    await bench.clock.advance(20)
    importing = await bench.status("vm")
    told = await bench.condition("vm", "DataVolumesReady")
    await bench.clock.advance(60)

    assert importing == ("Provisioning", "PodNotExists")
    assert (told["status"], told["reason"]) == ("False", "NotAllDVsReady")
    assert await bench.status("vm") == ("Running", "")


async def test_a_plain_claim_that_waits_binds_when_a_vm_uses_it(bench):
    await make(bench, CLAIMS, claim("disk", storage_class="local-wait"))
    await bench.clock.advance(60)
    assert (await bench.get(f"{CLAIMS}/disk"))["status"]["phase"] == "Pending"

    await bench.boot(disk_machine("vm", on_claim("disk")))

    assert await bench.status("vm") == ("Running", "")


@pytest.mark.parametrize(
    ("storage_class", "kind", "phase", "seconds"),
    [
        ("standard", "csi-clone", "CSICloneInProgress", 6),
        ("fast-ssd", "csi-clone", "CSICloneInProgress", 6),
        ("no-snapshots", "copy", "CloneInProgress", 25),
    ],
)
async def test_a_clone_is_made_as_its_class_can(bench, storage_class, kind, phase, seconds):
    await load(bench, storage={"storageClassName": storage_class})
    target = {"storageClassName": storage_class, "resources": {}}
    await make(bench, DATA_VOLUMES, data_volume("copy", of_claim("image"), storage=target))
    await bench.clock.advance(seconds - 1)
    under_way = (await look(bench, "copy"))[0]
    await bench.clock.advance(2)

    assert under_way == phase
    assert await look(bench, "copy") == ("Succeeded", "100.0%")
    cloned = await bench.get(f"{DATA_VOLUMES}/copy")
    assert cloned["metadata"]["annotations"][CLONE_TYPE] == kind
    sizes = {name: (await bench.get(f"{CLAIMS}/{name}"))["status"]["capacity"] for name in ("image", "copy")}
    assert sizes["image"] == sizes["copy"]


async def test_a_clone_between_drivers_copies_the_data(bench):
    await load(bench)
    local = {"storageClassName": "no-snapshots", "resources": {}}
    await make(bench, DATA_VOLUMES, data_volume("copy", of_claim("image"), storage=local))
    await bench.clock.advance(15)

    assert await look(bench, "copy") == ("CloneInProgress", "50.00%")


async def test_a_clone_of_a_snapshot(bench):
    await load(bench)
    snapshot = {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": "cut"},
        "spec": {"source": {"persistentVolumeClaimName": "image"}},
    }
    await make(bench, VOLUME_SNAPSHOTS, snapshot)
    await make(bench, DATA_VOLUMES, data_volume("early", of_snapshot("cut")))
    await bench.clock.advance(1)
    waiting = await look(bench, "early")
    await bench.clock.advance(4)
    restoring = (await look(bench, "early"))[0]
    await bench.clock.advance(3)

    stored = await bench.get(f"{VOLUME_SNAPSHOTS}/cut")
    assert stored["spec"]["volumeSnapshotClassName"] == "devcluster-snapshots"
    assert (waiting, restoring) == (("CloneScheduled", "N/A"), "CloneFromSnapshotSourceInProgress")
    assert await look(bench, "early") == ("Succeeded", "100.0%")


async def test_a_clone_waits_for_its_source_to_be_there_full_and_unused(bench):
    await make(bench, DATA_VOLUMES, data_volume("copy", of_claim("image")))
    await bench.clock.advance(1)
    absent = await bench.get(f"{DATA_VOLUMES}/copy")
    await make(bench, DATA_VOLUMES, data_volume("image"))
    await bench.clock.advance(30)
    waiting = await look(bench, "copy")
    await bench.clock.advance(20)

    assert condition(absent, "Bound") == ("False", "CloneWithoutSource", "The source pvc image doesn't exist")
    assert waiting == ("CloneScheduled", "N/A")
    assert await look(bench, "copy") == ("Succeeded", "100.0%")
    await bench.boot(disk_machine("vm", on_data_volume("image")))
    await make(bench, DATA_VOLUMES, data_volume("again", of_claim("image")))
    await bench.clock.advance(30)
    assert await look(bench, "again") == ("CloneScheduled", "N/A")
    await remove(bench, f"{MACHINES}/vm")
    await bench.clock.advance(30)
    assert await look(bench, "again") == ("Succeeded", "100.0%")


async def test_a_clone_that_is_too_small_is_refused(bench):
    await load(bench)
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
    assert await look(bench, "copy") == ("Succeeded", "100.0%")


async def test_a_guest_of_a_clone_boots_warm_only_where_the_original_was_booted(bench):
    await load(bench, "fresh")
    await load(bench, "used")
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
    await load(bench)
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


async def test_a_claim_that_was_there_is_refused_or_adopted_where_it_may_be(bench):
    await make(bench, CLAIMS, claim("kept"), claim("taken"))
    status, answer = await bench.call("POST", DATA_VOLUMES, data_volume("kept"))
    adopting = data_volume("taken")
    adopting["metadata"]["annotations"] = {"cdi.kubevirt.io/allowClaimAdoption": "true"}
    await make(bench, DATA_VOLUMES, adopting)
    await bench.clock.advance(2)

    assert status == 422
    assert answer["message"].endswith("denied the request: Destination PVC default/kept already exists")
    assert await look(bench, "taken") == ("Succeeded", "100.0%")
    assert (await bench.get(f"{CLAIMS}/taken"))["metadata"]["ownerReferences"][0]["kind"] == "DataVolume"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"source": None}, "Data volume should have either Source or SourceRef, or be externally populated"),
        ({"storage": None}, "Missing Data volume PVC"),
        ({"storage": {}}, "Storage size is missing"),
        ({"storage": {"resources": {"requests": {"storage": "0"}}}}, "Storage size can't be equal or less than zero"),
        ({"storage": {"resources": {"requests": {"storage": "1k"}}}}, "Storage size should be at least 1MiB"),
        ({"source": {"blank": {}, "http": {"url": "http://x/y"}}}, "Multiple Data volume sources"),
        (
            {"storage": None, "pvc": {"resources": {"requests": {"storage": "1Gi"}}}},
            "Required value: at least 1 access mode is required",
        ),
    ],
)
async def test_what_cdi_refuses_in_a_data_volume(bench, change, told):
    volume = data_volume("image")
    volume["spec"] = {key: value for key, value in {**volume["spec"], **change}.items() if value is not None}

    status, answer = await bench.call("POST", DATA_VOLUMES, volume)

    assert status == 422
    expected = f'admission webhook "datavolume-validate.cdi.kubevirt.io" denied the request: {told}'
    assert answer["message"] == expected


async def test_a_data_volume_keeps_its_spec(bench):
    await make(bench, DATA_VOLUMES, data_volume("image"))
    merge = {"Content-Type": "application/merge-patch+json"}
    change = {"spec": {"source": {"http": {"url": "https://images.example.com/other.qcow2"}}}}

    status, answer = await bench.call("PATCH", f"{DATA_VOLUMES}/image", change, headers=merge)
    labelled, _ = await bench.call(
        "PATCH", f"{DATA_VOLUMES}/image", {"metadata": {"labels": {"a": "b"}}}, headers=merge
    )

    assert (status, labelled) == (422, 200)
    assert answer["message"].endswith("denied the request: Cannot update DataVolume Spec")


async def test_import_fails_is_tried_again_and_ends_with_its_count(bench):
    await bench.order(kind="import-fails", name="image", count=2, settings={"percent": 60})
    await make(bench, DATA_VOLUMES, data_volume("image"))
    await bench.clock.advance(30)
    failed = await bench.get(f"{DATA_VOLUMES}/image")
    await bench.clock.advance(10)
    again = await bench.get(f"{DATA_VOLUMES}/image")
    await bench.clock.advance(24 + 20 + 45)

    assert (failed["status"]["phase"], failed["status"]["progress"]) == ("ImportInProgress", "60.00%")
    assert condition(failed, "Running") == ("False", "Error", "Unable to process data: unexpected EOF")
    assert "restartCount" not in failed["status"]
    assert condition(again, "Running") == ("True", "Pod is running", "")
    assert again["status"]["restartCount"] == 1
    assert await look(bench, "image") == ("Succeeded", "100.0%")
    assert (await bench.get(f"{DATA_VOLUMES}/image"))["status"]["restartCount"] == 2


async def test_an_image_that_cannot_be_pulled_names_another_reason(bench):
    await bench.order(kind="import-fails", settings={"percent": 10})
    await make(bench, DATA_VOLUMES, data_volume("image", {"registry": SOURCES["registry"]}))
    await bench.create(disk_machine("vm", on_data_volume("image")))
    await bench.clock.advance(10)

    told = condition(await bench.get(f"{DATA_VOLUMES}/image"), "Running")
    assert told == ("False", "ImagePullFailed", "Unable to process data: failed to pull image: unexpected EOF")
    assert (await bench.get(f"{MACHINES}/vm"))["status"]["printableStatus"] == "DataVolumeError"


async def test_a_fatal_import_fails_for_good_and_a_new_one_may_succeed(bench):
    settings = {"percent": 20, "fatal": True, "message": "checksum mismatch"}
    await bench.order(kind="import-fails", count=1, settings=settings)
    volume = await make(bench, DATA_VOLUMES, data_volume("image"))
    await bench.clock.advance(300)
    told = await bench.get(f"{DATA_VOLUMES}/image")
    await remove(bench, f"{DATA_VOLUMES}/image", preconditions={"uid": volume["metadata"]["uid"]})
    await bench.clock.advance(1)
    gone = await exists(bench, f"{CLAIMS}/image")

    assert told["status"]["phase"] == "Failed"
    assert condition(told, "Running") == ("False", "ChecksumError", "checksum mismatch")
    assert not gone
    await load(bench)


async def test_import_stalls_until_it_is_lifted(bench):
    fault = await bench.order(kind="import-stalls", settings={"percent": 30})
    await make(bench, DATA_VOLUMES, data_volume("image"))
    await bench.clock.advance(300)
    stalled = await bench.get(f"{DATA_VOLUMES}/image")

    await bench.call("DELETE", f"/devcluster/v1/faults/{fault}")
    await bench.clock.advance(45)

    assert (stalled["status"]["phase"], stalled["status"]["progress"]) == ("ImportInProgress", "30.00%")
    assert condition(stalled, "Running") == ("True", "Pod is running", "")
    assert await look(bench, "image") == ("Succeeded", "100.0%")


async def test_clone_hangs_and_claim_never_binds_until_they_are_lifted(bench):
    await load(bench)
    faults = [
        await bench.order(kind="clone-hangs", name="copy"),
        await bench.order(kind="claim-never-binds", name="stuck"),
    ]
    await make(bench, DATA_VOLUMES, data_volume("copy", of_claim("image")), data_volume("stuck"))
    await make(bench, CLAIMS, claim("free"))
    await bench.clock.advance(300)
    assert await look(bench, "copy") == ("CSICloneInProgress", "N/A")
    assert await look(bench, "stuck") == ("Pending", "N/A")
    assert (await bench.get(f"{CLAIMS}/free"))["status"]["phase"] == "Bound"

    for fault in faults:
        await bench.call("DELETE", f"/devcluster/v1/faults/{fault}")
    await bench.clock.advance(45)

    assert await look(bench, "copy") == await look(bench, "stuck") == ("Succeeded", "100.0%")


@pytest.mark.parametrize("policy", ["Background", "Foreground"])
async def test_a_deleted_import_takes_its_claim_along_unless_it_is_in_use(bench, policy):
    await load(bench)
    await bench.boot(disk_machine("vm", on_data_volume("image")))

    await remove(bench, f"{DATA_VOLUMES}/image", propagationPolicy=policy)
    await bench.clock.advance(10)
    kept = await bench.get(f"{CLAIMS}/image")
    await remove(bench, f"{MACHINES}/vm")
    await bench.clock.advance(30)

    assert kept["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
    assert "deletionTimestamp" in kept["metadata"]
    assert not await exists(bench, f"{CLAIMS}/image")
    assert not await exists(bench, f"{DATA_VOLUMES}/image")


async def test_a_snapshot_of_a_half_filled_disk_waits(bench):
    await make(bench, DATA_VOLUMES, data_volume("image"))
    await bench.create(disk_machine("vm", on_data_volume("image"), strategy="Halted"))
    await make(bench, SNAPSHOTS, vm_snapshot("s1", "vm"))
    await bench.clock.advance(10)
    waiting = condition(await bench.get(f"{SNAPSHOTS}/s1"), "Progressing")[1]
    await bench.clock.advance(45)

    assert waiting == "Source not locked source default/vm volume not populated: image"
    assert (await bench.get(f"{SNAPSHOTS}/s1"))["status"]["phase"] == "Succeeded"


async def test_a_vm_on_an_image_is_not_held_up_by_storage(bench):
    await bench.order(kind="claim-never-binds")
    await bench.boot(machine("vm"))

    assert await bench.status("vm") == ("Running", "")


@pytest.mark.parametrize("percent", [0, 30, 70])
async def test_an_import_deleted_on_its_way_leaves_nothing(bench, percent):
    await bench.order(kind="import-fails", settings={"percent": percent})
    await make(bench, DATA_VOLUMES, data_volume("image"))
    await bench.clock.advance(29)

    await remove(bench, f"{DATA_VOLUMES}/image")
    await bench.clock.advance(100)

    assert (await bench.get(DATA_VOLUMES))["items"] == (await bench.get(CLAIMS))["items"] == []
    assert (await bench.get("/api/v1/persistentvolumes"))["items"] == []


async def test_an_upload_waits_for_its_data(bench):
    await make(bench, DATA_VOLUMES, data_volume("image", {"upload": {}}))
    await bench.clock.advance(300)

    assert await look(bench, "image") == ("UploadReady", "N/A")


async def test_cdi_prefers_the_class_that_is_marked_for_vms(bench):
    marked = {"metadata": {"annotations": {"storageclass.kubevirt.io/is-default-virt-class": "true"}}}
    merge = {"Content-Type": "application/merge-patch+json"}
    assert (await bench.call("PATCH", f"{CLASSES}/fast-ssd", marked, headers=merge))[0] == 200
    await make(bench, DATA_VOLUMES, data_volume("image"))
    await make(bench, CLAIMS, claim("plain", storage_class=""))
    await bench.clock.advance(1)

    classes = {
        item["metadata"]["name"]: item["spec"]["storageClassName"] for item in (await bench.get(CLAIMS))["items"]
    }
    assert classes == {"image": "fast-ssd", "plain": "standard"}
