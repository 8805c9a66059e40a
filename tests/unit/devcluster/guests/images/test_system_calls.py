"""The program that makes system calls, run on this machine."""

import os
import platform
import subprocess
import sys

import pytest

from app.devcluster.guests.images import system_calls as calls

runs_here = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="the program is for Linux on x86-64, and this machine is not",
)


@pytest.fixture(name="run")
def _run(tmp_path):
    program = tmp_path / "helper"
    program.write_bytes(calls.helper())
    program.chmod(0o755)
    return lambda todo: subprocess.run([program], input=todo.encoded(), capture_output=True, timeout=60, check=False)


@runs_here
def test_a_file_is_written_with_its_mode(run, tmp_path):
    path = tmp_path / "key"
    todo = calls.CallList()
    todo.step("write a key")
    todo.write_file(str(path), b"x" * 5000, mode=0o600)

    done = run(todo)

    assert (done.returncode, done.stdout) == (0, b"")
    assert path.read_bytes() == b"x" * 5000
    assert path.stat().st_mode & 0o777 == 0o600


@runs_here
def test_a_call_that_fails_ends_the_program_with_its_step_and_its_reason(run, tmp_path):
    todo = calls.CallList()
    todo.step("write the first file")
    todo.write_file(str(tmp_path / "first"), b"1")
    todo.step("write the second file")
    todo.write_file(str(tmp_path / "missing/second"), b"2")
    todo.step("write the third file")
    todo.write_file(str(tmp_path / "third"), b"3")

    done = run(todo)

    assert (
        todo.failure(done.returncode, done.stdout)
        == "the guest could not write the second file: No such file or directory"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "helper"]


@runs_here
def test_a_call_that_may_fail_does_not_end_the_program(run, tmp_path):
    todo = calls.CallList()
    todo.step("write the file")
    todo.try_call(calls.OPEN, f"{tmp_path}/missing/file\0".encode(), os.O_RDONLY, 0)
    todo.write_file(str(tmp_path / "file"), b"1")

    assert run(todo).returncode == 0
    assert (tmp_path / "file").read_bytes() == b"1"


def test_an_exit_code_that_is_no_step_is_told_as_such():
    assert "ended with 127" in calls.CallList().failure(127, b"")


def test_a_list_that_the_program_cannot_hold_is_refused():
    todo = calls.CallList()
    todo.step("write too much")
    todo.write_file("/nowhere", bytes(calls.LARGEST))

    with pytest.raises(ValueError, match="the program holds"):
        todo.encoded()
