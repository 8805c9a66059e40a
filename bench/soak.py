"""The soak: pools under claims while everything around them fails, and at the end what must hold whatever happened.

`python -m bench.soak [--minutes 10] [--speed 10] [--claims-per-second 50] [--pools 20] [--seed 1]`, and `--help`. Minutes are
simulated ones: the dev cluster's durations are divided by `--speed`; the rate of claims is real. Exits with 1 where an
invariant does not hold. See bench/README.md.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
from rich.console import Console
from rich.live import Live
from rich.table import Table

from app.embedded.folder import lock_folder
from app.embedded.postgres import run_postgres
from app.store.migrations import upgrade
from bench.soak_delays import Delays
from bench.soak_invariants import LOGGED, at_the_end, logged
from bench.soak_scene import Scene
from bench.storm import BYSTANDER, Storm
from tests.support.processes import Cluster, NeverCame, Service, until
from tests.support.system_calls import Orders
from tests.support.system_clients import Clients, Habits
from tests.support.system_invariants import Findings, settled, standing, violated

RESULT = Path(__file__).parent / "results" / "soak.json"
COLD_BOOT_SECONDS = 30.0
BOOT_TIMEOUT_SECONDS = 20
"""Of wall time: far above a boot's, so that a busy machine's VMs are not taken for failed ones."""
SETTLE_SECONDS = 180.0
LOOK_SECONDS = 1.0
UNDER_WAY = 600
"""Errands at once, at most: clients wait for VMs, and what they would ask beyond that is counted as not sent."""

BESIDE = ("database connections cut", "cluster killed", "replica killed", "replica told to stop")
"""Faults that concern every claim, in the order in which a slow claim is put down to them."""

CREATED = "SELECT count(DISTINCT vm_id) FROM event WHERE type = 'vm.creating'"
ENDS = """
    SELECT split_part(type, '.', 2) AS state, count(*) FROM event WHERE type IN ('vm.failed', 'vm.lost', 'vm.deleted') GROUP BY 1
"""
WHY = """
    SELECT left(regexp_replace(data->>'reason', '[0-9][^ ]*', 'N', 'g'), 70) AS why, count(*) AS times FROM event
    WHERE type IN ('vm.failed', 'vm.lost') GROUP BY 1 ORDER BY 2 DESC LIMIT 12
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """Minutes are simulated ones, each 60 / `speed` seconds long; the rate is what the machine really has to carry."""

    minutes: float
    speed: float
    claims_per_second: float
    pools: int
    size: int
    replicas: int
    seed: int
    faults: bool

    @property
    def wall_seconds(self) -> float:
        return self.minutes * 60 / self.speed


@dataclass(slots=True)
class Soak:
    """What runs, and what was counted."""

    plan: Plan
    session: aiohttp.ClientSession
    cluster: Cluster
    replicas: list[Service]
    database: "asyncpg.Connection[Any]"
    clients: Clients
    storm: Storm
    scene: Scene
    bystander: "asyncpg.Connection[Any]"
    delays: Delays = field(default_factory=Delays)
    began: float = field(default_factory=time.monotonic)
    sent: int = 0
    not_sent: int = 0
    looks: int = 0
    seen: Findings = field(default_factory=dict)

    def addresses(self) -> list[str]:
        return [each.url for each in self.replicas if each.is_serving]


async def run(plan: Plan, console: Console, folder: Path, database_url: str) -> dict[str, Any]:
    async with set_up(plan, folder, database_url) as soak:
        await soak.scene.set_up(boot_timeout_seconds=BOOT_TIMEOUT_SECONDS)
        soak.began = time.monotonic()
        stop = asyncio.Event()
        parts = [
            asyncio.create_task(part)
            for part in (send(soak, stop), look(soak, stop), soak.delays.watch(soak.bystander, stop))
        ]
        if plan.faults:
            parts.append(asyncio.create_task(soak.storm.run(stop)))
            parts.append(asyncio.create_task(soak.scene.change(stop, speed=plan.speed)))
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            parts.append(asyncio.create_task(show(soak, live)))
            end = asyncio.create_task(asyncio.sleep(plan.wall_seconds))
            await asyncio.wait([end, *parts], return_when=asyncio.FIRST_COMPLETED)
            stop.set()
            await asyncio.gather(*parts[:-1])
            settling = time.monotonic()
            left = await settle(soak)
            parts[-1].cancel()
        return await report(soak, left, settled_after=time.monotonic() - settling)


