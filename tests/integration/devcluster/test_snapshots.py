"""Snapshots of VMs, and VMs from snapshots."""

import pytest

from app.devcluster.kubevirt.state_volumes import state_volume_name
from tests.support.devcluster_bench import INSTANCES, MACHINES, SUBRESOURCES
from tests.support.devcluster_disks import (
    CLAIMS,
    CONTENTS,
    KUBEVIRT_SNAPSHOTS,
    SNAPSHOTS,
    VOLUME_SNAPSHOT_CONTENTS,
    VOLUME_SNAPSHOTS,
    VOLUMES,
    claim,
    condition,
    disk_machine,
    exists,
    make,
    on_claim,
    on_image,
    remove,
    vm_snapshot,
)


async def boot(bench, name="src", storage_class="standard"):
    """A VM that has booted from a claim of its own."""
    await make(bench, CLAIMS, claim(f"{name}-root", storage_class=storage_class))
    await bench.boot(disk_machine(name, on_claim("root", f"{name}-root"), on_image("scratch")))


async def stop(bench, name="src"):
    await bench.call("PUT", f"{SUBRESOURCES}/virtualmachines/{name}/stop", {})
    await bench.clock.advance(30)
    assert not await exists(bench, f"{INSTANCES}/{name}")


async def take(bench, name="s1", source="src", **spec):
    await make(bench, SNAPSHOTS, vm_snapshot(name, source, **spec))
    await bench.clock.advance(5)
    return await bench.get(f"{SNAPSHOTS}/{name}")


async def start_from(bench, snapshot, name, storage_class="standard", size="10Gi"):
    """A VM first, then its claim from the snapshot's volume, owned by the VM."""
    content = await bench.get(f"{CONTENTS}/{snapshot['status']['virtualMachineSnapshotContentName']}")
    volume = content["spec"]["volumeBackups"][0]["volumeSnapshotName"]
    vm = await make(bench, MACHINES, disk_machine(name, on_claim("root", f"{name}-root")))
    await bench.clock.advance(1)
    given = claim(f"{name}-root", owner=vm, snapshot=volume, storage_class=storage_class, size=size)
    await make(bench, CLAIMS, given)
    return vm


@pytest.mark.parametrize("running", [True, False])
async def test_a_snapshot_tells_its_volumes_and_contents(bench, running):
    await boot(bench)
    if not running:
        await stop(bench)

    await make(bench, SNAPSHOTS, vm_snapshot("s1", "src"))
    await bench.clock.advance(1)
    taking = await bench.get(f"{SNAPSHOTS}/s1")
    locked = await bench.get(f"{MACHINES}/src")
    await bench.clock.advance(4)
    taken = await bench.get(f"{SNAPSHOTS}/s1")

    assert taking["status"]["phase"] == "InProgress"
    assert condition(taking, "Progressing") == ("True", "Source locked and operation in progress", "")
    assert locked["status"]["snapshotInProgress"] == "s1"
    assert taken["status"]["phase"] == "Succeeded"
    assert taken["status"]["readyToUse"] is True
    assert taken["status"]["snapshotVolumes"] == {"includedVolumes": ["root"], "excludedVolumes": ["scratch"]}
    assert taken["status"].get("indications") == (["GuestAgent", "Online"] if running else None)
    content = await bench.get(f"{CONTENTS}/{taken['status']['virtualMachineSnapshotContentName']}")
    backup = content["spec"]["volumeBackups"][0]
    assert backup["persistentVolumeClaim"]["spec"]["storageClassName"] == "standard"
    volume = await bench.get(f"{VOLUME_SNAPSHOTS}/{backup['volumeSnapshotName']}")
    assert (volume["status"]["readyToUse"], volume["status"]["restoreSize"]) == (True, "10Gi")
    assert "snapshotInProgress" not in (await bench.get(f"{MACHINES}/src"))["status"]


