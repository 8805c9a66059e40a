"""Memory that the cluster keeps with snapshots, and VMs that begin in it."""

import aiohttp
import pytest

from app.devcluster import DevCluster, DevClusterConfig, ManualClock
from app.devcluster.guests.memory import RESTORE
from app.devcluster.kubevirt.memory import BYTES, FINGERPRINT, KEEP, STALE, START_FROM, STARTED
from tests.support.devcluster_bench import INSTANCES, MACHINES, SUBRESOURCES, Bench
from tests.support.devcluster_disks import (
    CLAIMS,
    CONTENTS,
    SNAPSHOTS,
    VOLUME_SNAPSHOTS,
    claim,
    condition,
    disk_machine,
    make,
    on_claim,
    remove,
    vm_snapshot,
)

GROUP = "/apis/memory.emberpool.io/v1"


async def boot(bench, name="src"):
    await make(bench, CLAIMS, claim(f"{name}-root"))
    await bench.boot(disk_machine(name, on_claim("root", f"{name}-root")))


def asking(name="s1", source="src", **spec):
    snapshot = vm_snapshot(name, source, **spec)
    snapshot["metadata"]["annotations"] = {KEEP: "true"}
    return snapshot


async def take(bench, name="s1", source="src"):
    await make(bench, SNAPSHOTS, asking(name, source))
    await bench.clock.advance(6)
    return await bench.get(f"{SNAPSHOTS}/{name}")


async def start_from(bench, snapshot, name="clone", **options):
    """A VM that asks for the memory, and its claim from the snapshot's volume."""
    content = await bench.get(f"{CONTENTS}/{snapshot['status']['virtualMachineSnapshotContentName']}")
    volume = content["spec"]["volumeBackups"][0]["volumeSnapshotName"]
    obj = disk_machine(name, on_claim("root", f"{name}-root"), **options)
    obj["metadata"]["annotations"] = {START_FROM: snapshot["metadata"]["name"]}
    vm = await make(bench, MACHINES, obj)
    await make(bench, CLAIMS, claim(f"{name}-root", owner=vm, snapshot=volume))


def annotations(obj):
    return obj["metadata"].get("annotations") or {}


async def test_discovery_tells_that_memory_is_kept(bench):
    found = await bench.get(GROUP)
    groups = await bench.get("/apis")
    assert [each["name"] for each in found["resources"]] == ["virtualmachinesnapshots/memory"]
    assert "memory.emberpool.io" in {each["name"] for each in groups["groups"]}


async def test_a_cluster_that_keeps_no_memory_does_not_know_the_group():
    clock = ManualClock()
    timeout = aiohttp.ClientTimeout(total=60)
    config = DevClusterConfig(keeps_memory=False)
    async with DevCluster(config, clock=clock) as cluster, aiohttp.ClientSession(timeout=timeout) as session:
        bench = Bench(cluster, clock, session)
        assert (await bench.call("GET", GROUP))[0] == 404
        groups = await bench.get("/apis")
        assert "memory.emberpool.io" not in {each["name"] for each in groups["groups"]}


async def test_the_memory_of_a_running_vm_is_kept_with_its_disks(bench):
    await boot(bench)
    taken = await take(bench)
    assert taken["status"]["phase"] == "Succeeded"
    assert taken["status"]["snapshotVolumes"] == {"includedVolumes": ["root"]}
    assert (annotations(taken)[BYTES], bool(annotations(taken)[FINGERPRINT])) == (str(2**30), True)
    assert (await bench.status("src")) == ("Running", "")


async def test_disks_are_taken_only_once_the_memory_is_kept(bench):
    await boot(bench)
    hangs = await bench.order(kind="memory-save-hangs")
    await make(bench, SNAPSHOTS, asking())
    await bench.clock.advance(6)
    assert (await bench.get(VOLUME_SNAPSHOTS))["items"] == []
    await bench.call("DELETE", f"/devcluster/v1/faults/{hangs}")
    await bench.clock.advance(6)
    assert (await bench.get(f"{SNAPSHOTS}/s1"))["status"]["phase"] == "Succeeded"


async def test_a_vm_that_does_not_run_has_no_memory_to_keep(bench):
    await boot(bench)
    await bench.call("PUT", f"{SUBRESOURCES}/virtualmachines/src/stop", {})
    await bench.clock.advance(30)
    failed = await take(bench)
    assert failed["status"]["phase"] == "Failed"
    assert condition(failed, "Failure") == ("True", "MemoryNotKept: the VM does not run, so it has no memory", "")
    assert "snapshotInProgress" not in (await bench.get(f"{MACHINES}/src"))["status"]


