"""A dev cluster whose claims, clones and snapshots have real data."""

import re

import aiohttp
import pytest

from app.devcluster import DevCluster, DevClusterConfig, Durations
from app.devcluster.apiserver.registry import PERSISTENT_VOLUMES, VOLUME_SNAPSHOT_CONTENTS
from app.devcluster.guests.disks.errors import NoSpace
from app.devcluster.guests.file_storage import FileStorage
from app.devcluster.guests.images.sources import fetch
from tests.support.devcluster_bench import MACHINES, Bench, until
from tests.support.devcluster_disks import (
    CLAIMS,
    CORE,
    DATA_VOLUMES,
    KUBEVIRT_SNAPSHOTS,
    SNAPSHOTS,
    VOLUME_SNAPSHOTS,
    claim,
    condition,
    data_volume,
    disk_machine,
    exists,
    make,
    of_claim,
    of_snapshot,
    on_claim,
    progress_of,
    remove,
    vm_snapshot,
)
from tests.support.disk_images import BLOCK, files, needs_qemu_img, read, write
from tests.support.image_server import ImageServer

pytestmark = needs_qemu_img

SIZE = "1Mi"
BLOCKS = 16
BOUND = {"resources": {"requests": {"storage": SIZE}}}


class NoClock:
    """Real time needs nobody who moves it."""

    async def settle(self):
        return


def fetcher(cache):
    async def bring(reference, /, *, on_progress, checksum):
        def tell(done, total):
            on_progress(100 * done / total if total else None)

        return await fetch(reference, on_progress=tell, checksum=checksum or "", cache=cache)

    return bring


async def no_guest(_disk, _overlay):
    return False


@pytest.fixture
async def start(tmp_path):
    """Starts a cluster with its disks in the same folder each time; the one before must have been stopped."""
    running = []

    async def begin(wanted=(), **options):
        config = DevClusterConfig(durations=Durations().scaled(0.002), jitter_share=0.0, **options)
        storage = FileStorage(tmp_path / "disks", fetcher(tmp_path / "cache"), no_guest)
        await storage.open(wanted)
        cluster = DevCluster(config, storage=storage)
        await cluster.start()
        session = aiohttp.ClientSession()
        running.append((cluster, storage, session))
        return Bench(cluster, NoClock(), session)

    async def end():
        cluster, storage, session = running.pop()
        await session.close()
        await cluster.stop()
        await storage.close()

    begin.end = end
    yield begin
    while running:
        await end()


@pytest.fixture
async def bench(start):
    return await start()


@pytest.fixture
async def images():
    async with ImageServer() as server:
        server.files["image.raw"] = bytes([1]) * BLOCK + bytes([2]) * BLOCK
        yield server


def image(server, name="image.raw"):
    return {"http": {"url": server.url(name)}}


def volume(name, source):
    return data_volume(name, source, storage=BOUND)


async def fill(bench, name, source):
    """A DataVolume that is complete."""
    await make(bench, DATA_VOLUMES, volume(name, source))
    await until(lambda: succeeded(bench, name))


async def succeeded(bench, name):
    return await progress_of(bench, name) == ("Succeeded", "100.0%")


async def bound(bench, name):
    return (await bench.get(f"{CLAIMS}/{name}")).get("status", {}).get("phase") == "Bound"


async def running(bench, name):
    """Status, reason and message of the condition Running of a DataVolume."""
    volume = await bench.get(f"{DATA_VOLUMES}/{name}")
    return (volume.get("status") and condition(volume, "Running")) or ("", "", "")


async def disk(bench, name):
    """The file of a claim."""
    uid = (await bench.get(f"{CLAIMS}/{name}"))["metadata"]["uid"]
    return bench.cluster.storage.path_of(f"pvc-{uid}")


async def contents(bench, tmp_path, name):
    """The first three blocks of the disk of a claim."""
    found = read(await disk(bench, name), tmp_path)
    assert len(found) == BLOCKS
    return found[:3]


