from dataclasses import replace
from pathlib import Path

import pytest

from app.devcluster.guests.qemu.detect import Found
from app.devcluster.guests.qemu.fingerprint import difference, fingerprint_parts, fingerprint_text
from app.devcluster.guests.qemu.memory_image import MemoryImage
from app.devcluster.guests.qemu.plan import Disk, KernelBoot, MachinePlan, Nic

FOUND = Found("/usr/bin/qemu", (7, 2, 22), "7.2.22 (Debian)", "tcg", "", sandbox=True)
IMAGE = MemoryImage(Path("/kept"), "qemu:1", {}, {}, 0.1, shared=True)


@pytest.fixture
def plan(tmp_path: Path) -> MachinePlan:
    (tmp_path / "kernel").write_bytes(b"kernel 1")
    (tmp_path / "initrd").write_bytes(b"initrd 1")
    return MachinePlan(
        "template",
        128 * 2**20,
        1,
        KernelBoot(tmp_path / "kernel", tmp_path / "initrd", "quiet"),
        disks=(Disk("root", tmp_path / "a.qcow2"),),
        nics=(Nic("52:54:00:00:00:01"),),
    )


def test_a_clone_has_the_fingerprint_of_its_original_whatever_is_its_own(plan, tmp_path):
    clone = replace(
        plan,
        name="clone",
        uuid="00000000-0000-0000-0000-000000000001",
        disks=(Disk("root", tmp_path / "b.qcow2"),),
        nics=(Nic("52:54:00:00:00:02", ()),),
        restore=IMAGE,
    )
    assert fingerprint_text(fingerprint_parts(plan, FOUND)) == fingerprint_text(fingerprint_parts(clone, FOUND))


@pytest.mark.parametrize(
    "change",
    [
        {"memory_bytes": 256 * 2**20},
        {"cpus": 2},
        {"cpu_model": "max"},
        {"nics": ()},
        {"disks": ()},
        {"disks": (Disk("root", Path("a.qcow2"), read_only=True),)},
        {"seed": Path("seed.iso")},
    ],
)
def test_another_machine_has_another_fingerprint(plan, change):
    here, kept = fingerprint_parts(replace(plan, **change), FOUND), fingerprint_parts(plan, FOUND)
    assert fingerprint_text(here) != fingerprint_text(kept)
    assert difference(kept, here).startswith("the machine is another one: ")


def test_another_qemu_is_told_with_both_versions(plan):
    kept = fingerprint_parts(plan, FOUND)
    here = fingerprint_parts(plan, replace(FOUND, version=(10, 0, 0), text="10.0.0"))
    assert difference(kept, here) == "the QEMU is another one: 7.2.22 (Debian) then, 10.0.0 now"


def test_a_difference_of_the_machine_is_told_with_the_options_that_differ(plan):
    kept, here = fingerprint_parts(plan, FOUND), fingerprint_parts(replace(plan, cpus=2), FOUND)
    assert difference(kept, here) == "the machine is another one: -smp 1 then, -smp 2 now"


def test_a_kernel_of_other_content_is_another_kernel_and_one_elsewhere_is_not(plan, tmp_path):
    kept = fingerprint_parts(plan, FOUND)
    moved = tmp_path / "moved"
    moved.write_bytes(b"kernel 1")
    assert not difference(kept, fingerprint_parts(replace(plan, boot=replace(plan.boot, kernel=moved)), FOUND))
    moved.write_bytes(b"kernel 2")
    changed = fingerprint_parts(replace(plan, boot=replace(plan.boot, kernel=moved)), FOUND)
    assert difference(kept, changed).startswith("the kernel is another one: ")
