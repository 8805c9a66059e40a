"""Real guests: they boot, are paused and ended, and clones of a kept memory are somebody of their own."""

import asyncio
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from app.devcluster.guests.qemu.errors import (
    AgentSilent,
    MachineError,
    MachineGone,
    MemoryBroken,
    MemoryMismatch,
    NoRoom,
)
from app.devcluster.guests.qemu.memory_image import MemoryImage
from app.devcluster.guests.qemu.plan import Disk, FirmwareBoot, MachinePlan, Nic, Port
from tests.support.machines import (
    BOOT_SECONDS,
    MEMORY,
    TEMPLATE_MAC,
    Heard,
    create_disk,
    find_guest,
    find_qemu,
    layer_of,
    open_rig,
    overlay,
    shell,
)
from tests.support.patience import PATIENCE
from tests.support.processes import is_alive

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(4 * BOOT_SECONDS)]

CLONES = int(os.environ.get("EMBERPOOL_TEST_CLONES", "6"))


@pytest.fixture(scope="module")
def found():
    return find_qemu()


@pytest.fixture(scope="module")
def guest(found):
    return find_guest()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(found, guest, tmp_path_factory):
    async with open_rig(tmp_path_factory.mktemp("machines"), found, guest) as rig:
        yield rig


def of_process(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


async def test_a_guest_boots_and_tells_what_it_is(rig):
    assert rig.template.told[:2] == ["running", "connected"]
    assert rig.facts.os.id == "emberpool"
    assert [(one.name, one.mac, one.ipv4) for one in rig.facts.interfaces] == [("eth0", TEMPLATE_MAC, ("10.0.2.15",))]
    assert rig.template.end.reason == "killed"


async def test_a_guest_runs_without_rights_and_within_bounds(rig):
    machine, _, _ = await rig.clone()
    status = dict(line.split(":\t", 1) for line in of_process(machine.pid, "status").splitlines() if ":\t" in line)
    assert status["CapEff"] == "0000000000000000"
    assert os.getuid() != 0 or status["Uid"].split() == ["65534"] * 4
    assert status["Seccomp"] == ("2" if rig.found.sandbox else "0")
    limits = of_process(machine.pid, "limits")
    assert "Max core file size        0 " in limits
    assert "Max open files            256 " in limits
    await machine.kill()


async def test_the_ports_of_each_machine_answer_at_an_address_of_its_own(rig):
    machines = [await rig.clone() for _ in range(2)]
    ends = [machine.endpoint(22) for machine, _, _ in machines]
    assert len({(end.host, end.port) for end in ends}) == 2
    for end in ends:
        reader, writer = await asyncio.open_connection(end.host, end.port)
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readline()).startswith(b"SSH-2.0")
        writer.close()
    for machine, _, _ in machines:
        await machine.kill()


async def test_a_paused_guest_answers_again_when_it_is_resumed_and_its_clock_is_right(rig):
    machine, heard, _ = await rig.clone()
    await machine.pause()
    with pytest.raises(AgentSilent):
        await machine.ping(0.5)
    await machine.resume()
    await machine.ping(PATIENCE)
    assert "disconnected" not in heard.told
    assert await shell(machine, "cat /proc/sys/kernel/hostname") == machine.name
    await machine.kill()


async def test_a_guest_that_is_shut_down_ends_itself(rig):
    machine, heard, _ = await rig.clone()
    await machine.shut_down(PATIENCE)
    ended = await heard.until_ended()
    assert (ended.reason, ended.detail) == ("shutdown", f"The guest {machine.name} switched itself off.")


async def test_a_guest_that_does_not_shut_down_in_its_time_is_ended(rig):
    machine, heard, _ = await rig.clone()
    await machine.shut_down(0)
    assert (await heard.until_ended()).reason == "killed"


async def test_a_guest_that_restarts_keeps_its_machine(rig):
    machine, heard, _ = await rig.clone()
    await machine.reboot()
    await heard.until("connected", times=2)
    assert heard.told == ["running", "connected", "disconnected", "connected"]
    assert heard.end is None
    await machine.kill()