async def snapshot(bench, name, source):
    spec = {"source": {"persistentVolumeClaimName": source}}
    made = {"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name}}
    await make(bench, VOLUME_SNAPSHOTS, {**made, "spec": spec})
    await until(lambda: is_ready(bench, f"{VOLUME_SNAPSHOTS}/{name}"))


async def is_ready(bench, path):
    return (await bench.get(path)).get("status", {}).get("readyToUse") is True


async def test_an_import_is_downloaded_converted_and_told_with_its_true_progress(bench, images, tmp_path):
    told = []
    bench.cluster.store.subscribe(lambda change: told.append(change.new.obj) if change.new else None)

    await fill(bench, "image", image(images))

    assert await contents(bench, tmp_path, "image") == [1, 2, 0]
    progress = [each["status"]["progress"] for each in told if each["kind"] == "DataVolume" and each.get("status")]
    assert progress[0] == "N/A"
    percents = [float(each.removesuffix("%")) for each in progress if each != "N/A"]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    assert condition(await bench.get(f"{DATA_VOLUMES}/image"), "Ready")[0] == "True"


async def test_clones_and_restores_have_the_data_of_their_source_and_then_their_own(bench, images, tmp_path):
    await fill(bench, "image", image(images))
    await fill(bench, "clone", of_claim("image"))
    write(await disk(bench, "clone"), 0, 9)
    await snapshot(bench, "kept", "clone")
    write(await disk(bench, "clone"), 1, 8)

    await fill(bench, "restored", of_snapshot("kept"))
    await make(bench, CLAIMS, claim("plain", snapshot="kept", size=SIZE), claim("copy", source="clone", size=SIZE))
    await until(lambda: bound(bench, "plain"))
    await until(lambda: bound(bench, "copy"))

    assert await contents(bench, tmp_path, "image") == [1, 2, 0]
    assert await contents(bench, tmp_path, "clone") == await contents(bench, tmp_path, "copy") == [9, 8, 0]
    assert await contents(bench, tmp_path, "restored") == await contents(bench, tmp_path, "plain") == [9, 2, 0]


async def test_a_snapshot_of_a_vm_is_restored_to_disks_with_its_data(bench, images, tmp_path):
    await fill(bench, "root", image(images))
    await bench.create(disk_machine("vm", on_claim("root"), strategy="Halted"))
    await make(bench, SNAPSHOTS, vm_snapshot("kept", "vm"))
    await until(lambda: is_ready(bench, f"{SNAPSHOTS}/kept"))
    write(await disk(bench, "root"), 0, 7)

    target = {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "again"}
    restore = {"apiVersion": "snapshot.kubevirt.io/v1beta1", "kind": "VirtualMachineRestore"}
    spec = {"target": target, "virtualMachineSnapshotName": "kept"}
    await make(
        bench,
        f"{KUBEVIRT_SNAPSHOTS}/virtualmachinerestores",
        {**restore, "metadata": {"name": "restore"}, "spec": spec},
    )
    await until(lambda: exists(bench, f"{MACHINES}/again"))

    volumes = (await bench.get(f"{MACHINES}/again"))["spec"]["template"]["spec"]["volumes"]
    restored = volumes[0]["persistentVolumeClaim"]["claimName"]
    assert await contents(bench, tmp_path, restored) == [1, 2, 0]
    assert await contents(bench, tmp_path, "root") == [7, 2, 0]


async def test_files_go_when_nothing_in_the_cluster_needs_them(bench, images, tmp_path):
    folder = tmp_path / "disks"
    await fill(bench, "image", image(images))
    write(await disk(bench, "image"), 0, 5)
    await snapshot(bench, "kept", "image")
    await fill(bench, "restored", of_snapshot("kept"))

    await remove(bench, f"{DATA_VOLUMES}/image")
    await until(lambda: len(files(folder)) == 2)  # the layer, and what was restored from it
    await remove(bench, f"{VOLUME_SNAPSHOTS}/kept")
    await fill(bench, "other", {"blank": {}})
    assert await contents(bench, tmp_path, "restored") == [5, 2, 0]
    await remove(bench, f"{DATA_VOLUMES}/restored")
    await until(lambda: len(files(folder)) == 1)
    await bench.call("POST", "/devcluster/v1/reset")
    await until(lambda: files(folder) == set())


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("missing", None, "404"),
        ("page.qcow2", b"<html>Please sign in</html>", "Unexpected content type .text/html"),
        ("large.raw", bytes(2 * 1024 * 1024), "virtual image size 2097152 is larger than the reported available"),
    ],
)
async def test_an_import_that_fails_says_why_and_is_tried_again(bench, images, name, body, message):
    if body is not None:
        images.files[name] = body
    await make(bench, DATA_VOLUMES, volume("bad", image(images, name)))

    async def restarted():
        return (await bench.get(f"{DATA_VOLUMES}/bad")).get("status", {}).get("restartCount", 0) >= 2

    async def told():
        found = await running(bench, "bad")
        return found[:2] == ("False", "Error") and re.search(message, found[2])

    await until(restarted)
    await until(told)
    failed = await bench.get(f"{DATA_VOLUMES}/bad")
    assert failed["status"]["phase"] == "ImportInProgress"
    said = [item for item in (await bench.get(f"{CORE}/events"))["items"] if item["reason"] == "Error"]
    assert {item["involvedObject"]["name"] for item in said} == {"bad"}
    assert re.search(message, said[0]["message"])

    images.files[name] = bytes([3]) * BLOCK
    await until(lambda: succeeded(bench, "bad"))


