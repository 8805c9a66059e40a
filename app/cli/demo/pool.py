"""Act one: a pool becomes warm, a claim takes a VM of it, and the pool refills."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.cli.demo.client import Client, DemoFailed, Json
from app.cli.demo.words import in_percent, in_time, in_vms, quote, say
from app.errors import MalformedBody
from app.manifests.documents import read_documents
from app.manifests.requests import Resource
from app.manifests.translate import translate

_DOING: Final = ("planned", "creating", "booting", "releasing")


@dataclass(frozen=True, slots=True)
class PoolFile:
    """A pool that a file describes: its name, and the body of `PUT /v1/pools/{name}`."""

    name: str
    body: Json


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run measured, in seconds. `claim` is from the request to the answer; `backfill` is from the answer until the pool is full."""

    size: int
    warm_up: float
    cold_boot: float
    own_boot: float
    claim: float
    backfill: float


def read_pool(path: Path) -> PoolFile:
    """The pool that a manifest describes. Raises DemoFailed with the reason if it does not describe one."""
    try:
        documents = read_documents(path.read_bytes())
    except OSError as error:
        raise DemoFailed(f"{path} cannot be read: {error.strerror}. Name a pool's file with --pool.") from error
    except MalformedBody as error:
        raise DemoFailed(f"{path}: {error.detail}.") from error
    found = translate(documents, namespace="")
    if found.problems:
        raise DemoFailed(f"{path}: {found.problems[0].field}: {found.problems[0].message}.")
    requests = found.requests
    if len(requests) != 1 or requests[0].resource is not Resource.POOL:
        raise DemoFailed(f"{path} must have one document, of kind VirtualMachinePool.")
    pool = requests[0]
    if pool.body.get("size") == 0:
        raise DemoFailed(f"{path}: spec.size is 0, so that there is no VM to claim; set 1 or more.")
    return PoolFile(pool.name, pool.body)


async def show_pool(client: Client, pool: PoolFile, console: Console) -> None:
    path = f"/v1/pools/{pool.name}"
    began = time.perf_counter()
    written = await client.ask("PUT", path, pool.body)
    size = int(written["spec"]["size"])
    say(console, f"[bold]PUT {path}[/bold] asks for {in_vms(size)}:")
    full = await _watch(client, path, console, size=size)
    warm_up = time.perf_counter() - began

    claim, took = await claim_warm(client, pool.name)
    claimed = time.perf_counter()
    vm = claim["vm"]
    say(console, f"\n[bold]POST /v1/claim[/bold] hands out a running VM in [bold]{in_time(took)}[/bold]:")
    say(console, quote(f"{vm['name']} at {', '.join(vm['addresses'])} on {vm['node']}"), indent=2)
    await client.ask("DELETE", f"/v1/claims/{claim['id']}")
    say(
        console,
        "\n[bold]DELETE /v1/claims/…[/bold] releases the claim and destroys its VM. Meanwhile the pool refills:",
    )
    await _watch(client, path, console, size=size)
    measured = Measured(
        size=size,
        warm_up=warm_up,
        cold_boot=float(full["status"]["boot_seconds"]["p50"]),
        own_boot=float(claim["timings"]["boot"]),
        claim=took,
        backfill=time.perf_counter() - claimed,
    )
    console.print("", tabulate(measured))


def tabulate(measured: Measured) -> Table:
    """A table of what the run measured."""
    table = Table(box=box.SIMPLE_HEAVY, show_header=False, title="Measured in this run", title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    less = in_percent(1 - measured.claim / measured.cold_boot, digits=2)
    table.add_row(f"{in_vms(measured.size)} from nothing to warm", in_time(measured.warm_up))
    table.add_row("Cold boot, median (simulated)", in_time(measured.cold_boot))
    table.add_row("Cold boot of the claimed VM (simulated)", in_time(measured.own_boot))
    table.add_row("[bold]The claim[/bold]", f"[bold green]{in_time(measured.claim)}[/bold green]")
    table.add_row("Saving compared with the median cold boot", f"[bold green]{less}[/bold green]")
    table.add_row("Pool full again after the claim", in_time(measured.backfill))
    return table


async def claim_warm(client: Client, pool: str) -> tuple[Json, float]:
    """A claim from a full pool, and the seconds that it took. Raises DemoFailed if it got no VM at once."""
    began = time.perf_counter()
    claim = await client.ask("POST", "/v1/claim", {"pool": pool})
    if claim["vm"] is None:
        raise DemoFailed(f"the pool was full, but the claim is {claim['state']}: {claim['reason']}.")
    return claim, time.perf_counter() - began


async def watch_pool(
    client: Client, path: str, *, size: int, what: str, show: Callable[[Json], None] = lambda _: None
) -> Json:
    """Waits until the pool is full, and returns it. `show` gets its counts at every look."""

    def is_full(pool: Json) -> bool:
        counts = pool["status"]["counts"]
        show(counts)
        return bool(counts["ready"] >= size)

    return await client.watch(path, until=is_full, lost=_why_never_full, what=what)


def _why_never_full(pool: Json) -> str | None:
    """Why the pool will not fill by itself; None if it may."""
    status = pool["status"]
    if status["phase"] != "stalled":
        return None
    return str(status["reason"] or status["last_failure"] or "unknown reason")


async def _watch(client: Client, path: str, console: Console, *, size: int) -> Json:
    """Shows the pool until it is full, and returns it."""
    bar = Progress(
        TextColumn("  {task.completed}/{task.total} warm"),
        BarColumn(),
        TextColumn("{task.fields[doing]}"),
        TimeElapsedColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("", total=size, doing="")

        def show(counts: Json) -> None:
            doing = [f"{counts[state]} {state}" for state in _DOING if counts[state]]
            bar.update(task, completed=min(size, counts["ready"]), doing=", ".join(doing))

        return await watch_pool(client, path, size=size, what="the pool is not full", show=show)