@asynccontextmanager
async def set_up(plan: Plan, folder: Path, database_url: str) -> AsyncIterator[Soak]:
    async with AsyncExitStack() as stack:
        scale = f"{1 / plan.speed:g}"
        cluster = Cluster(
            folder,
            cold_boot_seconds=COLD_BOOT_SECONDS,
            nodes=6,
            arguments=["--time-scale", scale, "--node-cpu", "512", "--node-memory", "4Ti", "--seed", str(plan.seed)],
        )
        stack.push_async_callback(cluster.close)
        await cluster.serve()
        replicas = [
            Service(
                folder,
                f"replica-{number}",
                database_url=database_url,
                kubeconfig=cluster.kubeconfig,
                provision_concurrency=32,
                creates_per_second=1000,
                # Its defaults in simulated time, but where the machine's own slowness would be taken for a fault.
                relist_seconds=60 / plan.speed,
                watch_silence_seconds=max(6, 90 / plan.speed),
                watch_lease_seconds=4,
                work_lease_seconds=5,
                cluster_timeout_seconds=4,
                unready_grace_seconds=max(2, 20 / plan.speed),
                orphan_grace_seconds=max(8, 60 / plan.speed),
                preload_poll_seconds=0.5,
                preload_idle_seconds=max(2, 60 / plan.speed),
                preload_stall_seconds=max(20, 900 / plan.speed),
            )
            for number in range(plan.replicas)
        ]
        for replica in replicas:
            stack.push_async_callback(replica.close)
            await replica.serve()
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        database, cuts, bystander = [
            await asyncpg.connect(database_url, server_settings={"application_name": BYSTANDER}) for _ in range(3)
        ]
        for connection in (database, cuts, bystander):
            stack.push_async_callback(connection.close)
        habits = Habits(
            hold_seconds=(5 / plan.speed, 40 / plan.speed),
            wait_seconds=20 / plan.speed,
            doubled=0.02,
            forgetful=0.05,
            impatient=0.1,
        )

        def addresses() -> list[str]:
            return [each.url for each in replicas if each.is_serving]

        scene = Scene(session, addresses, plain=plan.pools, size=plan.size, seed=plan.seed)
        clients = Clients(session, addresses, scene.plain, seed=plan.seed, habits=habits, wish=scene.wish)
        storm = Storm(Orders(session, cluster.url), cluster, replicas, cuts, seed=plan.seed, speed=plan.speed)
        yield Soak(plan, session, cluster, replicas, database, clients, storm, scene, bystander)


async def send(soak: Soak, stop: asyncio.Event) -> None:
    """Errands at the rate that was asked for, at random moments, whether or not earlier ones have an answer; then their ends."""
    draw = random.Random(soak.plan.seed)
    under_way: set[asyncio.Task[None]] = set()
    due = time.monotonic()
    while not stop.is_set():
        due += draw.expovariate(soak.plan.claims_per_second)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        if len(under_way) >= UNDER_WAY:
            soak.not_sent += 1
            continue
        soak.sent += 1
        task = asyncio.create_task(soak.clients.errand())
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)


async def look(soak: Soak, stop: asyncio.Event) -> None:
    """What must hold at every instant, looked at in the middle of it all."""
    while not stop.is_set():
        note(soak, await standing(soak.database))
        await asyncio.sleep(LOOK_SECONDS)


def note(soak: Soak, found: Findings) -> None:
    soak.looks += 1
    for name, cases in found.items():
        kept = soak.seen.setdefault(name, [])
        kept += [case for case in cases if case not in kept][: 10 - len(kept)]


