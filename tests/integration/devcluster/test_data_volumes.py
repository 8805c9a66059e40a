"""Images imported into claims, and what goes wrong with that."""

import pytest

from tests.support.devcluster_bench import MACHINES, machine
from tests.support.devcluster_disks import (
    CLAIMS,
    DATA_VOLUMES,
    SNAPSHOTS,
    claim,
    condition,
    data_volume,
    disk_machine,
    exists,
    import_image,
    make,
    of_claim,
    on_data_volume,
    progress_of,
    remove,
    vm_snapshot,
)

SOURCES = {
    "http": {"url": "https://images.example.com/fedora.qcow2"},
    "registry": {"url": "docker://quay.io/containerdisks/fedora:42"},
    "s3": {"url": "s3://bucket/fedora.qcow2"},
    "gcs": {"url": "gs://bucket/fedora.qcow2"},
}


async def pod_phase(bench, name):
    """Of the importer, as its claim tells it."""
    return (await bench.get(f"{CLAIMS}/{name}"))["metadata"]["annotations"]["cdi.kubevirt.io/storage.pod.phase"]


@pytest.mark.parametrize("kind", SOURCES)
async def test_an_import_tells_phase_progress_and_conditions(bench, kind):
    await make(bench, DATA_VOLUMES, data_volume("image", {kind: SOURCES[kind]}))
    await bench.clock.advance(0.1)
    pending = await bench.get(f"{DATA_VOLUMES}/image")
    await bench.clock.advance(1)
    scheduled = await progress_of(bench, "image")
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

    assert await progress_of(bench, "scratch") == ("Succeeded", "100.0%")


async def test_a_claim_that_was_there_is_refused_or_adopted_where_it_may_be(bench):
    await make(bench, CLAIMS, claim("kept"), claim("taken"))
    status, answer = await bench.call("POST", DATA_VOLUMES, data_volume("kept"))
    adopting = data_volume("taken")
    adopting["metadata"]["annotations"] = {"cdi.kubevirt.io/allowClaimAdoption": "true"}
    await make(bench, DATA_VOLUMES, adopting)
    await bench.clock.advance(2)

    assert status == 422
    assert answer["message"].endswith("denied the request: Destination PVC default/kept already exists")
    assert await progress_of(bench, "taken") == ("Succeeded", "100.0%")
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
    assert await progress_of(bench, "image") == ("Succeeded", "100.0%")
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
    await import_image(bench)


async def test_import_stalls_until_it_is_lifted(bench):
    fault = await bench.order(kind="import-stalls", settings={"percent": 30})
    await make(bench, DATA_VOLUMES, data_volume("image"))
    await bench.clock.advance(300)
    stalled = await bench.get(f"{DATA_VOLUMES}/image")

    await bench.call("DELETE", f"/devcluster/v1/faults/{fault}")
    await bench.clock.advance(45)

    assert (stalled["status"]["phase"], stalled["status"]["progress"]) == ("ImportInProgress", "30.00%")
    assert condition(stalled, "Running") == ("True", "Pod is running", "")
    assert await progress_of(bench, "image") == ("Succeeded", "100.0%")


async def test_clone_hangs_and_claim_never_binds_until_they_are_lifted(bench):
    await import_image(bench)
    faults = [
        await bench.order(kind="clone-hangs", name="copy"),
        await bench.order(kind="claim-never-binds", name="stuck"),
    ]
    await make(bench, DATA_VOLUMES, data_volume("copy", of_claim("image")), data_volume("stuck"))
    await make(bench, CLAIMS, claim("free"))
    await bench.clock.advance(300)
    assert await progress_of(bench, "copy") == ("CSICloneInProgress", "N/A")
    assert await progress_of(bench, "stuck") == ("Pending", "N/A")
    assert (await bench.get(f"{CLAIMS}/free"))["status"]["phase"] == "Bound"

    for fault in faults:
        await bench.call("DELETE", f"/devcluster/v1/faults/{fault}")
    await bench.clock.advance(45)

    assert await progress_of(bench, "copy") == await progress_of(bench, "stuck") == ("Succeeded", "100.0%")


@pytest.mark.parametrize("policy", ["Background", "Foreground"])
async def test_a_deleted_import_takes_its_claim_along_unless_it_is_in_use(bench, policy):
    await import_image(bench)
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

    assert await progress_of(bench, "image") == ("UploadReady", "N/A")
