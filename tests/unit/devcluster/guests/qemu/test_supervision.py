"""The supervisor and what becomes of its processes, with ordinary programs in place of QEMU."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from app.devcluster.guests.qemu.errors import MachineGone, StartFailed
from app.devcluster.guests.qemu.supervision import Supervision
from tests.support.patience import PATIENCE
from tests.support.processes import is_alive, until

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(3600)"]


def order(folder: Path, name: str, command: list[str], *, files: int = 0, limits: dict[str, int] | None = None):
    return {
        "launch": name,
        "command": command,
        "files": files,
        "folder": str(folder),
        "errors": str(folder / f"{name}.errors"),
        "user": None,
        "groups": [],
        "limits": limits or {},
    }


async def gone(pid: int) -> bool:
    return not is_alive(pid)


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")


@pytest.fixture
async def supervision(tmp_path):
    found = Supervision([tmp_path / "run"])
    (tmp_path / "run").mkdir()
    yield found
    await found.close()


async def test_the_end_of_a_process_is_told_with_its_code(supervision, tmp_path):
    child = await supervision.launch(order(tmp_path, "a", ["/bin/sh", "-c", "echo said >&2; exit 3"]), [])
    assert await asyncio.wait_for(child.ended, PATIENCE) == 3
    assert (tmp_path / "a.errors").read_text() == "said\n"


async def test_a_program_that_is_not_there_is_a_sentence(supervision, tmp_path):
    with pytest.raises(StartFailed, match=r"QEMU could not be started: .*/no/such/program"):
        await supervision.launch(order(tmp_path, "a", ["/no/such/program"]), [])
    # The supervisor goes on.
    child = await supervision.launch(order(tmp_path, "b", ["/bin/sh", "-c", "exit 0"]), [])
    assert await asyncio.wait_for(child.ended, PATIENCE) == 0


async def test_open_files_are_handed_over_under_the_numbers_that_the_command_names(supervision, tmp_path):
    ours, theirs = socket.socketpair()
    with (tmp_path / "kept").open("wb") as file, theirs:
        script = "import os; os.write(@file1@, b'to-file'); os.write(@file0@, b'to-socket')"
        files = [theirs.fileno(), file.fileno()]
        child = await supervision.launch(order(tmp_path, "a", [sys.executable, "-S", "-c", script], files=2), files)
        assert await asyncio.wait_for(child.ended, PATIENCE) == 0
    assert (tmp_path / "kept").read_text() == "to-file"
    assert ours.recv(100) == b"to-socket"
    assert ours.recv(100) == b"", "nobody else has the other end open"
    ours.close()


async def test_a_process_runs_within_its_limits(supervision, tmp_path):
    limits = {"RLIMIT_NOFILE": 77, "RLIMIT_CORE": 0}
    child = await supervision.launch(
        order(tmp_path, "a", ["/bin/sh", "-c", "ulimit -n >&2; ulimit -c >&2"], limits=limits), []
    )
    await asyncio.wait_for(child.ended, PATIENCE)
    assert (tmp_path / "a.errors").read_text().split() == ["77", "0"]


async def test_a_killed_process_ends_by_the_signal_and_the_others_go_on(supervision, tmp_path):
    first = await supervision.launch(order(tmp_path, "a", SLEEP), [])
    second = await supervision.launch(order(tmp_path, "b", SLEEP), [])
    supervision.kill("a")
    assert await asyncio.wait_for(first.ended, PATIENCE) == -signal.SIGKILL
    assert not second.ended.done()


@linux
async def test_closing_ends_all_processes_and_removes_the_folders(supervision, tmp_path):
    child = await supervision.launch(order(tmp_path, "a", SLEEP), [])
    supervisor = supervision.pid
    await supervision.close()
    assert not is_alive(child.pid)
    assert not is_alive(supervisor)
    assert child.lost
    assert not (tmp_path / "run").exists()


@linux
async def test_no_process_outlives_a_killed_supervisor_and_the_next_launch_starts_another(supervision, tmp_path):
    child = await supervision.launch(order(tmp_path, "a", SLEEP), [])
    supervisor = supervision.pid
    os.kill(supervisor, signal.SIGKILL)
    await asyncio.wait_for(child.ended, PATIENCE)
    assert child.lost
    await until(lambda: gone(child.pid), "the process has ended with its supervisor")
    again = await supervision.launch(order(tmp_path, "a", SLEEP), [])
    assert supervision.pid != supervisor
    assert is_alive(again.pid)


@linux
async def test_a_launch_during_which_the_supervisor_dies_fails_with_a_sentence(supervision, tmp_path):
    await supervision.launch(order(tmp_path, "a", SLEEP), [])
    os.kill(supervision.pid, signal.SIGSTOP)
    launching = asyncio.create_task(supervision.launch(order(tmp_path, "b", SLEEP), []))
    await asyncio.sleep(0)
    os.kill(supervision.pid, signal.SIGKILL)
    with pytest.raises(MachineGone, match="start it again"):
        await asyncio.wait_for(launching, PATIENCE)


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_nothing_is_left_of_a_process_that_died_with_guests(tmp_path, number):
    """A process of ours is ended by a signal; its supervisor, its guest and its folder go as well."""
    (tmp_path / "run").mkdir()
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _OWNER, str(tmp_path)), stdout=asyncio.subprocess.PIPE, env={**os.environ}
    )
    supervisor, guest = map(int, (await asyncio.wait_for(owner.stdout.readline(), PATIENCE)).split())
    assert is_alive(supervisor)
    assert is_alive(guest)
    owner.send_signal(number)
    await owner.wait()
    await until(lambda: gone(supervisor), "the supervisor has ended")
    await until(lambda: gone(guest), "the guest has ended")
    assert not (tmp_path / "run").exists()


_OWNER = f"""
import asyncio, sys
from pathlib import Path
from app.devcluster.guests.qemu.supervision import Supervision

async def main():
    folder = Path(sys.argv[1])
    supervision = Supervision([folder / "run"])
    child = await supervision.launch(
        dict(launch="a", command={SLEEP!r}, files=0, folder=str(folder), errors=str(folder / "errors"), user=None, groups=[], limits={{}}), []
    )
    print(supervision.pid, child.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""