async def test_a_vm_says_which_volumes_can_be_snapshotted_and_why_not(bench):
    await make(bench, CLAIMS, claim("good"), claim("plain", storage_class="no-snapshots"))
    volumes = [on_claim("good"), on_claim("plain"), on_claim("absent"), on_image("image")]
    volumes.append({"name": "seed", "cloudInitNoCloud": {"userData": "#cloud-config"}})
    await bench.create(disk_machine("vm", *volumes, strategy="Halted"))
    await bench.clock.advance(1)

    statuses = {item["name"]: item for item in (await bench.get(f"{MACHINES}/vm"))["status"]["volumeSnapshotStatuses"]}

    assert statuses["good"] == {"name": "good", "enabled": True}
    assert {name: item["reason"] for name, item in statuses.items() if not item["enabled"]} == {
        "plain": "No VolumeSnapshotClass: Volume snapshots are not configured for this StorageClass "
        "[no-snapshots] [plain]",
        "absent": "PVC not found",
        "image": "Snapshot is not supported for this volumeSource type [image]",
        "seed": "Snapshot is not supported for this volumeSource type [seed]",
    }


async def test_a_volume_without_a_snapshot_class_is_left_out_and_pointed_out(bench):
    await boot(bench, storage_class="no-snapshots")

    taken = await take(bench)

    assert taken["status"]["snapshotVolumes"] == {"excludedVolumes": ["root", "scratch"]}
    assert taken["status"]["indications"] == ["GuestAgent", "Online", "PartialSnapshot"]


async def test_a_vm_waits_for_its_claim_boots_warm_from_it_and_takes_it_along(bench):
    await boot(bench)
    taken = await take(bench)
    vm = await make(bench, MACHINES, disk_machine("fast", on_claim("root", "fast-root")))
    await bench.clock.advance(60)
    waiting = await bench.status("fast")
    told = await bench.condition("fast", "Synchronized")
    content = await bench.get(f"{CONTENTS}/{taken['status']['virtualMachineSnapshotContentName']}")
    volume = content["spec"]["volumeBackups"][0]["volumeSnapshotName"]

    await make(bench, CLAIMS, claim("fast-root", owner=vm, snapshot=volume))
    await bench.clock.advance(1)
    restoring = await bench.status("fast")
    # Of 13 s the clone of the disk takes 2 and the guest 5; from an unused disk the guest would take 14.
    await bench.clock.advance(13)

    assert waiting == ("ErrorPvcNotFound", "PodNotExists")
    assert told["message"] == "PVC default/fast-root does not exist, waiting for it to appear"
    assert restoring == ("ErrorUnschedulable", "GuestNotRunning")
    assert await bench.status("fast") == ("Running", "")
    assert "pvc-" in (await bench.get(f"{CLAIMS}/fast-root"))["spec"]["volumeName"]
    await remove(
        bench, f"{MACHINES}/fast", propagationPolicy="Foreground", preconditions={"uid": vm["metadata"]["uid"]}
    )
    await bench.clock.advance(30)
    assert not await exists(bench, f"{MACHINES}/fast")
    assert not await exists(bench, f"{CLAIMS}/fast-root")
    assert await exists(bench, f"{CLAIMS}/src-root")


async def test_an_unused_disk_makes_no_warm_snapshot(bench):
    await make(bench, CLAIMS, claim("src-root"))
    await bench.create(disk_machine("src", on_claim("root", "src-root"), strategy="Halted"))
    await bench.clock.advance(5)
    taken = await take(bench)
    await start_from(bench, taken, "slow")

    await bench.clock.advance(13)
    assert await bench.status("slow") == ("Running", "ContainersNotReady")
    await bench.clock.advance(10)
    assert await bench.status("slow") == ("Running", "")


async def test_a_snapshot_of_a_warm_copy_is_warm_too(bench):
    await boot(bench)
    await start_from(bench, await take(bench), "first")
    await bench.clock.advance(5)

    again = await take(bench, "s2", "first")
    await start_from(bench, again, "second")
    await bench.clock.advance(13)

    assert await bench.status("second") == ("Running", "")


@pytest.mark.parametrize("given", [{"size": "5Gi"}, {"storage_class": "local-wait"}])
async def test_a_claim_that_does_not_fit_its_snapshot_stays_pending(bench, given):
    await boot(bench)
    await start_from(bench, await take(bench), "odd", **given)
    await bench.clock.advance(60)

    assert (await bench.get(f"{CLAIMS}/odd-root"))["status"] == {"phase": "Pending"}