async def test_a_failed_import_tells_the_reason_in_the_words_of_cdi(bench, images):
    images.files["large.raw"] = bytes(2 * 1024 * 1024)
    await make(bench, DATA_VOLUMES, volume("bad", image(images, "large.raw")))

    told = []

    async def failed():
        told.append((await running(bench, "bad"))[2])
        return told[-1]

    await until(failed)
    assert told[-1] == (
        "Unable to process data: Unable to convert source data to target format: virtual image size 2097152 is larger "
        "than the reported available storage 1048576. A larger PVC is required"
    )


@pytest.mark.parametrize("source", [{"s3": {"url": "https://s3.example.com/image"}}, {"upload": {}}])
async def test_a_source_that_cannot_be_read_fails_for_good_and_says_what_can(bench, source):
    await make(bench, DATA_VOLUMES, volume("bad", source))

    async def failed():
        return (await progress_of(bench, "bad"))[0] == "Failed"

    await until(failed)
    told = condition(await bench.get(f"{DATA_VOLUMES}/bad"), "Running")
    kind = next(iter(source))
    assert told[:2] == ("False", "Error")
    assert told[2] == (
        "Unable to process data: this dev cluster keeps real disks and cannot fill one from "
        f"{kind}: use one of blank, http, pvc, registry, snapshot"
    )


async def test_an_ordered_fault_strikes_a_real_import(bench, images, tmp_path):
    await bench.order(kind="import-fails", count=1, settings={"percent": 10})
    stalls = await bench.order(kind="import-stalls", settings={"percent": 30})
    await make(bench, DATA_VOLUMES, volume("image", image(images)))

    async def stalled():
        return await progress_of(bench, "image") == ("ImportInProgress", "30.00%")

    await until(stalled)
    assert (await bench.get(f"{DATA_VOLUMES}/image"))["status"]["restartCount"] == 1
    await bench.call("DELETE", f"/devcluster/v1/faults/{stalls}")
    await until(lambda: succeeded(bench, "image"))

    assert await contents(bench, tmp_path, "image") == [1, 2, 0]


async def test_the_disks_that_the_saved_state_knows_survive_and_no_others(start, images, tmp_path):
    bench = await start(state=tmp_path / "state.db")
    await fill(bench, "image", image(images))
    await snapshot(bench, "kept", "image")
    write(await disk(bench, "image"), 0, 6)
    store = bench.cluster.store
    wanted = [each.key[1] for kind in (PERSISTENT_VOLUMES, VOLUME_SNAPSHOT_CONTENTS) for each in store.rows(kind)]
    left = files(tmp_path / "disks")
    await fill(bench, "forgotten", {"blank": {}})
    await start.end()
    (tmp_path / "disks" / "disk-000123.qcow2").write_bytes(b"half")

    bench = await start(wanted, state=tmp_path / "state.db")
    assert files(tmp_path / "disks") == left
    assert await contents(bench, tmp_path, "image") == [6, 2, 0]
    await fill(bench, "restored", of_snapshot("kept"))
    assert await contents(bench, tmp_path, "restored") == [1, 2, 0]


async def test_a_claim_whose_disk_cannot_be_made_says_why_and_is_tried_again(bench, images, monkeypatch):
    disks = bench.cluster.storage.disks
    make_blank, tried = disks.blank, []

    async def full(name, size):
        tried.append(name)
        if len(tried) == 1:
            raise NoSpace("No space left on device")
        await make_blank(name, size)

    monkeypatch.setattr(disks, "blank", full)
    await make(bench, CLAIMS, claim("plain", size=SIZE))
    await until(lambda: bound(bench, "plain"))

    (said,) = (await bench.get(f"{CORE}/events"))["items"]
    assert (said["reason"], said["type"]) == ("ProvisioningFailed", "Warning")
    assert said["message"] == (
        'failed to provision volume with StorageClass "standard": rpc error: code = Internal desc = No space left on device'
    )
