"""`emberpool demo`: everything the service does, once, before one pair of eyes.

It starts what `up` starts, in a folder that goes away with it, and is then a client like any other: all that it shows was
asked for and measured over HTTP.
"""

import asyncio
import math
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import uvloop
from pydantic import SecretStr
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from app.config import Role, Settings
from app.embedded.cluster import run_cluster
from app.embedded.folder import DataFolder, EmbeddedError, hold_folder
from app.embedded.postgres import describe_opening, run_postgres, stop_leftover
from app.errors import EmberpoolError, MalformedBody
from app.main import serve
from app.manifests.reading import read_yaml
from app.manifests.translating import translate
from app.manifests.wishes import Resource
from app.store import migrating

COLD_BOOT_SECONDS: Final = 15.0
"""Half of what a cold boot takes on the dev cluster otherwise, so that two rounds of boots fit into a minute."""
EXAMPLE: Final = Path(__file__).resolve().parents[1] / "examples" / "pool.yaml"
_PREFIX: Final = "emberpool-demo-"
_LOOK_SECONDS: Final = 0.2
_PATIENCE_SECONDS: Final = 60.0
"""A pool that is not full so long after three cold boots will not be."""

Json = dict[str, Any]


class DemoFailed(EmberpoolError):
    code = "demo-failed"
    title = "The demo cannot go on"


@dataclass(frozen=True, slots=True)
class PoolFile:
    """A pool as a file asks for it: its name, and the body of `PUT /v1/pools/{name}`."""

    name: str
    body: Json


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run measured, in seconds. `claim` is from the client's request to its answer; `backfill` from there to full."""

    size: int
    warm_up: float
    cold_boot: float
    own_boot: float
    claim: float
    backfill: float


def read_pool(path: Path) -> PoolFile:
    """The pool that a manifest describes. Raises DemoFailed where it describes none, and says why."""
    try:
        documents = read_yaml(path.read_bytes())
    except OSError as error:
        raise DemoFailed(f"{path} cannot be read: {error.strerror}. Name a pool's file with --pool.") from error
    except MalformedBody as error:
        raise DemoFailed(f"{path}: {error.detail}.") from error
    wishes, problems = translate(documents, namespace="")
    if problems:
        raise DemoFailed(f"{path}: {problems[0].field}: {problems[0].message}.")
    if len(wishes) != 1 or wishes[0].resource is not Resource.POOL:
        raise DemoFailed(f"{path} must hold one document, of kind VirtualMachinePool.")
    pool = wishes[0]
    if pool.body.get("size") == 0:
        raise DemoFailed(f"{path}: spec.size is 0, so that there would be no VM to claim; give 1 or more.")
    return PoolFile(pool.name, pool.body)


