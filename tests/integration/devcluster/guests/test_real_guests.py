"""VMs of the dev cluster as machines of QEMU: their lives, their ends, and the faults that strike them."""

import asyncio
import os
import shutil
import signal

import pytest

from tests.support.devcluster_bench import IMAGE, MACHINES, SUBRESOURCES, machine, until
from tests.support.real_guests import (
    BOOT_PATIENCE,
    died,
    holds,
    is_alive,
    new_folder,
    real_guests,
    running_cluster,
)

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def folder():
    made = new_folder()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
async def bench(folder):
    async with running_cluster(await real_guests(folder)) as bench:
        yield bench


async def put(bench, verb, plural="virtualmachineinstances"):
    return (await bench.call("PUT", f"{SUBRESOURCES}/{plural}/x/{verb}", {}))[0]


async def test_a_vm_boots_tells_what_it_is_is_paused_and_shuts_down(bench):
    await bench.create(machine("x"))
    vmi = await bench.ready()

    (interface,) = vmi["status"]["interfaces"]
    assert interface["interfaceName"] == "eth0"
    assert vmi["status"]["guestOSInfo"]["id"] == "emberpool"
    notes = vmi["metadata"]["annotations"]
    assert notes["guests.emberpool.io/boot"] == "built-in"
    assert "128 MiB of memory instead of 1Gi" in notes["guests.emberpool.io/notes"]
    assert f"The image {IMAGE} is the built-in guest" in notes["guests.emberpool.io/notes"]
    host, _, port = notes["guests.emberpool.io/ssh"].partition(":")
    assert host == interface["ipAddress"]
    reader, writer = await asyncio.open_connection(host, int(port))
    assert (await reader.readline()).startswith(b"SSH-2.0-")
    writer.close()

    assert await put(bench, "pause") == 200
    assert holds(await bench.vmi(), "Paused")
    assert await put(bench, "unpause") == 200
    await bench.ready()

    pid = bench.guest(vmi).pid
    assert await put(bench, "stop", "virtualmachines") == 202
    await died(pid)
    assert await bench.events("Started") == ["VirtualMachineInstance started."]

    async def has_stopped():
        return await bench.events("Stopped") == ["The VirtualMachineInstance was shut down."]

    await until(has_stopped, BOOT_PATIENCE)


async def test_a_guest_sees_its_secrets_and_seed_is_probed_at_a_port_and_restarts_itself(bench):
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"token": "t"}}
    assert (await bench.call("POST", "/api/v1/namespaces/default/secrets", secret))[0] == 201
    obj = machine("x", probe=False)
    spec = obj["spec"]["template"]["spec"]
    spec["hostname"] = "named"
    spec["readinessProbe"] = {"tcpSocket": {"port": 22}, "periodSeconds": 1}
    spec["domain"]["devices"]["disks"].append({"name": "keys", "disk": {}})
    spec["volumes"].append({"name": "keys", "secret": {"secretName": "keys", "volumeLabel": "MYKEYS"}})
    spec["volumes"].append({"name": "init", "cloudInitNoCloud": {"userData": "#cloud-config\n"}})
    await bench.boot(obj)

    vmi = await bench.vmi()
    labels = "for d in /dev/vd?; do dd if=$d bs=1 skip=32808 count=6 2>/dev/null; echo; done; hostname"
    ran = await bench.guest(vmi).run("/bin/sh", "-c", labels)
    assert ran.out.decode().split() == ["MYKEYS", "cidata", "named"]

    assert await put(bench, "softreboot") == 200

    async def has_lost_its_agent():
        return not holds(await bench.vmi(), "AgentConnected")

    await until(has_lost_its_agent, BOOT_PATIENCE)
    again = await bench.ready()
    assert again["metadata"]["uid"] == vmi["metadata"]["uid"]


async def test_a_killed_guest_fails_and_the_vm_starts_another(bench):
    await bench.boot(machine("x"))
    vmi = await bench.vmi()
    pid = bench.guest(vmi).pid
    os.kill(pid, signal.SIGKILL)

    after = await bench.ready(other_than=vmi["metadata"]["uid"])
    assert not is_alive(pid)
    (told,) = await bench.events("Stopped")
    assert told.startswith("The VirtualMachineInstance crashed.")
    assert "SIGKILL" in told

    pid = bench.guest(after).pid
    await bench.call("DELETE", f"{MACHINES}/x", {"propagationPolicy": "Foreground"})
    await bench.gone()
    await died(pid)


async def test_a_guest_that_panics_fails_with_the_words_of_its_kernel(bench):
    await bench.boot(machine("x", strategy="Once"))
    vmi = await bench.vmi()
    panic = "echo 1 > /proc/sys/kernel/sysrq; (sleep 1; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &"
    await bench.guest(vmi).run("/bin/sh", "-c", panic)

    await bench.phase("Failed")
    (told,) = await bench.events("Stopped")
    assert "Kernel panic - not syncing" in told