async def test_deleting_a_snapshot_takes_all_it_is_made_of(bench):
    await boot(bench)
    taken = await take(bench)
    assert len((await bench.get(VOLUME_SNAPSHOT_CONTENTS))["items"]) == 1

    status, answer = await bench.call("DELETE", f"{SNAPSHOTS}/s1", {"preconditions": {"uid": "another"}})
    assert (status, answer["reason"]) == (409, "Conflict")
    await remove(bench, f"{SNAPSHOTS}/s1", preconditions={"uid": taken["metadata"]["uid"]})
    await bench.clock.advance(1)

    for path in (SNAPSHOTS, CONTENTS, VOLUME_SNAPSHOTS, VOLUME_SNAPSHOT_CONTENTS):
        assert (await bench.get(path))["items"] == []


async def test_a_deleted_snapshot_lets_go_of_its_vm_while_it_is_taken(bench):
    await boot(bench)
    await make(bench, SNAPSHOTS, vm_snapshot("s1", "src"))
    await bench.clock.advance(1)

    await remove(bench, f"{SNAPSHOTS}/s1")
    await bench.clock.advance(1)

    vm = await bench.get(f"{MACHINES}/src")
    assert "snapshotInProgress" not in vm["status"]
    assert "snapshot.kubevirt.io/snapshot-source-protection" not in vm["metadata"]["finalizers"]
    assert (await bench.get(VOLUME_SNAPSHOTS))["items"] == []


async def test_a_vm_keeps_its_state_and_volumes_while_it_is_snapshotted(bench):
    await boot(bench)
    await make(bench, SNAPSHOTS, vm_snapshot("s1", "src"))
    await bench.clock.advance(1)
    merge = {"Content-Type": "application/merge-patch+json"}
    halted = await bench.call("PATCH", f"{MACHINES}/src", {"spec": {"runStrategy": "Halted"}}, headers=merge)
    fewer = {"spec": {"template": {"spec": {"volumes": [on_claim("root", "src-root")]}}}}
    changed = await bench.call("PATCH", f"{MACHINES}/src", fewer, headers=merge)
    stopped = await bench.call("PUT", f"{SUBRESOURCES}/virtualmachines/src/stop", {})
    labelled = await bench.call("PATCH", f"{MACHINES}/src", {"metadata": {"labels": {"a": "b"}}}, headers=merge)
    await bench.clock.advance(5)
    later = await bench.call("PATCH", f"{MACHINES}/src", {"spec": {"runStrategy": "Halted"}}, headers=merge)

    assert [answer[0] for answer in (halted, changed, stopped, labelled, later)] == [422, 422, 500, 200, 200]
    assert halted[1]["message"].endswith('Cannot update vm running state until snapshot "s1" completes')
    assert changed[1]["message"].endswith('Cannot update vm disks or volumes until snapshot "s1" completes')
    assert stopped[1]["message"].endswith('Cannot update vm running state until snapshot "s1" completes')


async def test_two_snapshots_of_one_vm_are_taken_one_after_the_other(bench):
    await boot(bench)
    await make(bench, SNAPSHOTS, vm_snapshot("s1", "src"))
    await bench.clock.advance(1)
    await make(bench, SNAPSHOTS, vm_snapshot("s2", "src"))
    await bench.clock.advance(1)

    waiting = condition(await bench.get(f"{SNAPSHOTS}/s2"), "Progressing")
    await bench.clock.advance(10)

    assert waiting == ("False", 'Source not locked snapshot "s1" in progress', "")
    assert (await bench.get(f"{SNAPSHOTS}/s2"))["status"]["phase"] == "Succeeded"


async def test_a_snapshot_of_a_vm_without_its_claim_waits(bench):
    await bench.create(disk_machine("src", on_claim("root", "late"), strategy="Halted"))
    waiting = await take(bench)

    await make(bench, CLAIMS, claim("late"))
    await bench.clock.advance(5)

    assert condition(waiting, "Progressing")[1] == "Source not locked source default/src volume doesnt exist: late"
    assert (await bench.get(f"{SNAPSHOTS}/s1"))["status"]["readyToUse"] is True