def play(settings: Settings, pool: PoolFile, console: Console, *, cold_boot_seconds: float, stay: bool) -> None:
    """The whole demo; where it is to `stay` it then serves until SIGINT or SIGTERM, and either ends it at any time.

    Raises DemoFailed, and what a part that cannot start says.
    """
    _say(console, "[bold]Emberpool[/bold]: VMs that are ready before they are asked for.")
    _say(
        console,
        f"The cluster here is a stand-in for KubeVirt: its VMs run nothing, and a cold boot is [bold]simulated[/bold] to take "
        f"{cold_boot_seconds:g} s. Postgres, the service and the times of its answers are real.\n",
    )
    opening = describe_opening(Path(tempfile.gettempdir()) / _PREFIX)
    if opening is not None:
        console.print(Text(opening + "\n", style="yellow"), soft_wrap=not console.is_terminal)
    with (
        _folder() as folder,
        console.status("Starting Postgres, the dev cluster and the service") as status,
        run_postgres(folder) as postgres,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        migrating.upgrade(postgres.url())
        own = settings.model_copy(
            update={"database_url": SecretStr(postgres.url()), "role": Role.ALL, "api_token": None}
        )
        runner.run(_perform(own, folder, pool, console, status, cold_boot_seconds=cold_boot_seconds, stay=stay))


def tabulate(measured: Measured) -> Table:
    """What a run measured, for people."""
    table = Table(box=box.SIMPLE_HEAVY, show_header=False, title="Measured in this run", title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    table.add_row(f"{_vms(measured.size)} from nothing to warm", _time(measured.warm_up))
    table.add_row("Cold boot, median (simulated)", _time(measured.cold_boot))
    table.add_row("Cold boot of the VM that was claimed (simulated)", _time(measured.own_boot))
    table.add_row("[bold]The claim[/bold]", f"[bold green]{_time(measured.claim)}[/bold green]")
    table.add_row("Less than the median cold boot by", f"[bold green]{_less(measured)}[/bold green]")
    table.add_row("Pool full again after the claim", _time(measured.backfill))
    return table


@contextmanager
def _folder() -> Iterator[DataFolder]:
    """A folder for this run alone, directly in the system's temporary folder, which every user may enter anyway."""
    _sweep()
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with hold_folder(path) as folder:
            yield folder
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _sweep() -> None:
    """Ends and removes what killed demos left: their folders are those that nobody holds."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # A folder without a process's id in its lock is just being made; one of another user's is not ours to remove.
        with suppress(OSError, EmbeddedError):
            if (path / "lock").read_text(encoding="utf-8"):
                with hold_folder(path) as folder:
                    stop_leftover(folder)
                    shutil.rmtree(path)


async def _perform(
    settings: Settings,
    folder: DataFolder,
    pool: PoolFile,
    console: Console,
    status: Status,
    *,
    cold_boot_seconds: float,
    stay: bool,
) -> None:
    stopping = asyncio.Event()
    async with _service(settings, folder, cold_boot_seconds=cold_boot_seconds, stopping=stopping) as address:
        status.stop()
        show = asyncio.create_task(_show(address, pool, console, patience=3 * cold_boot_seconds + _PATIENCE_SECONDS))
        ended = asyncio.create_task(stopping.wait())
        await asyncio.wait([show, ended], return_when=asyncio.FIRST_COMPLETED)
        if show.done():
            show.result()
            _say(console, f"OpenAPI UI: [bold]{address}/docs[/bold]")
            if stay:
                _say(console, "It serves until Ctrl-C, and then everything is removed.")
                await ended
        for task in (show, ended):
            task.cancel()
        await asyncio.gather(show, ended, return_exceptions=True)


@asynccontextmanager
async def _service(
    settings: Settings, folder: DataFolder, *, cold_boot_seconds: float, stopping: asyncio.Event
) -> AsyncIterator[str]:
    """The service on a dev cluster of its own, as `up` runs it; gives its address."""
    arguments = [] if settings.namespace == "default" else ["--namespace", settings.namespace]
    async with run_cluster(folder, cold_boot_seconds=cold_boot_seconds, arguments=arguments) as cluster:
        own = settings.model_copy(update={"kubeconfig": cluster.kubeconfig, "kube_context": None})
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(own, on_ready=ready.set_result, stopping=stopping))
        parts: list[asyncio.Future[Any]] = [serving, ready]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                await serving
                raise DemoFailed("it was stopped before the service had started.")
            yield ready.result()
        finally:
            stopping.set()
            await asyncio.wait([serving])
        await serving


async def _show(address: str, pool: PoolFile, console: Console, *, patience: float) -> None:
    path = f"/v1/pools/{pool.name}"
    # No proxy of the environment stands between a process and itself.
    async with httpx.AsyncClient(base_url=address, timeout=30, trust_env=False) as client:
        began = time.perf_counter()
        written = await _ask(client, "PUT", path, pool.body)
        size = int(written["spec"]["size"])
        _say(console, f"[bold]PUT {path}[/bold] asks for {_vms(size)}, warm:")
        full = await _watch(client, path, console, size=size, patience=patience)
        warm_up = time.perf_counter() - began

        began = time.perf_counter()
        claim = await _ask(client, "POST", "/v1/claim", {"pool": pool.name})
        claimed = time.perf_counter()
        vm = claim["vm"]
        if vm is None:
            raise DemoFailed(f"the pool was full, and yet the claim is {claim['state']}: {claim['reason']}.")
        _say(console, f"\n[bold]POST /v1/claim[/bold] hands out a running VM in [bold]{_time(claimed - began)}[/bold]:")
        _say(console, f"  {vm['name']} at {', '.join(vm['addresses'])} on {vm['node']}")
        await _ask(client, "DELETE", f"/v1/claims/{claim['id']}")
        _say(
            console,
            "\n[bold]DELETE /v1/claims/…[/bold] releases it. Its VM is destroyed, and the pool has refilled since the claim:",
        )
        await _watch(client, path, console, size=size, patience=patience)
        backfill = time.perf_counter() - claimed
    measured = Measured(
        size=size,
        warm_up=warm_up,
        cold_boot=float(full["status"]["boot_seconds"]["p50"]),
        own_boot=float(claim["timings"]["boot"]),
        claim=claimed - began,
        backfill=backfill,
    )
    console.print("", tabulate(measured))


async def _watch(client: httpx.AsyncClient, path: str, console: Console, *, size: int, patience: float) -> Json:
    """Shows the pool until it is full, and gives it as it is then. Raises DemoFailed where it will not be."""
    give_up = time.monotonic() + patience
    bar = Progress(
        TextColumn("  {task.completed}/{task.total} warm"),
        BarColumn(),
        TextColumn("{task.fields[doing]}"),
        TimeElapsedColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("", total=size, doing="")
        while True:
            pool = await _ask(client, "GET", path)
            status = pool["status"]
            counts = status["counts"]
            doing = [
                f"{counts[state]} {state}" for state in ("planned", "creating", "booting", "releasing") if counts[state]
            ]
            bar.update(task, completed=min(size, counts["ready"]), doing=", ".join(doing))
            if counts["ready"] >= size:
                return pool
            if status["phase"] == "stalled" or time.monotonic() > give_up:
                because = status["reason"] or status["last_failure"] or "no reason is known"
                raise DemoFailed(f"the pool is not full, and will not be soon: {because}.")
            await asyncio.sleep(_LOOK_SECONDS)


async def _ask(client: httpx.AsyncClient, method: str, path: str, body: Json | None = None) -> Json:
    """The answer's JSON. Raises DemoFailed, in the problem's own words where it is one."""
    try:
        answer = await client.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise DemoFailed(f"{method} {path} was not answered: {str(error) or type(error).__name__}.") from error
    found: Json = answer.json()
    if answer.is_error:
        raise DemoFailed(f"{method} {path} was answered with {answer.status_code} {found['code']}: {found['detail']}.")
    return found


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=not console.is_terminal)


def _vms(number: int) -> str:
    return "1 VM" if number == 1 else f"{number} VMs"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _less(measured: Measured) -> str:
    """Rounded down, so that it never says 100 %."""
    share = 1 - measured.claim / measured.cold_boot
    return f"{math.floor(share * 100_00) / 100:.2f} %"