async def test_faults_strike_guests_that_run(bench):
    boots = await bench.order(kind="never-boots", name="x")
    mute = await bench.order(kind="no-agent", name="x")
    await bench.create(machine("x", strategy="Once"))
    await bench.phase("Scheduled")
    await until(lambda: bench.cluster._real.runtime._guests, BOOT_PATIENCE)
    (guest,) = bench.cluster._real.runtime._guests.values()
    await until(lambda: guest.machine is not None, BOOT_PATIENCE)
    assert (await bench.vmi())["status"]["phase"] == "Scheduled"

    await bench.call("DELETE", f"/devcluster/v1/faults/{boots}")
    await bench.phase("Running")
    await until(lambda: guest.machine.agent_connected, BOOT_PATIENCE)
    assert not holds(await bench.vmi(), "AgentConnected")

    await bench.call("DELETE", f"/devcluster/v1/faults/{mute}")
    await bench.ready()
    pid = guest.machine.pid
    await bench.order(kind="guest-dies", name="x")
    await bench.phase("Failed")
    await died(pid)


async def test_a_node_that_loses_its_power_takes_its_guests_with_it(bench):
    await bench.boot(machine("x"))
    vmi = await bench.vmi()
    pid = bench.guest(vmi).pid
    await bench.call("POST", "/devcluster/v1/nodes/node1/kill")
    await died(pid)

    await bench.call("POST", "/devcluster/v1/nodes/node1/revive")

    async def has_failed():
        now = await bench.vmi()
        return now is None or now["metadata"]["uid"] != vmi["metadata"]["uid"] or now["status"]["phase"] == "Failed"

    await until(has_failed, BOOT_PATIENCE)
    assert any("ended with its node" in told for told in await bench.events("Stopped"))


async def test_a_disk_that_cannot_be_booted_fails_the_vm_and_says_so(folder):
    image = folder / "noise.raw"
    image.write_bytes(b"\x01" * 2**20)
    guests = await real_guests(folder / "guests", images={IMAGE: str(image)})
    async with running_cluster(guests) as bench:
        await bench.create(machine("x", strategy="Once"))
        vmi = await bench.phase("Failed")

    told = next(item for item in vmi["status"]["conditions"] if item["type"] == "Synchronized")
    assert (told["status"], told["reason"]) == ("False", "Synchronizing with the Domain failed.")
    assert told["message"].startswith("No bootable device: the first disk has no boot sector")


async def test_an_image_that_cannot_be_fetched_is_tried_again_and_the_vm_says_why(folder):
    nowhere = "http://127.0.0.1:1/fedora.qcow2"
    async with running_cluster(await real_guests(folder, images={IMAGE: nowhere})) as bench:
        await bench.create(machine("x"))

        async def is_told():
            return bool(await bench.events("SyncFailed"))

        await until(is_told, BOOT_PATIENCE)
        vmi = await bench.vmi()

    told = next(item for item in vmi["status"]["conditions"] if item["type"] == "Synchronized")
    assert vmi["status"]["phase"] == "Scheduled"
    assert (told["status"], told["reason"]) == ("False", "Synchronizing with the Domain failed.")
    assert "127.0.0.1" in told["message"]


async def test_a_vm_more_than_the_machine_holds_waits_for_room(folder):
    async with running_cluster(await real_guests(folder, most=1)) as bench:
        await bench.create(machine("x"))
        await bench.phase("Scheduled", "Running")
        await bench.create(machine("y"))

        async def is_told():
            vmi = await bench.vmi("y")
            found = (vmi or {}).get("status", {}).get("conditions") or ()
            return next((item["message"] for item in found if item["type"] == "PodScheduled"), "").startswith(
                "0/1 nodes are available: 1 Insufficient devices.kubevirt.io/kvm."
            )

        await until(is_told, BOOT_PATIENCE)
        await bench.call("DELETE", f"{MACHINES}/x", {"propagationPolicy": "Foreground"})
        await bench.phase("Running", name="y")


async def test_after_a_restart_of_the_cluster_its_guests_are_gone_and_their_vms_start_again(folder):
    guests = await real_guests(folder / "guests", keeps_disks=True)
    state = folder / "state.sqlite"
    async with running_cluster(guests, state=state) as bench:
        await bench.boot(machine("x"), machine("once", strategy="Once"))
        first = await bench.vmi()
        pid = bench.guest(first).pid
    assert not is_alive(pid)

    async with running_cluster(guests, state=state) as bench:
        await bench.phase("Failed", name="once")
        await bench.ready(other_than=first["metadata"]["uid"])
