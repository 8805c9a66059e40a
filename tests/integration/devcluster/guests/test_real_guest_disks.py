"""Guests that run on disks that were imported, cloned, and restored from a snapshot of a running VM."""

import shutil

import pytest

from tests.support.devcluster_bench import MACHINES, SUBRESOURCES, until
from tests.support.devcluster_disks import (
    DATA_VOLUMES,
    KUBEVIRT_SNAPSHOTS,
    SNAPSHOTS,
    data_volume,
    disk_machine,
    exists,
    make,
    of_claim,
    on_data_volume,
    progress_of,
    vm_snapshot,
)
from tests.support.image_server import ImageServer
from tests.support.real_guests import BOOT_PATIENCE, died, new_folder, real_guests, running_cluster

pytestmark = pytest.mark.timeout(900)
IMAGE_BYTES = 64 * 2**20
STORAGE = {"resources": {"requests": {"storage": "128Mi"}}}


@pytest.fixture
def folder():
    made = new_folder()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
async def bench(folder):
    async with running_cluster(await real_guests(folder)) as bench:
        yield bench


async def fill(bench, name, source):
    await make(bench, DATA_VOLUMES, data_volume(name, source, storage=STORAGE))

    async def is_full():
        return (await progress_of(bench, name))[0] == "Succeeded"

    await until(is_full, BOOT_PATIENCE)


async def run(bench, name, command):
    """What a shell in the guest prints."""
    ran = await bench.guest(await bench.vmi(name)).run("/bin/sh", "-c", command)
    assert ran.code == 0, ran.errors
    return ran.out.decode().strip()


async def stop(bench, name):
    pid = bench.guest(await bench.vmi(name)).pid
    assert (await bench.call("PUT", f"{SUBRESOURCES}/virtualmachines/{name}/stop", {}))[0] == 202
    await died(pid)

    async def is_gone():
        return await bench.vmi(name) is None

    await until(is_gone, BOOT_PATIENCE)


async def keep(bench, name, source):
    """A snapshot of the VM; gives its status."""
    await make(bench, SNAPSHOTS, vm_snapshot(name, source))

    async def is_kept():
        return ((await bench.get(f"{SNAPSHOTS}/{name}")).get("status") or {}).get("readyToUse")

    await until(is_kept, BOOT_PATIENCE)
    return (await bench.get(f"{SNAPSHOTS}/{name}"))["status"]


async def restore(bench, snapshot, target):
    reference = {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": target}
    order = {"apiVersion": "snapshot.kubevirt.io/v1beta1", "kind": "VirtualMachineRestore"}
    spec = {"target": reference, "virtualMachineSnapshotName": snapshot}
    path = f"{KUBEVIRT_SNAPSHOTS}/virtualmachinerestores"
    await make(bench, path, {**order, "metadata": {"name": f"restore-{target}"}, "spec": spec})
    await until(lambda: exists(bench, f"{MACHINES}/{target}"), BOOT_PATIENCE)
    assert (await bench.call("PUT", f"{SUBRESOURCES}/virtualmachines/{target}/start", {}))[0] == 202


async def test_each_guest_finds_the_files_of_the_moment_that_its_disk_was_made_of(bench):
    async with ImageServer() as images:
        images.files["empty.raw"] = bytes(IMAGE_BYTES)
        await fill(bench, "root", {"http": {"url": images.url("empty.raw")}})
    await bench.boot(disk_machine("x", on_data_volume("root")))
    await run(bench, "x", "echo first > /etc/mark")
    status = await keep(bench, "kept", "x")
    await run(bench, "x", "echo second > /etc/mark")
    assert status["indications"] == ["GuestAgent", "Online"]

    await restore(bench, "kept", "y")
    await bench.ready("y")
    assert await run(bench, "y", "cat /etc/mark") == "first"
    assert await run(bench, "x", "cat /etc/mark") == "second"
    await run(bench, "y", "echo other > /etc/mark")

    await stop(bench, "x")
    await fill(bench, "copy", of_claim("root"))
    await bench.boot(disk_machine("z", on_data_volume("copy")))
    assert await run(bench, "z", "cat /etc/mark") == "second"
