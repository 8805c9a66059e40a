"""What a claim leaves open comes from its storage class and its profile."""

from tests.support.devcluster_disks import (
    CLAIMS,
    DATA_VOLUMES,
    PROFILES,
    claim,
    condition,
    data_volume,
    disk_machine,
    exists,
    make,
    on_claim,
    on_data_volume,
    progress_of,
    remove,
)

CLASSES = "/apis/storage.k8s.io/v1/storageclasses"


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
    assert await progress_of(bench, "exact") == ("Pending", "N/A")
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
    assert await progress_of(bench, "exact") == await progress_of(bench, "open") == ("Succeeded", "100.0%")


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
    assert await progress_of(bench, "now") == ("Succeeded", "100.0%")
    assert await progress_of(bench, "later") == ("PendingPopulation", "N/A")

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
