"""Images that are kept up to date by a schedule."""

import pytest

from tests.support.devcluster_disks import (
    CLAIMS,
    CONTAINER_DISK,
    CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    PROFILES,
    VOLUME_SNAPSHOTS,
    claim,
    condition,
    cron,
    data_volume,
    exists,
    make,
    remove,
)

HOUR = 3600


def digest(letter):
    return f"sha256:{letter * 64}"


async def change(bench, letter, **more):
    status, answer = await bench.call(
        "POST", "/devcluster/v1/images", {"url": CONTAINER_DISK, "digest": digest(letter), **more}
    )
    assert status == 200, answer


async def names(bench, path):
    return [item["metadata"]["name"] for item in (await bench.get(path))["items"]]


def told(obj):
    return condition(obj, "Progressing")[1], condition(obj, "UpToDate")[:2]


async def test_the_first_import_is_at_once_and_fills_the_data_source(bench):
    await change(bench, "a")
    await make(bench, CRONS, cron())
    await bench.clock.advance(1)
    fresh = await bench.get(f"{CRONS}/fedora")
    await bench.clock.advance(2)
    scheduled = await bench.get(f"{CRONS}/fedora")
    await bench.clock.advance(20)
    importing = await bench.get(f"{CRONS}/fedora")
    source = await bench.get(f"{DATA_SOURCES}/image")
    await bench.clock.advance(25)
    done = await bench.get(f"{CRONS}/fedora")

    assert told(fresh) == ("NoImport", ("False", "NoDigest"))
    assert told(scheduled)[1] == ("False", "ImportProgressing")
    assert told(importing) == ("ImportProgressing", ("False", "ImportProgressing"))
    assert condition(source, "Ready") == ("False", "NoSource", "No source PVC set")
    assert told(done) == ("NoImport", ("True", "UpToDate"))
    name = "image-aaaaaaaaaaaa"
    assert done["status"]["currentImports"] == [{"DataVolumeName": name, "Digest": digest("a")}]
    assert done["status"]["lastImportedPVC"] == {"name": name, "namespace": "default"}
    assert {"lastImportTimestamp", "lastExecutionTimestamp"} <= set(done["status"])
    assert done["status"]["sourceFormat"] == "pvc"
    assert done["metadata"]["annotations"]["cdi.kubevirt.io/storage.import.sourceDesiredDigest"] == digest("a")
    volume = await bench.get(f"{DATA_VOLUMES}/{name}")
    assert volume["spec"]["source"]["registry"]["url"] == f"docker://quay.io/containerdisks/fedora@{digest('a')}"
    assert volume["metadata"]["labels"]["cdi.kubevirt.io/dataImportCron"] == "fedora"
    source = await bench.get(f"{DATA_SOURCES}/image")
    assert source["spec"]["source"]["pvc"]["name"] == name
    assert condition(source, "Ready") == ("True", "Ready", "DataSource is ready to be consumed")


async def test_a_new_image_is_imported_by_the_schedule_and_used_from_then_on(bench):
    await make(bench, CRONS, cron())
    await bench.clock.advance(60)
    first = (await names(bench, DATA_VOLUMES))[0]
    await change(bench, "b")
    await bench.clock.advance(600)
    unnoticed = await names(bench, DATA_VOLUMES)
    await bench.clock.advance(HOUR)
    clone = data_volume("copy", reference={"kind": "DataSource", "name": "image"})
    await make(bench, DATA_VOLUMES, clone)
    await bench.clock.advance(20)

    assert unnoticed == [first]
    assert (await bench.get(f"{DATA_SOURCES}/image"))["spec"]["source"]["pvc"]["name"] == "image-bbbbbbbbbbbb"
    assert told(await bench.get(f"{CRONS}/fedora")) == ("NoImport", ("True", "UpToDate"))
    assert await names(bench, DATA_VOLUMES) == ["copy", *sorted([first, "image-bbbbbbbbbbbb"])]
    assert (await bench.get(f"{DATA_VOLUMES}/copy"))["status"]["phase"] == "Succeeded"


async def test_an_order_makes_it_look_at_once(bench):
    await make(bench, CRONS, cron())
    await bench.clock.advance(60)

    await change(bench, "b", look=True)
    await bench.clock.advance(1)
    outdated = await bench.get(f"{CRONS}/fedora")
    await bench.clock.advance(45)

    assert told(outdated)[1] == ("False", "ImportProgressing")
    assert outdated["status"]["lastImportedPVC"]["name"] != "image-bbbbbbbbbbbb"
    assert (await bench.get(f"{CRONS}/fedora"))["status"]["lastImportedPVC"]["name"] == "image-bbbbbbbbbbbb"


