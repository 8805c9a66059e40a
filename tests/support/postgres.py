"""A real Postgres for the tests: one server a test process, one migrated template, and a clone of it for each test.

The server comes from the embedded wheel. `EMBERPOOL_TEST_POSTGRES_BIN` names the folder of another version's programs
(`/usr/lib/postgresql/15/bin` on Debian), which are then used instead. A server is never shared: what one test process has
open would hold back the events that another one waits for.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from app.embedded.folder import EmbeddedError, lock_folder
from app.embedded.postgres import Postgres, run_postgres, stop_leftover
from app.store.migrations import upgrade

_PREFIX = "emberpool-test-"
_TEMPLATE = "template_emberpool"
_GIVEN_PROGRAMS = os.environ.get("EMBERPOOL_TEST_POSTGRES_BIN")
_SECONDS = 30  # for a statement of milliseconds; Postgres itself gives a busy template or database 5 s


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server without durability, for this test process alone: under xdist each worker has its own, half a second each.

    Its folder stands directly in the system's temporary folder: where the tests run as root, every folder above a database
    is made readable to everyone, and those above pytest's own folders are not meant to be.
    """
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        if _GIVEN_PROGRAMS is not None:
            with _run_given(Path(_GIVEN_PROGRAMS), folder) as server:
                yield server
            return
        with lock_folder(folder) as held, run_postgres(held, fast=True) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template_database(postgres: Postgres) -> str:
    """The name of a database at the newest migration, which nobody may connect to while it is cloned."""
    postgres.ensure_database(_TEMPLATE)
    upgrade(postgres.url(_TEMPLATE))
    return _TEMPLATE


@pytest.fixture
async def database_url(postgres: Postgres, template_database: str) -> AsyncIterator[str]:
    """A libpq URL of a database of this test's own, at the newest migration; dropped after the test, whoever is connected."""
    async with clone_database(postgres, template_database) as url:
        yield url


@pytest.fixture
async def empty_database_url(postgres: Postgres) -> AsyncIterator[str]:
    """As `database_url`, but with nothing in it: for tests of the migrations themselves."""
    async with clone_database(postgres, "template0") as url:
        yield url


@contextlib.asynccontextmanager
async def clone_database(postgres: Postgres, template: str) -> AsyncIterator[str]:
    """FILE_COPY takes a third of WAL_LOG's time here: there is no durability whose checkpoints would cost."""
    name = f"test_{uuid.uuid4().hex}"
    await _execute(postgres, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
    try:
        yield postgres.url(name)
    finally:
        await _execute(postgres, f'DROP DATABASE "{name}" WITH (FORCE)')


async def _execute(postgres: Postgres, sql: str) -> None:
    connection = await asyncpg.connect(postgres.url("postgres"), timeout=_SECONDS, command_timeout=_SECONDS)
    try:
        await connection.execute(sql)
    finally:
        await connection.close(timeout=_SECONDS)


@contextlib.contextmanager
def _run_given(programs: Path, folder: Path) -> Iterator[Postgres]:
    """A server of these programs, on a socket in `folder`. Postgres refuses to run as root: then it runs as `postgres`."""
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    make = [
        programs / "initdb",
        "--pgdata",
        data,
        "--username",
        "postgres",
        "--auth",
        "trust",
        "--no-locale",
        "--no-sync",
    ]
    subprocess.run([*make, "--encoding", "UTF8"], user=user, check=True, capture_output=True)
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": folder,
        "max_connections": 200,
        "timezone": "UTC",
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([programs / "postgres", "-D", data, *options], user=user, stderr=log)
    try:
        while subprocess.run([programs / "pg_isready", "--quiet", "--host", folder], check=False).returncode != 0:
            assert server.poll() is None, (folder / "log").read_text(encoding="utf-8")
            time.sleep(0.05)
        yield Postgres(folder)
    finally:
        server.send_signal(signal.SIGQUIT)  # at once: its data dies with it
        server.wait(timeout=_SECONDS)


def _sweep() -> None:
    """Remove what killed test runs left: their folders are those that nobody holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # A folder without a process's id in its lock is just being made; one of another user's is not ours to remove.
        with contextlib.suppress(OSError, EmbeddedError):
            if (folder / "lock").read_text(encoding="utf-8"):
                with lock_folder(folder) as held:
                    stop_leftover(held)
                    shutil.rmtree(folder)