async def settle(soak: Soak) -> Findings:
    """Everything is in order again; what still keeps the service from being whole after its time."""
    await soak.storm.clear()
    await soak.scene.restore()
    services = [replica.url for replica in soak.replicas]
    left: Findings = {}

    async def is_whole() -> bool:
        nonlocal left
        cluster = soak.cluster.url
        left = await settled(soak.database, soak.session, cluster=cluster, services=services)
        left |= await at_the_end(soak.database, soak.session, cluster=cluster)
        return not violated(left)

    with suppress(NeverCame):
        await until(is_whole, "the service is whole again", seconds=SETTLE_SECONDS, every=0.5)
    note(soak, await standing(soak.database))
    return left


async def report(soak: Soak, left: Findings, *, settled_after: float) -> dict[str, Any]:
    plan, ledger = soak.plan, soak.clients.ledger
    contradictions = {"no two answers contradict each other": ledger.contradictions()}
    errors = {LOGGED: logged([replica.log for replica in soak.replicas])}
    invariants = {**soak.seen, **left, **contradictions, **errors}
    ends = {row["state"]: row["count"] for row in await soak.database.fetch(ENDS)}
    served = len(ledger.warm) + len(ledger.waited)
    return {
        "asked": asdict(plan),
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
        "seconds": {"load": round(plan.wall_seconds, 1), "settling": round(settled_after, 1)},
        "claims": {
            "sent": soak.sent,
            "not_sent": soak.not_sent,
            "served": served,
            "served_per_second": round(served / plan.wall_seconds, 1),
            "served_per_simulated_second": round(served / (plan.minutes * 60), 1),
            "outcomes": dict(ledger.outcomes.most_common()),
            "answers": dict(ledger.statuses.most_common()),
            "warm": percentiles([each.seconds for each in ledger.warm]),
            "warm_beside": warm_beside(soak),
            "waited": percentiles(ledger.waited),
            "paths": dict(ledger.paths.most_common()),
            "slowest": [
                {
                    "seconds": round(each.seconds, 2),
                    "wish": each.wish,
                    "began": round(each.began - soak.began, 1),
                    "replica": each.address,
                    "clients_late": round(soak.delays.late_between(each.began, each.began + each.seconds), 2),
                    "statements": soak.delays.statements_between(each.began, each.began + each.seconds),
                    "meanwhile": soak.storm.between(each.began, each.began + each.seconds),
                }
                for each in ledger.slowest()
            ],
        },
        "vms": {
            "created": await soak.database.fetchval(CREATED),
            **{state: ends.get(state, 0) for state in ("deleted", "failed", "lost")},
            "why": {row["why"]: row["times"] for row in await soak.database.fetch(WHY)},
        },
        "storm": dict(soak.storm.counts.most_common()),
        "changes": dict(soak.scene.counts.most_common()),
        "long_statements": soak.delays.longest_statements,
        "looks": soak.looks,
        "invariants": {name: cases or "ok" for name, cases in invariants.items()},
    }


def warm_beside(soak: Soak) -> dict[str, dict[str, float]]:
    """The warm claims apart by the first of `BESIDE` that was in force, or had ended less than two seconds before.

    A replica that starts reads everything anew and shares the machine with all others, so a kill shows for a while after it.
    """
    apart: dict[str, list[float]] = {name: [] for name in (*BESIDE, "other faults", "no fault")}
    for each in soak.clients.ledger.warm:
        faults = soak.storm.between(each.began - 2, each.began + each.seconds)
        beside = next((name for name in BESIDE if any(fault.startswith(name) for fault in faults)), None)
        apart[beside or ("other faults" if faults else "no fault")].append(each.seconds)
    return {name: percentiles(seconds) for name, seconds in apart.items()}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    if len(seconds) < 2:
        return {"count": len(seconds)}
    cuts = statistics.quantiles(seconds, n=100)
    return {"count": len(seconds), "p50_ms": round(cuts[49] * 1000, 2), "p99_ms": round(cuts[98] * 1000, 2)}


