from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from app.devcluster.guests.qemu.addresses import Endpoint
from app.devcluster.guests.qemu.command import Wiring, cpu_model, escape, machine_command
from app.devcluster.guests.qemu.detect import Found
from app.devcluster.guests.qemu.memory_image import MemoryImage
from app.devcluster.guests.qemu.plan import Disk, FirmwareBoot, KernelBoot, MachinePlan, Nic

FOUND = Found("/usr/bin/qemu", (7, 2, 22), "7.2.22", "tcg", "", sandbox=True)
PLAN = MachinePlan("web", 128 * 2**20, 2, KernelBoot(Path("/k"), Path("/i"), "console=ttyS0 quiet"))
WIRING = Wiring("7", "8", "9", ram="/dev/fd/10", kept=False, kernel="/dev/fd/11", initrd="/dev/fd/12")
IMAGE = MemoryImage(Path("/kept"), "qemu:1", {}, {}, 0.1, shared=True)


def options(command: list[str], name: str) -> list[str]:
    return [value for option, value in pairwise(command) if option == name]


def test_a_kernel_is_booted_with_its_initramfs_and_its_own_words_as_one_argument():
    command = machine_command(PLAN, FOUND, WIRING)
    assert options(command, "-kernel") == ["/dev/fd/11"]
    assert options(command, "-initrd") == ["/dev/fd/12"]
    assert options(command, "-append") == ["console=ttyS0 quiet"]


def test_every_machine_waits_for_the_word_to_run_and_only_a_restored_one_for_its_memory():
    assert "-S" in machine_command(PLAN, FOUND, WIRING)
    assert not options(machine_command(PLAN, FOUND, WIRING), "-incoming")
    assert options(machine_command(replace(PLAN, restore=IMAGE), FOUND, WIRING), "-incoming") == ["defer"]


def test_memory_is_shared_where_it_can_be_kept_from_and_private_where_it_is_a_kept_one():
    fresh = options(machine_command(PLAN, FOUND, WIRING), "-object")[0]
    clone = options(machine_command(PLAN, FOUND, replace(WIRING, kept=True)), "-object")[0]
    assert fresh.endswith("mem-path=/dev/fd/10,share=on")
    assert clone.endswith("share=off")


def test_a_qemu_that_can_opens_kept_memory_without_the_right_to_write():
    clone = machine_command(PLAN, replace(FOUND, version=(8, 2, 0)), replace(WIRING, kept=True))
    assert options(clone, "-object")[0].endswith("share=off,readonly=on,rom=off")


def test_each_port_is_forwarded_from_the_machines_address():
    plan = replace(PLAN, nics=(Nic("52:54:00:00:00:01"), Nic("52:54:00:00:00:02", (), outward=False)))
    ends = ((Endpoint(22, "tcp", "127.200.1.1", 2222), Endpoint(53, "udp", "127.200.1.1", 8053)), ())
    first, second = options(machine_command(plan, FOUND, replace(WIRING, endpoints=ends)), "-netdev")
    assert first == "user,id=net0,restrict=off,hostfwd=tcp:127.200.1.1:2222-:22,hostfwd=udp:127.200.1.1:8053-:53"
    assert second == "user,id=net1,restrict=on"


def test_the_seed_is_the_last_disk_and_firmware_boots_the_disks_in_their_order():
    plan = replace(
        PLAN,
        boot=FirmwareBoot(),
        disks=(Disk("root", Path("/d/a"), serial="s1"), Disk("data", Path("/d/b"), "raw", read_only=True)),
        seed=Path("/seed"),
    )
    command = machine_command(plan, FOUND, replace(WIRING, disks=("a", "b"), seed="/dev/fd/13"))
    devices = [device for device in options(command, "-device") if device.startswith("virtio-blk")]
    assert devices == [
        "virtio-blk-pci,drive=root,id=disk-root,serial=s1,bootindex=1",
        "virtio-blk-pci,drive=data,id=disk-data,bootindex=2",
        "virtio-blk-pci,drive=seed,id=disk-seed",
    ]
    assert [node.endswith("read-only=on") for node in options(command, "-blockdev")] == [False, True, True]


def test_a_comma_in_a_path_stays_in_the_path():
    assert escape("a,b=c") == "a,,b=c"


def test_the_processor_is_the_hosts_with_kvm_the_quickest_for_a_kernel_and_the_largest_for_an_image():
    assert cpu_model(PLAN, replace(FOUND, acceleration="kvm")) == "host"
    assert cpu_model(PLAN, FOUND) == "qemu64"
    assert cpu_model(replace(PLAN, boot=FirmwareBoot()), FOUND) == "max"
    assert cpu_model(replace(PLAN, cpu_model="Nehalem"), FOUND) == "Nehalem"


def test_seccomp_confines_qemu_where_it_can():
    assert options(machine_command(PLAN, FOUND, WIRING), "-sandbox")
    assert not options(machine_command(PLAN, replace(FOUND, sandbox=False), WIRING), "-sandbox")
