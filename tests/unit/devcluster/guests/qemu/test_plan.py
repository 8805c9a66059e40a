from dataclasses import replace
from pathlib import Path

import pytest

from app.devcluster.guests.qemu.errors import BadPlan
from app.devcluster.guests.qemu.plan import Disk, FirmwareBoot, KernelBoot, MachinePlan, Nic, Port, check_plan

MIB = 2**20


@pytest.fixture
def plan(tmp_path: Path) -> MachinePlan:
    for name in ("kernel", "initrd", "disk"):
        (tmp_path / name).touch()
    return MachinePlan(
        "web-1",
        128 * MIB,
        1,
        KernelBoot(tmp_path / "kernel", tmp_path / "initrd", "quiet"),
        disks=(Disk("root", tmp_path / "disk"),),
        nics=(Nic("52:54:00:00:00:01"),),
    )


def test_a_plan_of_existing_files_is_accepted(plan, tmp_path):
    check_plan(plan, tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "a,b"}, "no DNS name"),
        ({"name": "../up"}, "no DNS name"),
        ({"memory_bytes": 128 * MIB + 1}, "not whole MiB"),
        ({"cpus": 0}, "processors"),
        ({"uuid": "1,kernel=x"}, "no UUID"),
        ({"cpu_model": "max kvm=off"}, "no processor of QEMU"),
        ({"nics": (Nic("52:54:00:00:00:01,x"),)}, "no MAC address"),
        ({"nics": (Nic("53:54:00:00:00:01"),)}, "no MAC address"),
        ({"nics": (Nic("52:54:00:00:00:01", (Port(0),)),)}, "port"),
        ({"nics": (Nic("52:54:00:00:00:01"), Nic("52:54:00:00:00:02"))}, "same port"),
        ({"seed": Path("/nowhere/seed.iso")}, "there is no file /nowhere/seed.iso"),
    ],
)
def test_what_cannot_be_a_machine_is_refused_with_a_sentence(plan, tmp_path, change, sentence):
    with pytest.raises(BadPlan, match=sentence):
        check_plan(replace(plan, **change), tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"node": "a,b"}, "none that QEMU takes"),
        ({"node": "x" * 32}, "none that QEMU takes"),
        ({"serial": "1,x=2"}, "serial number"),
        ({"path": Path("/nowhere/disk")}, "there is no disk /nowhere/disk"),
    ],
)
def test_a_disk_that_qemu_cannot_take_is_refused(plan, tmp_path, change, sentence):
    with pytest.raises(BadPlan, match=sentence):
        check_plan(replace(plan, disks=(replace(plan.disks[0], **change),)), tmp_path)


def test_a_disk_outside_of_the_folder_is_refused_also_behind_a_link(plan, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "disk")
    with pytest.raises(BadPlan, match="is not below"):
        check_plan(replace(plan, disks=(Disk("root", inside / "link"),)), inside)


def test_two_disks_of_one_name_are_refused(plan, tmp_path):
    with pytest.raises(BadPlan, match="same name"):
        check_plan(replace(plan, disks=plan.disks * 2), tmp_path)


def test_firmware_code_without_its_variables_is_refused(plan, tmp_path):
    with pytest.raises(BadPlan, match="its code and its variables"):
        check_plan(replace(plan, boot=FirmwareBoot(code=tmp_path / "kernel")), tmp_path)