async def test_a_kernel_that_panics_ends_its_machine_and_says_why(rig):
    machine, heard, _ = await rig.clone()
    await machine.run("/bin/sh", "-c", "(sleep 0.1; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &")
    ended = await heard.until_ended()
    assert ended.reason == "panicked"
    assert "Kernel panic - not syncing" in ended.detail


async def test_a_machine_whose_process_dies_has_crashed_and_the_others_go_on(rig):
    victim, heard, _ = await rig.clone()
    other, others, _ = await rig.clone()
    os.kill(victim.pid, signal.SIGKILL)
    ended = await heard.until_ended()
    assert ended.reason == "crashed"
    assert "SIGKILL" in ended.detail
    await other.ping(PATIENCE)
    assert others.end is None
    with pytest.raises(MachineError):
        await victim.pause()
    await other.kill()


async def test_a_disk_that_is_frozen_live_keeps_its_moment_while_the_guest_writes_on(rig):
    machine, _, _ = await rig.clone()
    await shell(machine, "echo before > /etc/note; sync")
    top = rig.folder / f"{machine.name}.qcow2"
    await machine.snapshot_disk("root", overlay(rig.folder, f"{machine.name}-1.qcow2", top.name))
    frozen = top.read_bytes()
    await shell(machine, "echo after > /etc/note; sync")
    await machine.snapshot_disk("root", overlay(rig.folder, f"{machine.name}-2.qcow2", f"{machine.name}-1.qcow2"))
    assert await shell(machine, "cat /etc/note") == "after"
    assert top.read_bytes() == frozen
    await machine.kill()


async def test_memory_kept_live_is_of_the_same_moment_as_the_disk_and_the_guest_goes_on(rig):
    machine, heard, _ = await rig.clone()
    await shell(machine, "echo kept > /etc/note; sync; echo in-memory > /run/note")
    name = f"{machine.name}.qcow2"

    async def freeze():
        await machine.snapshot_disk("root", overlay(rig.folder, f"{machine.name}-live.qcow2", name))
        return {"root": name}

    image = await machine.save_memory(rig.folder / f"memory-of-{machine.name}", freeze)
    assert image.stood_still > 0
    assert MemoryImage.open(image.folder) == image
    await shell(machine, "echo later > /etc/note; echo later > /run/note")
    clone, _, identity = await rig.clone(image)
    assert await shell(clone, "cat /etc/note /run/note /etc/hostname") == f"kept\nin-memory\n{identity.hostname}"
    assert await shell(machine, "cat /etc/note /run/note /etc/hostname") == f"later\nlater\n{machine.name}"
    assert heard.end is None
    await clone.kill()
    await machine.kill()


async def test_memory_of_a_paused_guest_can_be_kept_and_it_stays_paused(rig):
    machine, _, _ = await rig.clone()
    await machine.pause()
    image = await machine.save_memory(rig.folder / f"memory-of-{machine.name}", layer_of(f"{machine.name}.qcow2"))
    with pytest.raises(AgentSilent):
        await machine.ping(0.5)
    await machine.kill()
    clone, _, identity = await rig.clone(image)
    assert await shell(clone, "cat /etc/hostname") == identity.hostname
    await clone.kill()


async def test_qemu_takes_a_machine_with_firmware_and_everything_that_a_plan_can_have(rig):
    seed = rig.folder / "seed.iso"
    seed.write_bytes(bytes(65536))
    plan = MachinePlan(
        "firmware",
        MEMORY,
        2,
        FirmwareBoot(),
        disks=(
            Disk("root", create_disk(rig.folder, "a,b.qcow2"), serial="root-1"),
            Disk("data", create_disk(rig.folder, "data.qcow2"), read_only=True),
        ),
        nics=(
            Nic("52:54:00:e2:00:01", (Port(22), Port(80), Port(53, "udp"))),
            Nic("52:54:00:e2:00:02", (), outward=False),
        ),
        seed=seed,
        uuid="00000000-0000-0000-0000-000000000001",
        paused=True,
    )
    heard = Heard()
    machine = await rig.machines.start(plan, heard)
    assert heard.told == []
    await machine.resume()
    assert heard.told == ["running"]
    assert {end.guest_port for end in machine.endpoints} == {22, 80, 53}
    await machine.kill()
    assert (await heard.until_ended()).reason == "killed"