async def test_a_save_that_fails_leaves_nothing(bench):
    await boot(bench)
    await bench.order(kind="memory-save-fails", settings={"message": "no space left on device"})
    failed = await take(bench)
    assert failed["status"]["phase"] == "Failed"
    assert condition(failed, "Failure") == ("True", "MemoryNotKept: no space left on device", "")
    assert (await bench.get(VOLUME_SNAPSHOTS))["items"] == []
    assert (await bench.get(CONTENTS))["items"] == []


async def test_a_save_that_hangs_fails_at_the_deadline(bench):
    await boot(bench)
    await bench.order(kind="memory-save-hangs")
    await make(bench, SNAPSHOTS, asking(failureDeadline="10s"))
    await bench.clock.advance(15)
    assert (await bench.get(f"{SNAPSHOTS}/s1"))["status"]["phase"] == "Failed"


async def test_a_vm_that_starts_from_memory_does_not_boot(bench):
    await boot(bench)
    await start_from(bench, await take(bench))
    await bench.clock.advance(9)  # a boot from the disks alone takes 12 s, 5 of them in the guest
    vmi = await bench.get(f"{INSTANCES}/clone")
    assert vmi["status"]["phase"] == "Running"
    assert (await bench.status("clone")) == ("Running", "")
    assert annotations(vmi)[RESTORE]
    assert annotations(await bench.get(f"{MACHINES}/clone"))[STARTED] == vmi["metadata"]["uid"]


async def test_only_the_first_start_is_from_memory(bench):
    await boot(bench)
    await start_from(bench, await take(bench))
    await bench.clock.advance(20)
    await bench.call("PUT", f"{SUBRESOURCES}/virtualmachines/clone/restart", {})
    await bench.clock.advance(30)
    vmi = await bench.get(f"{INSTANCES}/clone")
    assert RESTORE not in annotations(vmi)
    assert (await bench.status("clone")) == ("Running", "")


async def test_a_mismatch_fails_the_vm_and_makes_the_memory_stale(bench):
    await boot(bench)
    snapshot = await take(bench)
    await bench.order(kind="memory-mismatch", name="clone")
    await start_from(bench, snapshot)
    await bench.clock.advance(7)
    why = "the memory was kept with another QEMU than this one; ordered by a fault"
    vm = await bench.get(f"{MACHINES}/clone")
    assert condition(vm, "Synchronized") == ("False", "MemoryFingerprintMismatch", why)
    assert vm["status"]["startFailure"]["consecutiveFailCount"] >= 1
    assert annotations(await bench.get(f"{SNAPSHOTS}/s1"))[STALE] == why
    await start_from(bench, snapshot, "other")
    await bench.clock.advance(7)
    assert condition(await bench.get(f"{MACHINES}/other"), "Synchronized")[1] == "MemoryFingerprintMismatch"


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
async def test_a_snapshot_that_is_deleted_while_clones_start_fails_them(bench, moment):
    await boot(bench)
    snapshot = await take(bench)
    if moment == "before":
        await make(bench, CLAIMS, claim("clone-root"))
        await remove(bench, f"{SNAPSHOTS}/s1")
        obj = disk_machine("clone", on_claim("root", "clone-root"))
        obj["metadata"]["annotations"] = {START_FROM: "s1"}
        await make(bench, MACHINES, obj)
    else:
        await start_from(bench, snapshot)
        await bench.clock.advance(3)  # its disk is restored, and its pod starts
        await remove(bench, f"{SNAPSHOTS}/s1")
    await bench.clock.advance(7)
    vm = await bench.get(f"{MACHINES}/clone")
    assert condition(vm, "Synchronized")[1] == "MemorySnapshotNotFound"
    assert "VirtualMachineSnapshot" in condition(vm, "Synchronized")[2]


async def test_a_snapshot_without_memory_is_told_so(bench):
    await boot(bench)
    await make(bench, SNAPSHOTS, vm_snapshot("s1", "src"))
    await bench.clock.advance(6)
    snapshot = await bench.get(f"{SNAPSHOTS}/s1")
    assert FINGERPRINT not in annotations(snapshot)
    await start_from(bench, snapshot)
    await bench.clock.advance(7)
    told = condition(await bench.get(f"{MACHINES}/clone"), "Synchronized")
    assert told == ("False", "MemorySnapshotNotFound", "VirtualMachineSnapshot s1 keeps no memory")