async def test_snapshot_fails_is_told_at_once_and_final_at_the_deadline(bench):
    await boot(bench)
    await bench.order(kind="snapshot-fails", name="s1", settings={"message": "disk array is full"})

    early = await take(bench, failureDeadline="20s")
    await bench.clock.advance(20)
    late = await bench.get(f"{SNAPSHOTS}/s1")

    assert early["status"]["phase"] == "InProgress"
    assert early["status"]["error"]["message"].endswith("error: disk array is full")
    assert condition(early, "Progressing") == ("False", "In error state", "")
    assert (late["status"]["phase"], late["status"]["readyToUse"]) == ("Failed", False)
    assert late["status"]["error"]["message"] == early["status"]["error"]["message"]
    assert condition(late, "Failure") == ("True", "snapshot deadline exceeded", "")
    assert (await bench.get(CONTENTS))["items"] == (await bench.get(VOLUME_SNAPSHOTS))["items"] == []
    assert "snapshotInProgress" not in (await bench.get(f"{MACHINES}/src"))["status"]
    assert (await take(bench, "s2"))["status"]["phase"] == "Succeeded"


async def test_a_snapshot_error_that_passes_is_forgotten(bench):
    await boot(bench)
    fault = await bench.order(kind="snapshot-fails")
    await take(bench)

    await bench.call("DELETE", f"/devcluster/v1/faults/{fault}")
    await bench.clock.advance(5)

    status = (await bench.get(f"{SNAPSHOTS}/s1"))["status"]
    assert (status["phase"], "error" in status) == ("Succeeded", False)


async def test_snapshot_hangs_until_the_deadline(bench):
    await boot(bench)
    await bench.order(kind="snapshot-hangs", count=1)
    await take(bench)
    await bench.clock.advance(290)
    hanging = await bench.get(f"{SNAPSHOTS}/s1")
    await bench.clock.advance(10)

    assert (hanging["status"]["phase"], "error" in hanging["status"]) == ("InProgress", False)
    assert (await bench.get(f"{SNAPSHOTS}/s1"))["status"]["phase"] == "Failed"
    assert (await take(bench, "s2"))["status"]["phase"] == "Succeeded"


async def test_no_deadline_waits_for_ever(bench):
    await boot(bench)
    await bench.order(kind="snapshot-hangs")
    await take(bench, failureDeadline="0s")
    await bench.clock.advance(1000)

    assert (await bench.get(f"{SNAPSHOTS}/s1"))["status"]["phase"] == "InProgress"


async def test_volume_excluded_leaves_out_the_one_that_is_named(bench):
    await make(bench, CLAIMS, claim("one"), claim("two"))
    await bench.create(disk_machine("src", on_claim("one"), on_claim("two"), strategy="Halted"))
    await bench.clock.advance(2)
    await bench.order(kind="volume-excluded", settings={"volume": "two"})

    taken = await take(bench)

    assert taken["status"]["snapshotVolumes"] == {"includedVolumes": ["one"], "excludedVolumes": ["two"]}
    assert taken["status"]["indications"] == ["PartialSnapshot"]


async def test_volumes_go_with_their_claims(bench):
    await make(bench, CLAIMS, claim("one"))
    await bench.clock.advance(1)
    assert [item["spec"]["claimRef"]["name"] for item in (await bench.get(VOLUMES))["items"]] == ["one"]

    await remove(bench, f"{CLAIMS}/one")
    await bench.clock.advance(1)

    assert (await bench.get(VOLUMES))["items"] == []


async def test_the_disk_with_the_lowest_boot_order_counts(bench):
    await make(bench, CLAIMS, claim("data"), claim("system"))
    vm = disk_machine("src", on_claim("data"), on_claim("system"))
    vm["spec"]["template"]["spec"]["domain"]["devices"]["disks"][1]["bootOrder"] = 1
    await bench.boot(vm)
    marked = {
        item["spec"]["claimRef"]["name"]: item["metadata"]["annotations"].get("devcluster/booted")
        for item in (await bench.get(VOLUMES))["items"]
    }

    assert marked == {"data": None, "system": "true"}


