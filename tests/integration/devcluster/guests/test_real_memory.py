"""The memory of VMs that run: kept through the API of the dev cluster, and restored into another VM."""

import shutil

import pytest

from app.devcluster.kubevirt.memory import FINGERPRINT, KEEP, START_FROM
from tests.support.devcluster_bench import until
from tests.support.devcluster_disks import (
    CLAIMS,
    SNAPSHOTS,
    VOLUME_SNAPSHOTS,
    claim,
    disk_machine,
    on_claim,
    vm_snapshot,
)
from tests.support.real_guests import BOOT_PATIENCE, new_folder, real_guests, running_cluster

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
async def bench():
    folder = new_folder()
    async with running_cluster(await real_guests(folder)) as bench:
        yield bench
    shutil.rmtree(folder, ignore_errors=True)


async def post(bench, path, obj):
    status, body = await bench.call("POST", path, obj)
    assert status == 201, body


async def said_by(bench, vmi, command):
    ran = await bench.guest(vmi).run("/bin/sh", "-c", command)
    assert ran.code == 0, ran
    return ran.out.decode().strip()


async def keep_memory(bench, source):
    """Take a snapshot of the VM with its memory; gives the VolumeSnapshot of its disk."""
    snapshot = vm_snapshot("s1", source)
    snapshot["metadata"]["annotations"] = {KEEP: "true"}
    await post(bench, SNAPSHOTS, snapshot)

    async def is_over():
        return (await bench.get(f"{SNAPSHOTS}/s1")).get("status", {}).get("phase") in {"Succeeded", "Failed"}

    await until(is_over, BOOT_PATIENCE)
    taken = await bench.get(f"{SNAPSHOTS}/s1")
    assert taken["status"]["phase"] == "Succeeded", taken
    assert taken["metadata"]["annotations"][FINGERPRINT]
    (volume,) = (await bench.get(VOLUME_SNAPSHOTS))["items"]
    return volume["metadata"]["name"]


async def test_a_vm_goes_on_from_the_memory_of_another_as_one_of_its_own(bench):
    await post(bench, CLAIMS, claim("src", size="1Gi"))
    await bench.boot(disk_machine("src", on_claim("root", "src")))
    source = await bench.vmi("src")
    await said_by(bench, source, "echo kept > /etc/on-disk; echo kept > /run/in-memory; sync")
    volume = await keep_memory(bench, "src")
    assert await said_by(bench, source, "cat /run/in-memory") == "kept"

    await post(bench, CLAIMS, claim("clone", size="1Gi", snapshot=volume))
    obj = disk_machine("clone", on_claim("root", "clone"))
    obj["metadata"]["annotations"] = {START_FROM: "s1"}
    await bench.boot(obj)
    clone = await bench.vmi("clone")
    assert clone["metadata"]["annotations"]["guests.emberpool.io/boot"] == "memory"
    assert await said_by(bench, clone, "cat /run/in-memory /etc/on-disk") == "kept\nkept"
    assert await said_by(bench, clone, "hostname") == "clone"
    own = "cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1"
    assert await said_by(bench, clone, own) != await said_by(bench, source, own)
    (mac,) = [item["mac"] for item in clone["status"]["interfaces"]]
    assert await said_by(bench, clone, "cat /sys/class/net/eth0/address") == mac
