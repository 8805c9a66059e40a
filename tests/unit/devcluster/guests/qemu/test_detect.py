"""Which QEMU is taken: against programs of the test's own, which say and do what a QEMU would."""

import pytest

from app.devcluster.guests.qemu import detect
from app.devcluster.guests.qemu.detect import kvm_problem, probe_machines, read_version
from app.devcluster.guests.qemu.errors import MachinesUnavailable

PROBE_RAN = 85


def qemu_that(tmp_path, *, version="QEMU emulator version 7.2.22 (Debian 1:7.2)", tcg=PROBE_RAN, kvm=PROBE_RAN):
    program = tmp_path / "qemu"
    program.write_text(
        f"""#!/bin/sh
case "$*" in
  --version) echo '{version}'; echo 'Copyright';;
  *"accel kvm"*) echo 'kvm says no' >&2; exit {kvm};;
  *) echo 'tcg says no' >&2; exit {tcg};;
esac
"""
    )
    program.chmod(0o755)
    return str(program)


def test_a_version_is_read_with_and_without_its_last_number():
    assert read_version("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)") == (7, 2, 22)
    assert read_version("10.0") == (10, 0, 0)
    assert read_version("none") == ()


async def test_no_qemu_is_told_with_what_to_install():
    with pytest.raises(
        MachinesUnavailable, match=r"There is no qemu-that-is-nowhere here\. .*apt-get install qemu-system-x86"
    ):
        await probe_machines("qemu-that-is-nowhere")


async def test_a_qemu_that_is_too_old_is_told_with_its_version(tmp_path):
    program = qemu_that(tmp_path, version="QEMU emulator version 6.2.0")
    with pytest.raises(MachinesUnavailable, match=r"too old: 6\.2\.0; 7\.2 or newer"):
        await probe_machines(program)


async def test_a_qemu_that_runs_no_guest_is_told_with_what_it_said(tmp_path):
    with pytest.raises(MachinesUnavailable, match="runs no guest: tcg says no"):
        await probe_machines(qemu_that(tmp_path, tcg=1))


async def test_kvm_is_taken_where_a_guest_runs_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "kvm_problem", lambda _: "")
    found = await probe_machines(qemu_that(tmp_path))
    assert (found.acceleration, found.version, found.text) == ("kvm", (7, 2, 22), "7.2.22 (Debian 1:7.2)")


async def test_kvm_that_opens_and_runs_no_guest_is_passed_over_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "kvm_problem", lambda _: "")
    found = await probe_machines(qemu_that(tmp_path, kvm=1))
    assert found.acceleration == "tcg"
    assert (
        found.reason == "/dev/kvm opens, but a guest does not run with it (kvm says no), so guests are emulated (TCG)."
    )


async def test_a_processor_without_virtualisation_is_not_even_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "_cpu_flags", lambda: ["fpu", "sse2"])
    found = await probe_machines(qemu_that(tmp_path))
    assert found.acceleration == "tcg"
    assert "neither vmx nor svm" in found.reason


def test_a_missing_device_of_kvm_is_told_apart_from_a_processor_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "_KVM", tmp_path / "kvm")
    assert "neither vmx nor svm" in kvm_problem(["fpu"])
    assert "no /dev/kvm" in kvm_problem(["fpu", "svm"])
    (tmp_path / "kvm").touch()
    assert not kvm_problem(["vmx"])
