"""What the service costs at size: `python -m bench.size --vms 1000 --pools 100`.

Starts Postgres (fsync on), a dev cluster, an API and a worker, each in a process of its own and with production's settings; fills
the pools; then measures memory and CPU of the idle service, what lists take, how soon a VM that is ready can be claimed while
everything is listed every minute, how soon a claimed VM is replaced, and how long the service takes to be ready again. Prints a
table and writes `bench/results/size-VMS-POOLS.json`. On a busy machine the times say little, and the result says that it was one;
memory and CPU time hardly mind.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import orjson
import psutil
from rich.console import Console
from rich.table import Table

from app.config import Settings
from app.embedded.folder import lock_folder
from app.embedded.postgres import run_postgres
from app.store.database import driver_dsn
from app.store.migrations import upgrade
from bench.load import quantile
from bench.quiet import why_busy
from bench.size_fill import copy_objects, copy_rows, plan_copies
from tests.support.processes import QUICK, Cluster, Program, Service, until

_RESULTS = Path(__file__).parent / "results"
_VMS_ON_A_NODE = 200
_BOOT_SECONDS = 0.5
_TEMPLATE = {"image": "quay.io/containerdisks/fedora:42", "cpu": 1, "memory": "64Mi"}
_VMIS = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances"
_LISTS = ("pools?limit=100", "pools?limit=10", "vms?limit=100", "claims?limit=100", "claims?limit=100&pool=pool-0")
_MIB = 2**20

_STATES = "SELECT state, count(*) AS n FROM vm WHERE ended_at IS NULL GROUP BY 1"
_READY = "SELECT count(*) FROM ready_slot"
_TAKEN = "SELECT 1 FROM vm WHERE id = $1 AND ready_at IS NOT NULL"
_LISTED_AFTER = "SELECT 1 FROM watch WHERE name = 'virtualmachines' AND listed_at > $1 AND broken_since IS NULL"
# What was planned in the pool of each claim after it, in their order: the first replaces the first.
_PLANNED = """
    WITH claims AS (
        SELECT pool_id, bound_at, row_number() OVER (PARTITION BY pool_id ORDER BY bound_at) AS n
        FROM claim WHERE bound_at > $1),
    plans AS (
        SELECT pool_id, created_at, row_number() OVER (PARTITION BY pool_id ORDER BY created_at) AS n
        FROM vm WHERE created_at > $1)
    SELECT extract(epoch FROM p.created_at - c.bound_at)::float AS seconds
    FROM claims c JOIN plans p USING (pool_id, n)
