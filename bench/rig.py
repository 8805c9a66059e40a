"""What the claim bench stands on: a durable embedded Postgres, pools filled by SQL, and served processes."""

import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import asyncpg
import psutil

from app.domain.pools import PoolSpec
from app.embedded.folder import lock_folder
from app.embedded.postgres import run_postgres
from app.store import migrations as migrating
from app.store.database import driver_dsn

_KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "none",
    "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
    "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:9"}}],
    "users": [{"name": "none", "user": {}}],
}

# As a pool of VMs stands once they have booted: in the order in which they became ready.
_FILL = """
WITH made AS (
    INSERT INTO vm (id, pool_id, name, state, revision, uid, vmi_uid, node, addresses, asked_at, ready_at, boot_seconds)
    SELECT uuidv7(), $1, 'bench-' || gen_random_uuid(), $3, 'r', gen_random_uuid(), gen_random_uuid(), 'node-1',
        ARRAY['10.0.0.1'], now(), CASE WHEN $3 = 'ready' THEN now() END, CASE WHEN $3 = 'ready' THEN 30 END
    FROM generate_series(1, $2::int) RETURNING id, pool_id, name, node, addresses, ready_at, boot_seconds)
INSERT INTO ready_slot (pool_id, seq, vm_id, name, node, addresses, ready_at, boot_seconds)
SELECT pool_id, nextval('ready_seq'), id, name, node, addresses, ready_at, boot_seconds FROM made WHERE $3 = 'ready' ORDER BY id
"""


@dataclass(frozen=True, slots=True)
class Served:
    """A process that serves on loopback."""

    port: int
    process: "subprocess.Popen[bytes]"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(driver_dsn(url), command_timeout=900)
    try:
        yield connection
    finally:
        await connection.close()


@contextmanager
def open_database() -> Iterator[tuple[str, Path]]:
    """A durable Postgres of its own, at the newest migration: its URL, and a folder for logs that goes with it."""
    with tempfile.TemporaryDirectory(prefix="emberpool-bench-", dir=_open_folder()) as scratch:
        Path(scratch).chmod(0o755)
        with lock_folder(Path(scratch) / "data") as folder, run_postgres(folder) as postgres:
            migrating.upgrade(postgres.url())
            asyncio.run(settle_in(postgres.url()))
            yield postgres.url(), Path(scratch)


def _open_folder() -> str | None:
    """As root Postgres runs as another user, who has to reach its data: a place that every user can enter already."""
    return "/var/tmp" if os.geteuid() == 0 else None


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


async def settle_in(url: str) -> None:
    """Brings a new server to where one is that has run for a while: with WAL files to use again.

    A new file of 16 MB is zeroed and synced by whoever needs it first, here in some 47 ms, twice a second at full load. A
    server that has been through its checkpoints renames old ones instead.
    """
    async with connected(url) as connection:
        await connection.execute("ALTER SYSTEM SET min_wal_size = '3GB'")
        await connection.execute("ALTER SYSTEM SET max_wal_size = '6GB'")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.execute("CREATE TABLE warm_up (filler text)")
        for _ in range(10):
            await connection.execute("INSERT INTO warm_up SELECT repeat('x', 1000) FROM generate_series(1, 100000)")
            await connection.execute("TRUNCATE warm_up")
        await connection.execute("DROP TABLE warm_up")
        await connection.execute("CHECKPOINT")


async def make_pool(url: str, name: str) -> UUID:
    spec = PoolSpec(size=0, template={"image": "none"}).model_dump_json()
    async with connected(url) as connection:
        pool_id: UUID = await connection.fetchval(
            "INSERT INTO pool (id, name, spec, vm_spec, revision) VALUES (uuidv7(), $1, $2, '{}', 'r') RETURNING id",
            name,
            spec,
        )
        await connection.execute("INSERT INTO pool_plan (pool_id) VALUES ($1)", pool_id)
    return pool_id


async def fill(url: str, pool_id: UUID, count: int, *, state: str = "ready") -> None:
    """Adds `count` VMs; a large fill is vacuumed and analysed, as autovacuum would have done by the time."""
    async with connected(url) as connection:
        for start in range(0, count, 100_000):
            await connection.execute(_FILL, pool_id, min(100_000, count - start), state)
        if count >= 10_000:
            for table in ("vm", "ready_slot", "claim"):
                await connection.execute(f"VACUUM ANALYZE {table}")
            await connection.execute("CHECKPOINT")


async def postmaster(url: str) -> int:
    """The process that all of the server's others are children of."""
    async with connected(url) as connection:
        parent: int = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()")).ppid()
    return parent


def cpu_seconds(pid: int) -> float:
    """CPU time that a process and its children that live have had so far, in the kernel and out of it.

    Of a connection that has ended meanwhile nothing is left: its share is missing.
    """
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    seconds: float = sum(one.user + one.system for one in times)
    return seconds


@contextmanager
def serve_api(url: str, folder: Path, **variables: str) -> Iterator[Served]:
    """One API process, without workers: what is measured is the claim, not the backfill. `variables`: of its environment."""
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps(_KUBECONFIG))
    port = free_port()
    command = ["-m", "app", "serve", "--role", "api", "--database-url", url, "--kubeconfig", str(kubeconfig)]
    with _served([*command, "--port", str(port)], port, "/healthz", folder / f"api-{port}.log", variables) as served:
        yield served


@contextmanager
def serve_yardstick(folder: Path) -> Iterator[Served]:
    port = free_port()
    with _served(["-m", "bench.yardstick", str(port)], port, "/openapi.json", folder / "yardstick.log") as served:
        yield served


@contextmanager
def _served(
    arguments: list[str], port: int, path: str, log: Path, variables: Mapping[str, str] | None = None
) -> Iterator[Served]:
    environment = {**os.environ, "EMBERPOOL_LOG_LEVEL": "warning", **(variables or {})}
    with log.open("wb") as out, subprocess.Popen([sys.executable, *arguments], stderr=out, env=environment) as process:
        try:
            deadline = time.monotonic() + 20
            while not _answers(port, path):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{' '.join(arguments)} did not start:\n{log.read_text()}")
                time.sleep(0.05)
            yield Served(port, process)
        finally:
            process.terminate()


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