RESTORES = f"{KUBEVIRT_SNAPSHOTS}/virtualmachinerestores"
STATES = {
    "tpm": lambda domain: domain["devices"].update(tpm={"persistent": True}),
    "efi": lambda domain: domain.update(firmware={"bootloader": {"efi": {"persistent": True, "secureBoot": False}}}),
}


async def states_of(bench, name):
    """The claims with the state of the VM that are not being deleted."""
    found = (await bench.get(CLAIMS))["items"]
    named = [each for each in found if (each["metadata"].get("labels") or {}).get("persistent-state-for") == name]
    return [each for each in named if "deletionTimestamp" not in each["metadata"]]


async def boot_with_state(bench, keep=STATES["tpm"]):
    await make(bench, CLAIMS, claim("src-root"))
    vm = disk_machine("src", on_claim("root", "src-root"))
    keep(vm["spec"]["template"]["spec"]["domain"])
    await bench.boot(vm)


async def restore(bench, name, target):
    await make(
        bench,
        RESTORES,
        {
            "apiVersion": "snapshot.kubevirt.io/v1beta1",
            "kind": "VirtualMachineRestore",
            "metadata": {"name": name},
            "spec": {
                "target": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": target},
                "virtualMachineSnapshotName": "s1",
            },
        },
    )


@pytest.mark.parametrize("keep", STATES.values(), ids=STATES)
async def test_the_state_of_a_tpm_or_efi_has_a_claim_that_goes_with_the_vm(bench, keep):
    await boot_with_state(bench, keep)
    (state,) = await states_of(bench, "src")
    owner = state["metadata"]["ownerReferences"][0]
    vmi = await bench.get(f"{INSTANCES}/src")

    assert state["metadata"]["name"].startswith("persistent-state-for-src-")
    assert (owner["kind"], owner["name"]) == ("VirtualMachine", "src")
    assert state["spec"]["resources"]["requests"] == {"storage": "10Mi"}
    assert (state["spec"]["storageClassName"], state["spec"]["volumeMode"]) == ("standard", "Filesystem")
    assert "persistent-state-for-this-vm" in [each["name"] for each in vmi["status"]["volumeStatus"]]
    await stop(bench)
    assert [each["metadata"]["name"] for each in await states_of(bench, "src")] == [state["metadata"]["name"]]
    await remove(bench, f"{MACHINES}/src")
    await bench.clock.advance(30)
    assert await states_of(bench, "src") == []


async def test_a_snapshot_has_the_state_and_gives_it_back_to_its_own_vm_alone(bench):
    await boot_with_state(bench)
    taken = await take(bench)
    volumes = ["root", "persistent-state-for-src"]
    assert taken["status"]["snapshotVolumes"] == {"includedVolumes": volumes}
    content = await bench.get(f"{CONTENTS}/{taken['status']['virtualMachineSnapshotContentName']}")
    assert [each["volumeName"] for each in content["spec"]["volumeBackups"]] == volumes
    (before,) = await states_of(bench, "src")

    with pytest.raises(AssertionError, match="Restore to a different VM is not supported"):
        await restore(bench, "elsewhere", "other")
    await stop(bench)
    await restore(bench, "back", "src")
    await bench.clock.advance(60)
    (after,) = await states_of(bench, "src")
    assert (await bench.get(f"{RESTORES}/back"))["status"]["complete"] is True
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["spec"]["dataSource"]["kind"] == "VolumeSnapshot"


@pytest.mark.parametrize(
    ("name", "volume"),
    [
        ("x", "persistent-state-for-x"),
        ("x" * 60, "persistent-state-for-f7eab9c5"),
        ("x" * 45, f"persiste-e807c95a-{'x' * 45}"),
    ],
)
def test_a_long_name_of_the_state_is_cut(name, volume):
    assert state_volume_name(name) == volume