"""


@dataclass(slots=True)
class Bench:
    """What runs, and what was measured: the name of a figure and its value."""

    vms: int
    pools: int
    session: aiohttp.ClientSession
    database: "asyncpg.Connection[Any]"
    cluster: Cluster
    api: Service
    worker: Service
    folder: Path
    say: Callable[[str], None]
    figures: dict[str, float] = field(default_factory=dict)

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        async with self.session.request(method, f"{self.api.url}/v1/{path}", json=body) as answer:
            if answer.status >= 300:
                raise SystemExit(f"{method} {path}: {answer.status} {await answer.text()}")
            return await answer.json() if answer.status != 204 else None

    async def note(self, name: str, value: float, unit: str = "") -> None:
        self.figures[f"{name}{f' ({unit})' if unit else ''}"] = round(value, 3)
        self.say(f"{name}: {value:.4g} {unit}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vms", type=int, default=1000)
    parser.add_argument("--pools", type=int, default=100)
    parser.add_argument("--idle-seconds", type=float, default=70, help="long enough for every kind to be listed again")
    parser.add_argument("--churn-seconds", type=float, default=70, help="how long VMs are claimed and replaced")
    parser.add_argument("--claims-per-second", type=float, default=4)
    given = parser.parse_args()
    console = Console()
    busy = why_busy("before the start")
    scratch = tempfile.TemporaryDirectory(prefix="emberpool-size-", dir="/var/tmp" if os.geteuid() == 0 else None)
    with scratch as folder:
        Path(folder).chmod(0o755)
        with lock_folder(Path(folder) / "data") as data, run_postgres(data) as postgres:
            upgrade(postgres.url())
            figures = asyncio.run(_measure(given, Path(folder), postgres.url(), console))
    busy = busy or why_busy("after the end")
    _print(console, given, figures, busy)
    _write(given, figures, busy)


async def _measure(given: argparse.Namespace, folder: Path, database_url: str, console: Console) -> dict[str, float]:
    async with _running(given, folder, database_url, lambda line: console.print(line, highlight=False)) as bench:
        await _fill(bench)
        await _restart(bench, bench.worker, "worker", _worker_is_ready)
        await _restart(bench, bench.api, "API", _api_is_ready)
        await _idle(bench, given.idle_seconds)
        await _lists(bench)
        await _churn(bench, given.churn_seconds, given.claims_per_second)
        for name, program in (("API", bench.api), ("worker", bench.worker)):
            await bench.note(f"{name} memory after churn", _memory(program), "MiB")
        return bench.figures


@asynccontextmanager
async def _running(
    given: argparse.Namespace, folder: Path, database_url: str, say: Callable[[str], None]
) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        cluster = Cluster(
            folder,
            cold_boot_seconds=_BOOT_SECONDS,
            nodes=given.vms // _VMS_ON_A_NODE + 3,
            arguments=["--node-cpu", "512", "--node-memory", "4Ti"],
        )
        stack.push_async_callback(cluster.close)
        await cluster.serve()
        as_served = {name: Settings.model_fields[name].default for name in QUICK}
        settings = {**as_served, "creates_per_second": 1000, "provision_concurrency": 16, "log_level": "warning"}
        api, worker = [
            Service(folder, role, database_url=database_url, kubeconfig=cluster.kubeconfig, role=role, **settings)
            for role in ("api", "worker")
        ]
        session = await stack.enter_async_context(aiohttp.ClientSession())
        database = await asyncpg.connect(driver_dsn(database_url))
        stack.push_async_callback(database.close)
        for service in (api, worker):
            stack.push_async_callback(service.close)
            await _serve(service)
        yield Bench(given.vms, given.pools, session, database, cluster, api, worker, folder, say)


async def _serve(service: Service) -> None:
    """Its log tells warnings only, so that it costs what it does in production: where it listens is asked of the system."""
    await service.start()

    async def listens() -> str | None:
        own = psutil.Process(service.pid)
        for process in (own, *own.children(recursive=True)):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    return f"http://127.0.0.1:{connection.laddr.port}"
        return None

    service.url = await until(listens, f"{service.name} listens", seconds=60)


async def _fill(bench: Bench) -> None:
    """One VM of each pool boots; see `size_fill`."""
    began = time.monotonic()
    sizes = {
        f"pool-{number}": bench.vms // bench.pools + (number < bench.vms % bench.pools) for number in range(bench.pools)
    }
    for name in sizes:
        await _write_pool(bench, name, 1)

    async def has_one_each() -> bool:
        return bool(await bench.database.fetchval(_READY) >= bench.pools)

    await until(has_one_each, "one VM of each pool is ready", seconds=120 + 5 * bench.pools, every=1)
    await bench.note("one VM of each pool after", time.monotonic() - began, "s")
    for program in (bench.worker, bench.cluster):
        program.terminate()
        await program.wait(seconds=60)
    copies = await plan_copies(bench.database, sizes)
    copy_objects(bench.folder / "cluster.sqlite", copies)
    await copy_rows(bench.database, copies)
    await bench.database.execute("VACUUM ANALYZE")
    for name, size in sizes.items():
        await _write_pool(bench, name, size)
    await bench.cluster.serve()
    await _serve(bench.worker)
    await until(partial(_is_settled, bench), "nothing is planned or removed", seconds=600, every=1)


async def _write_pool(bench: Bench, name: str, size: int) -> None:
    body = {"size": size, "template": _TEMPLATE, "boot_timeout_seconds": 3600}
    await bench.ask("PUT", f"pools/{name}", body)


async def _is_settled(bench: Bench) -> bool:
    states = {row["state"]: row["n"] for row in await bench.database.fetch(_STATES)}
    listed = await bench.database.fetchval("SELECT listed_at FROM watch WHERE name = 'virtualmachines'")
    if listed is not None and states.keys() - {"ready"}:
        raise SystemExit(f"the copies are not taken for VMs: {states}")
    return states == {"ready": bench.vms} and listed is not None


async def _restart(
    bench: Bench, service: Service, name: str, is_ready: Callable[[Bench, datetime], Awaitable[object]]
) -> None:
    service.terminate()
    await service.wait(seconds=60)
    before: datetime = await bench.database.fetchval("SELECT clock_timestamp()")
    began = time.monotonic()
    await _serve(service)
    await until(lambda: is_ready(bench, before), f"the {name} is ready", seconds=300)
    await bench.note(f"restart of the {name} to ready", time.monotonic() - began, "s")


async def _worker_is_ready(bench: Bench, before: datetime) -> object:
    """It has written a whole list."""
    return await bench.database.fetchval(_LISTED_AFTER, before)


async def _api_is_ready(bench: Bench, _before: datetime) -> object:
    try:
        async with bench.session.get(f"{bench.api.url}/readyz") as answer:
            return answer.status == 200 and (await answer.json())["status"] == "ready"
    except aiohttp.ClientError:
        return False


async def _idle(bench: Bench, seconds: float) -> None:
    await asyncio.sleep(5)
    programs = {"API": bench.api, "worker": bench.worker, "dev cluster": bench.cluster}
    before = {name: _cpu(program) for name, program in programs.items()}
    await asyncio.sleep(seconds)
    for name, program in programs.items():
        await bench.note(f"{name} idle CPU", 100 * (_cpu(program) - before[name]) / seconds, "% of a core")
        await bench.note(f"{name} memory", _memory(program), "MiB")


async def _lists(bench: Bench) -> None:
    for path in _LISTS:
        times = []
        for _ in range(30):
            began = time.perf_counter()
            await bench.ask("GET", path)
            times.append(1000 * (time.perf_counter() - began))
        await bench.note(f"GET /v1/{path} p50", statistics.median(times), "ms")
        await bench.note(f"GET /v1/{path} p99", quantile(sorted(times), 0.99), "ms")


async def _churn(bench: Bench, seconds: float, rate: float) -> None:
    """VMs are claimed from one pool after another, and released."""
    before: datetime = await bench.database.fetchval("SELECT clock_timestamp()")
    lags: list[float] = []
    watching = asyncio.create_task(_watch(bench, lags))
    claims: list[float] = []
    number, began = 0, time.monotonic()
    while time.monotonic() - began < seconds:
        at = time.perf_counter()
        claim = await bench.ask("POST", "claim", {"pool": f"pool-{number % bench.pools}", "wait_seconds": 30})
        claims.append(1000 * (time.perf_counter() - at))
        await bench.ask("DELETE", f"claims/{claim['id']}")
        number += 1
        await asyncio.sleep(max(0.0, number / rate - (time.monotonic() - began)))
    await asyncio.sleep(5)
    watching.cancel()
    (ended,) = await asyncio.gather(watching, return_exceptions=True)
    if isinstance(ended, Exception):
        raise ended
    planned = [1000 * row["seconds"] for row in await bench.database.fetch(_PLANNED, before) if row["seconds"] >= 0]
    for name, times in (("claim", claims), ("claim to planned", planned), ("ready to claimable", lags)):
        if not times:
            raise SystemExit(f"nothing was measured of {name}: {bench.worker.tail()}")
        ordered = sorted(times)
        for share, label in ((0.5, "p50"), (0.99, "p99"), (1, "max")):
            await bench.note(f"{name} {label}", quantile(ordered, share), "ms")
        bench.figures[f"{name} count"] = len(times)


async def _watch(bench: Bench, lags: list[float]) -> None:
    """Of each VM whose instance becomes ready: milliseconds until its row says so, seen from a third process."""
    asking = await asyncpg.connect(
        driver_dsn(str(bench.api.arguments[bench.api.arguments.index("--database-url") + 1]))
    )
    seen = {str(row["id"]) for row in await asking.fetch("SELECT id FROM vm WHERE ready_at IS NOT NULL")}
    queue: asyncio.Queue[tuple[str, float]] = asyncio.Queue()
    looking = asyncio.create_task(_look(asking, queue, lags))
    url = f"{bench.cluster.url}{_VMIS}?watch=true&resourceVersion={await _version(bench)}"
    try:
        async with bench.session.get(url, timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**20) as answer:
            async for line in answer.content:
                item = orjson.loads(line)["object"]
                vm_id = item["metadata"].get("labels", {}).get("emberpool.io/vm-id")
                conditions = item.get("status", {}).get("conditions", ())
                true = {each["type"] for each in conditions if each["status"] == "True"}
                if vm_id and vm_id not in seen and {"Ready", "AgentConnected"} <= true:
                    seen.add(vm_id)
                    queue.put_nowait((vm_id, time.perf_counter()))
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await asking.close()


async def _version(bench: Bench) -> str:
    async with bench.session.get(f"{bench.cluster.url}{_VMIS}?limit=1") as answer:
        return str((await answer.json())["metadata"]["resourceVersion"])


async def _look(
    asking: "asyncpg.Connection[Any]", queue: "asyncio.Queue[tuple[str, float]]", lags: list[float]
) -> None:
    while True:
        vm_id, since = await queue.get()
        while not await asking.fetchval(_TAKEN, vm_id):  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.001)
        lags.append(1000 * (time.perf_counter() - since))


def _memory(program: Program) -> float:
    return float(max(process.memory_info().rss for process in _processes(program)) / _MIB)


def _cpu(program: Program) -> float:
    return float(sum(sum(process.cpu_times()[:2]) for process in _processes(program)))


def _processes(program: Program) -> list[psutil.Process]:
    own = psutil.Process(program.pid)
    return [own, *own.children(recursive=True)]


def _print(console: Console, given: argparse.Namespace, figures: dict[str, float], busy: str | None) -> None:
    table = Table("figure", "value", title=f"{given.vms} VMs in {given.pools} pools; {_machine()}")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}")
    console.print(table)
    if busy:
        console.print(f"{busy}: the times say little")


def _write(given: argparse.Namespace, figures: dict[str, float], busy: str | None) -> None:
    _RESULTS.mkdir(exist_ok=True)
    result = {
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "busy": busy,
        "vms": given.vms,
        "pools": given.pools,
        "figures": figures,
    }
    path = _RESULTS / f"size-{given.vms}-{given.pools}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


def _machine() -> str:
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