@pytest.mark.parametrize(
    ("terms", "kept"),
    [({"importsToKeep": 2}, "de"), ({}, "cde"), ({"importsToKeep": 2, "garbageCollect": "Never"}, "abcde")],
)
async def test_it_keeps_the_last_imports(bench, terms, kept):
    await change(bench, "a")
    await make(bench, CRONS, cron(**terms))
    await bench.clock.advance(60)
    for letter in "bcde":
        await change(bench, letter, look=True)
        await bench.clock.advance(60)

    expected = [f"image-{letter * 12}" for letter in kept]
    assert await names(bench, DATA_VOLUMES) == await names(bench, CLAIMS) == expected


async def keep_snapshots(bench):
    """The default class keeps what crons import as VolumeSnapshots, as some drivers do."""
    merge = {"Content-Type": "application/merge-patch+json"}
    change = {"spec": {"dataImportCronSourceFormat": "snapshot"}}
    assert (await bench.call("PATCH", f"{PROFILES}/standard", change, headers=merge))[0] == 200


async def test_imports_may_be_kept_as_snapshots(bench):
    await keep_snapshots(bench)
    await change(bench, "a")
    await make(bench, CRONS, cron(importsToKeep=1))
    await bench.clock.advance(43)
    cutting = await bench.get(f"{CRONS}/fedora")
    source = await bench.get(f"{DATA_SOURCES}/image")
    await bench.clock.advance(5)
    first = await bench.get(f"{CRONS}/fedora")
    kept = await names(bench, VOLUME_SNAPSHOTS), await names(bench, DATA_VOLUMES), await names(bench, CLAIMS)
    clone = data_volume("copy", reference={"kind": "DataSource", "name": "image"}, storage={"resources": {}})
    await make(bench, DATA_VOLUMES, clone)
    await change(bench, "b", look=True)
    await bench.clock.advance(60)

    assert condition(cutting, "UpToDate") == (
        "False",
        "ImportProgressing",
        "Snapshot of imported data is progressing",
    )
    assert condition(source, "Ready") == ("False", "SnapshotNotReady", "Snapshot phase is not ready")
    assert kept == (["image-aaaaaaaaaaaa"], [], [])
    assert told(first) == ("NoImport", ("True", "UpToDate"))
    assert first["status"]["sourceFormat"] == "snapshot"
    assert (await bench.get(f"{DATA_VOLUMES}/copy"))["status"]["phase"] == "Succeeded"
    assert await names(bench, VOLUME_SNAPSHOTS) == ["image-bbbbbbbbbbbb"]
    target = (await bench.get(f"{DATA_SOURCES}/image"))["spec"]["source"]
    assert target == {"snapshot": {"name": "image-bbbbbbbbbbbb", "namespace": "default"}}


async def test_deleting_it_takes_its_snapshots_too(bench):
    await keep_snapshots(bench)
    await make(bench, CRONS, cron(retentionPolicy="None"))
    await bench.clock.advance(60)
    assert len(await names(bench, VOLUME_SNAPSHOTS)) == 1

    await remove(bench, f"{CRONS}/fedora")
    await bench.clock.advance(5)

    assert await names(bench, VOLUME_SNAPSHOTS) == await names(bench, DATA_SOURCES) == []


async def test_an_image_that_comes_back_is_not_imported_again(bench):
    await change(bench, "a")
    await make(bench, CRONS, cron())
    await bench.clock.advance(60)
    for letter in "ba":
        await change(bench, letter, look=True)
        await bench.clock.advance(60)

    assert (await bench.get(f"{CRONS}/fedora"))["status"]["lastImportedPVC"]["name"] == "image-aaaaaaaaaaaa"
    assert await names(bench, DATA_VOLUMES) == ["image-aaaaaaaaaaaa", "image-bbbbbbbbbbbb"]


@pytest.mark.parametrize(("policy", "left"), [("None", False), ("All", True), (None, True)])
async def test_deleting_it_follows_its_retention_policy(bench, policy, left):
    stored = await make(bench, CRONS, cron(**({"retentionPolicy": policy} if policy else {})))
    await bench.clock.advance(60)

    status, _ = await bench.call("DELETE", f"{CRONS}/fedora", {"preconditions": {"uid": "another"}})
    assert status == 409
    await remove(bench, f"{CRONS}/fedora", preconditions={"uid": stored["metadata"]["uid"]})
    await bench.clock.advance(5)

    assert not await exists(bench, f"{CRONS}/fedora")
    for path in (DATA_SOURCES, DATA_VOLUMES, CLAIMS):
        assert bool(await names(bench, path)) is left


