"""The embedded Postgres as a laptop uses it: kept across restarts, taken over after a kill, one holder at a time."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from app.embedded.folder import FolderInUse, lock_folder
from app.embedded.postgres import PostgresFailed, describe_opening, run_postgres, stop_leftover
from tests.support.patience import PATIENCE

_DIES_HOLDING = """
import os, signal, sys
from pathlib import Path
from app.embedded.folder import lock_folder
from app.embedded.postgres import run_postgres
with lock_folder(Path(sys.argv[1])) as folder, run_postgres(folder, fast=sys.argv[2] == "fast") as postgres:
    print(folder.postgres.joinpath("postmaster.pid").read_text().splitlines()[0], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def path() -> Iterator[Path]:
    # Not pytest's tmp_path: as root, the folders above the data are opened to everyone.
    with tempfile.TemporaryDirectory(prefix="emberpool-embedded-test-") as made:
        yield Path(made) / "data"


@pytest.fixture(scope="module")
def original() -> Iterator[Path]:
    """The database of a folder that was used once: to copy it takes less than to make it."""
    with tempfile.TemporaryDirectory(prefix="emberpool-embedded-test-") as made:
        with lock_folder(Path(made) / "data") as folder, run_postgres(folder, fast=True):
            pass
        yield folder.postgres


@pytest.fixture
def used(path: Path, original: Path) -> Path:
    path.mkdir(mode=0o700)
    # With its owner, who is not us where the tests run as root.
    subprocess.run(["cp", "-a", original, path / "postgres"], check=True, timeout=60)
    return path


def leave_running(path: Path, speed: str) -> int:
    """Start a server in another process that is then killed; the server's process id."""
    command = [sys.executable, "-c", textwrap.dedent(_DIES_HOLDING), str(path), speed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return int(done.stdout)


def alive(pid: int) -> bool:
    try:
        # A zombie has ended: only its parent has not yet looked.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    """A server that has said that it stopped is a process for a moment longer."""
    end = time.monotonic() + PATIENCE
    while alive(pid):
        assert time.monotonic() < end, f"process {pid} still runs"
        time.sleep(0.01)


def postmaster(path: Path) -> int:
    return int((path / "postgres" / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])


async def fetch(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_data_outlives_a_restart_and_nothing_runs_between(path):
    with lock_folder(path) as folder, run_postgres(folder) as postgres:
        pid = postmaster(path)
        await fetch(postgres.url(), "CREATE TABLE kept AS SELECT 42 AS answer")
    wait_until_gone(pid)
    with lock_folder(path) as folder, run_postgres(folder) as postgres:
        assert await fetch(postgres.url(), "SELECT answer FROM kept") == 42


@pytest.mark.parametrize(("fast", "durable"), [(False, "on"), (True, "off")])
async def test_the_settings_are_ours(used, fast, durable):
    with lock_folder(used) as folder, run_postgres(folder, fast=fast) as postgres:
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            assert await fetch(postgres.url(), f"SHOW {name}") == durable
        assert await fetch(postgres.url(), "SHOW max_connections") == "200"
        assert await fetch(postgres.url(), "SHOW listen_addresses") == ""
        assert await fetch(postgres.url(), "SELECT datcollate FROM pg_database WHERE datname = 'emberpool'") == "C"


async def test_a_server_left_by_a_killed_process_is_taken_over_and_stopped_at_the_end(used):
    pid = leave_running(used, "durable")
    assert alive(pid)
    with lock_folder(used) as folder, run_postgres(folder) as postgres:
        assert postmaster(used) == pid
        assert await fetch(postgres.url(), "SELECT 1") == 1
    wait_until_gone(pid)


async def test_a_server_left_with_other_settings_is_restarted_with_the_asked_ones(used):
    pid = leave_running(used, "fast")
    with lock_folder(used) as folder, run_postgres(folder) as postgres:
        assert postmaster(used) != pid
        assert await fetch(postgres.url(), "SHOW fsync") == "on"


async def test_a_server_that_was_killed_itself_recovers(used):
    pid = leave_running(used, "durable")
    os.kill(pid, signal.SIGKILL)
    with lock_folder(used) as folder, run_postgres(folder) as postgres:
        assert await fetch(postgres.url(), "SELECT 1") == 1


async def test_a_pid_file_that_names_a_strangers_process_is_no_server(used):
    with lock_folder(used) as folder, run_postgres(folder):
        text = (folder.postgres / "postmaster.pid").read_text(encoding="utf-8")
    _, _, rest = text.partition("\n")
    stranger = f"{os.getpid()}\n{rest}"
    with lock_folder(used) as folder:
        (folder.postgres / "postmaster.pid").write_text(stranger, encoding="utf-8")
        with run_postgres(folder) as postgres:
            assert postmaster(used) != os.getpid()
            assert await fetch(postgres.url(), "SELECT 1") == 1


async def test_a_first_start_that_was_cut_short_is_begun_again(path):
    with lock_folder(path) as folder:
        folder.postgres.mkdir()
        (folder.postgres / "PG_VERSION").write_text("18\n", encoding="utf-8")
        (folder.path / "postgres.unfinished").touch()
        with run_postgres(folder, fast=True) as postgres:
            assert await fetch(postgres.url(), "SELECT 1") == 1


def test_a_strangers_files_are_left_alone(path):
    with lock_folder(path) as folder:
        folder.postgres.mkdir()
        (folder.postgres / "letters").write_text("dear reader", encoding="utf-8")
        with pytest.raises(PostgresFailed, match="holds files that Emberpool did not make"), run_postgres(folder):
            pass
        assert (folder.postgres / "letters").read_text(encoding="utf-8") == "dear reader"


def test_a_second_holder_is_told_who_has_the_folder(path):
    with lock_folder(path), pytest.raises(FolderInUse, match=f"in use by process {os.getpid()}"), lock_folder(path):
        pass


def test_a_folder_is_free_after_its_holder(path):
    for _ in range(2):
        with lock_folder(path) as folder:
            assert (folder.path / "lock").read_text(encoding="utf-8") == str(os.getpid())


def test_a_path_too_long_for_a_socket_is_refused_with_the_length(path):
    with lock_folder(path / ("d" * 100)) as folder:
        with (
            pytest.raises(PostgresFailed, match=r"has \d+ bytes, and a socket's path may have 103"),
            run_postgres(folder),
        ):
            pass
        assert not folder.postgres.exists()


@pytest.mark.parametrize("character", [" ", "$", ";", "&", "'", '"', "`", "*", ","])
def test_a_path_that_a_shell_would_read_otherwise_is_refused(path, character):
    with (
        lock_folder(path / f"a{character}b") as folder,
        pytest.raises(PostgresFailed, match=re.escape(f"has the character {character!r}")),
        run_postgres(folder),
    ):
        pass


async def test_a_path_with_letters_and_signs_beyond_the_usual_works(path):
    with lock_folder(path / "ünits+50%=a@b:c") as folder, run_postgres(folder, fast=True) as postgres:
        assert await fetch(postgres.url(), "SELECT current_database()") == "emberpool"


def test_a_leftover_is_stopped_at_once(used):
    pid = leave_running(used, "fast")
    with lock_folder(used) as folder:
        stop_leftover(folder)
        stop_leftover(folder)  # nothing left to stop is fine
    wait_until_gone(pid)


def test_what_root_opens_to_others_is_told_to_root_alone(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert str(closed) in describe_opening(closed / "data")
    closed.chmod(0o755)
    assert str(closed) not in (describe_opening(closed / "data") or "")
    closed.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert describe_opening(closed / "data") is None