async def show(soak: Soak, live: Live) -> None:
    while True:
        ledger = soak.clients.ledger
        elapsed = time.monotonic() - soak.began
        table = Table(box=None, show_header=False)
        minutes = min(elapsed * soak.plan.speed / 60, soak.plan.minutes)
        over = " (settling)" if elapsed > soak.plan.wall_seconds else ""
        table.add_row("simulated", f"{minutes:.1f} of {soak.plan.minutes:g} minutes{over}")
        table.add_row("claims", f"{soak.sent} sent, {len(ledger.warm)} warm, {len(ledger.waited)} after a wait")
        table.add_row("ended", told(ledger.outcomes))
        table.add_row("in force", ", ".join(soak.storm.in_force) or "nothing")
        table.add_row("ordered", told(soak.storm.counts))
        table.add_row("violated", ", ".join(violated(soak.seen)) or "nothing")
        live.update(table)
        await asyncio.sleep(0.25)


def told(counts: Counter[str]) -> str:
    return ", ".join(f"{times} {name}" for name, times in counts.most_common(12)) or "nothing"


def print_result(console: Console, result: dict[str, Any]) -> None:
    table = Table(title="The soak", show_header=False)
    claims, vms = result["claims"], result["vms"]
    asked = result["asked"]
    table.add_row("simulated", f"{asked['minutes']:g} minutes at {asked['speed']:g} times real time")
    table.add_row(
        "claims", f"{claims['sent']} sent, {claims['served']} served ({claims['served_per_second']} a second)"
    )
    for name, times in claims["outcomes"].items():
        table.add_row(f"  {name}", str(times))
    for name in ("warm", "waited"):
        table.add_row(f"  {name}: p50, p99", f"{claims[name].get('p50_ms')} ms, {claims[name].get('p99_ms')} ms")
    for name, figures in claims["warm_beside"].items():
        table.add_row(
            f"    beside: {name}", f"{figures['count']}: {figures.get('p50_ms')} ms, {figures.get('p99_ms')} ms"
        )
    table.add_row(
        "VMs", f"{vms['created']} created, {vms['failed']} failed, {vms['lost']} lost, {vms['deleted']} deleted"
    )
    for why, times in vms["why"].items():
        table.add_row(f"  {why}", str(times))
    for name, times in result["storm"].items():
        table.add_row(f"ordered: {name}", str(times))
    for name, cases in result["invariants"].items():
        table.add_row(name, "[green]ok[/green]" if cases == "ok" else f"[red]violated[/red]: {cases[0]}")
    console.print(table)


def read_plan(arguments: Sequence[str] | None) -> tuple[Plan, Path, Path | None]:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="simulated")
    parser.add_argument("--speed", type=float, default=10, help="simulated seconds in one of ours")
    parser.add_argument("--claims-per-second", type=float, default=50, help="in real time")
    parser.add_argument("--pools", type=int, default=20)
    parser.add_argument("--size", type=int, default=20, help="of each pool")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep-logs", type=Path, help="a folder for what the processes logged")
    parser.add_argument("--no-faults", dest="faults", action="store_false")
    parser.add_argument("--result", type=Path, default=RESULT, help="where the figures go, as JSON")
    given = vars(parser.parse_args(arguments))
    result, logs = given.pop("result"), given.pop("keep_logs")
    return Plan(**given), result, logs


def main(arguments: Sequence[str] | None = None) -> int:
    plan, path, logs = read_plan(arguments)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="emberpool-soak-") as name:
        folder = Path(name)
        with lock_folder(folder) as held, run_postgres(held, fast=True) as postgres:
            upgrade(postgres.url())
            try:
                result = asyncio.run(run(plan, console, folder, postgres.url()))
            finally:
                if logs is not None:
                    logs.mkdir(parents=True, exist_ok=True)
                    for log in folder.glob("*.log"):
                        shutil.copy(log, logs)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print_result(console, result)
    return 1 if any(cases != "ok" for cases in result["invariants"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