async def test_a_claim_as_the_source_is_cloned_anew_when_it_is_another(bench):
    await make(bench, CLAIMS, claim("golden"))
    await make(bench, CRONS, cron(source={"pvc": {"namespace": "default", "name": "golden"}}))
    await bench.clock.advance(20)
    first = (await bench.get(f"{CRONS}/fedora"))["status"]["lastImportedPVC"]["name"]
    await remove(bench, f"{CLAIMS}/golden")
    await bench.clock.advance(1)
    await make(bench, CLAIMS, claim("golden"))
    await bench.clock.advance(HOUR + 20)

    done = await bench.get(f"{CRONS}/fedora")
    assert done["status"]["lastImportedPVC"]["name"] != first
    assert "cdi.kubevirt.io/storage.import.nextCronTime" in done["metadata"]["annotations"]


async def test_without_a_schedule_it_never_looks(bench):
    await make(bench, CRONS, cron(schedule=""))
    await bench.clock.advance(2 * HOUR)

    assert told(await bench.get(f"{CRONS}/fedora")) == ("NoImport", ("False", "NoDigest"))


async def test_a_data_source_has_one_cron(bench):
    await make(bench, CRONS, cron("first"))
    await bench.clock.advance(60)
    await make(bench, CRONS, cron("second"))
    await bench.clock.advance(60)

    assert "status" not in await bench.get(f"{CRONS}/second")
    labels = (await bench.get(f"{DATA_SOURCES}/image"))["metadata"]["labels"]
    assert labels["cdi.kubevirt.io/dataImportCron"] == "first"


async def test_cron_import_fails_and_the_next_image_is_taken_instead(bench):
    await change(bench, "a")
    await bench.order(kind="cron-import-fails", name="fedora", settings={"percent": 50}, count=1)
    await make(bench, CRONS, cron())
    await bench.clock.advance(30)
    volume = await bench.get(f"{DATA_VOLUMES}/image-aaaaaaaaaaaa")
    failing = await bench.get(f"{CRONS}/fedora")
    await change(bench, "b", look=True)
    await bench.clock.advance(60)

    assert condition(volume, "Running")[1] == "ImagePullFailed"
    assert told(failing) == ("ImportProgressing", ("False", "ImportProgressing"))
    assert await names(bench, DATA_VOLUMES) == ["image-bbbbbbbbbbbb"]
    assert told(await bench.get(f"{CRONS}/fedora")) == ("NoImport", ("True", "UpToDate"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": {"spec": {"source": {"http": {"url": "http://x/y"}}, "storage": {}}}}, "Missing source"),
        ({"schedule": "every day"}, "Illegal cron schedule"),
        ({"importsToKeep": -1}, "Illegal ImportsToKeep value"),
        ({"garbageCollect": "Sometimes"}, "Illegal GarbageCollect value"),
        ({"managedDataSource": ""}, "Illegal ManagedDataSource value"),
        ({"managedDataSource": "x" * 64}, "Name cannot be longer than 63 characters"),
    ],
)
async def test_what_cdi_refuses_in_a_cron(bench, change, message):
    status, answer = await bench.call("POST", CRONS, cron(**change))

    assert status == 422
    denied = f'admission webhook "dataimportcron-validate.cdi.kubevirt.io" denied the request: {message}'
    assert answer["message"] == denied


async def test_the_spec_of_a_data_import_cron_cannot_be_changed(bench):
    await make(bench, CRONS, cron())
    merge = {"Content-Type": "application/merge-patch+json"}

    status, answer = await bench.call("PATCH", f"{CRONS}/fedora", {"spec": {"importsToKeep": 9}}, headers=merge)

    assert (status, answer["message"].rpartition(": ")[2]) == (422, "Cannot update DataImportCron Spec")


async def test_an_order_with_a_bad_digest_is_refused(bench):
    status, answer = await bench.call("POST", "/devcluster/v1/images", {"url": CONTAINER_DISK, "digest": "latest"})

    assert (status, answer["message"]) == (400, "'digest' must be sha256: and 64 hexadecimal digits")