async def test_a_save_whose_disks_cannot_be_frozen_leaves_nothing_and_the_guest_goes_on(rig):
    machine, _, _ = await rig.clone()

    async def freeze():
        raise RuntimeError("no disk is frozen today")

    target = rig.folder / "never"
    with pytest.raises(RuntimeError, match="no disk is frozen today"):
        await machine.save_memory(target, freeze)
    await machine.ping(PATIENCE)
    assert not list(rig.folder.glob("never*"))
    await machine.kill()


async def test_a_machine_that_dies_while_its_memory_is_kept_leaves_nothing_that_looks_whole(rig):
    machine, heard, _ = await rig.clone()

    async def freeze():
        os.kill(machine.pid, signal.SIGKILL)
        return {"root": "x"}

    with pytest.raises(MachineGone):
        await machine.save_memory(rig.folder / "killed", freeze)
    assert (await heard.until_ended()).reason == "crashed"
    assert not list(rig.folder.glob("killed*"))


async def test_memory_of_another_machine_is_refused_before_anything_starts(rig):
    plan, _ = rig.clone_plan(cpus=2)
    with pytest.raises(MemoryMismatch, match="the machine is another one: -smp 1 then, -smp 2 now"):
        await rig.machines.start(plan, Heard())
    assert not (rig.folder / "run" / plan.name).exists()


async def test_a_state_that_qemu_cannot_read_leaves_no_machine_and_no_memory_taken(rig, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("ram", "memory.json"):
        (broken / name).hardlink_to(rig.image.folder / name)
    (broken / "state").write_bytes(b"\0" * rig.image.state.stat().st_size)
    plan, _ = rig.clone_plan(MemoryImage.open(broken))
    heard = Heard()
    with pytest.raises(MemoryBroken, match="keep the memory anew"):
        await rig.machines.start(plan, heard)
    assert heard.told == []
    machine, _, _ = await rig.clone()
    await machine.kill()


async def test_a_clone_whose_identity_fails_is_never_there(rig):
    plan, _ = rig.clone_plan()
    errand = replace(plan.identity[0], path="/bin/false", explain=lambda code, _: f"it ended with {code}.")
    heard = Heard()
    with pytest.raises(MachineError, match="could not get an identity of its own: it ended with 1"):
        await rig.machines.start(replace(plan, identity=(errand,)), heard)
    assert heard.told == []


async def test_a_guest_too_many_is_refused_with_a_sentence_and_waits_for_nothing(rig):
    plan, _ = rig.clone_plan(memory_bytes=2**40)
    with pytest.raises(NoRoom, match="No room for another guest"):
        await rig.machines.start(plan, Heard())


async def test_no_two_clones_have_the_same_random_bytes_keys_or_names(rig):
    """EMBERPOOL_TEST_CLONES sets how many; bench/guests.py does it with 50."""
    seen: dict[str, set[str]] = {
        "random": set(),
        "machine-id": set(),
        "host key": set(),
        "hostname": set(),
        "mac": set(),
    }
    for _ in range(CLONES):
        machine, _, identity = await rig.clone()
        told = (await shell(machine, _TELL)).split("\n")
        for one, value in zip(seen.values(), told, strict=False):
            one.add(value)
        assert told[1:5] == [identity.machine_id, identity.host_key.public.strip(), identity.hostname, identity.mac]
        assert abs(float(told[5]) - time.time()) < PATIENCE
        await machine.kill()
    assert {name: len(values) for name, values in seen.items()} == dict.fromkeys(seen, CLONES)


_TELL = """
od -An -N16 -tx1 /dev/urandom | tr -d ' \\n'; echo
cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub /proc/sys/kernel/hostname /sys/class/net/eth0/address
date +%s
"""


async def test_nothing_runs_when_the_machines_are_closed(found, guest, tmp_path):
    async with open_rig(tmp_path, found, guest) as rig:
        machine, heard, _ = await rig.clone()
        pid, supervisor = machine.pid, rig.machines.supervisor_pid
    assert heard.end.reason == "killed"

    assert not any(map(is_alive, (pid, supervisor)))
    assert not (tmp_path / "run").exists()
