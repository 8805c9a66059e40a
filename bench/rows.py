"""The rows of the claim bench. Each gives figures that are ratios within its own rounds, with the bound they have to keep."""

import asyncio
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from app.domain.claims import ClaimRequest, NewClaim
from app.ids import new_id
from app.store.claims.warm import WarmClaimStore
from bench.load import Client, Load, hammer, quantile
from bench.rig import connected, cpu_seconds, fill, make_pool, postmaster, serve_api, serve_yardstick
from bench.waiters import serve_waiters

_SECONDS = 4
_BLOCK = 100


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: the median of `rounds`, and the bound that it has to keep (None: told, not held)."""

    row: str
    unit: str
    rounds: tuple[float, ...]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def value(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Half of the way between the best and the worst round."""
        return (max(self.rounds) - min(self.rounds)) / 2

    @property
    def is_missed(self) -> bool:
        """Whether the bound is missed by more than the rounds differ among themselves."""
        if self.at_least is not None:
            return self.value + self.spread < self.at_least
        return self.at_most is not None and self.value - self.spread > self.at_most


@dataclass(slots=True)
class Bench:
    """Where rows run: the database, a folder for logs, and how many rounds each has."""

    url: str
    folder: Path
    rounds: int
    size: int
    say: Callable[[str], None]
    curves: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)


async def throughput(bench: Bench) -> list[Figure]:
    """Claims a second over the empty FastAPI POST of the same round, at 8, 32 and 128 connections; then both at half load."""
    pool_id = await make_pool(bench.url, "throughput")
    found: dict[int, list[float]] = {8: [], 32: [], 128: []}
    halves: list[float] = []
    rates: list[float] = []
    costs: list[list[float]] = []  # microseconds: the yardstick's, the service's and Postgres'
    with ExitStack() as stack:
        api = stack.enter_context(serve_api(bench.url, bench.folder))
        yard = stack.enter_context(serve_yardstick(bench.folder))
        postgres = await postmaster(bench.url)
        for number in range(bench.rounds):
            for connections, ratios in found.items():
                await fill(bench.url, pool_id, 150_000)
                had = cpu_seconds(yard.process.pid)
                empty = _hammer(bench, yard.port, "/empty", connections)
                cost = [cpu_seconds(yard.process.pid) - had]
                had, had_postgres = cpu_seconds(api.process.pid), cpu_seconds(postgres)
                claims = _hammer(bench, api.port, "/v1/claim", connections)
                cost += [cpu_seconds(api.process.pid) - had, cpu_seconds(postgres) - had_postgres]
                ratios.append(claims.rate / empty.rate)
                bench.say(
                    f"round {number + 1}, {connections} connections: {claims.rate:.0f} claims/s, "
                    f"{empty.rate:.0f} empty POSTs/s, ratio {ratios[-1]:.2f}"
                )
                if connections == 32:
                    rates.append(claims.rate)
                    answered = (empty.rate, claims.rate, claims.rate)
                    costs.append([1e6 * own / rate / _SECONDS for own, rate in zip(cost, answered, strict=True)])
                    told = "  CPU: {:.0f} us an empty POST; {:.0f} us a claim, and {:.0f} in Postgres"
                    bench.say(told.format(*costs[-1]))
                    half_empty = _hammer(bench, yard.port, "/empty", connections, rate=empty.rate / 2)
                    half_claims = _hammer(bench, api.port, "/v1/claim", connections, rate=claims.rate / 2)
                    halves.append(half_claims.p99 / half_empty.p99)
                    bench.say(f"  at half load: p99 {half_claims.p99:.2f} ms over {half_empty.p99:.2f} ms")
    return [
        *(
            Figure(f"claims/s over the empty POST, {connections} connections", "ratio", tuple(ratios), at_least=bound)
            for (connections, ratios), bound in zip(found.items(), (None, 1.5, None), strict=True)
        ),
        Figure("claims/s, 32 connections (this machine)", "1/s", tuple(rates)),
        Figure("CPU of the process, an empty POST, 32 connections", "us", tuple(cost[0] for cost in costs)),
        Figure("CPU of the process, a claim, 32 connections", "us", tuple(cost[1] for cost in costs)),
        Figure("CPU of Postgres, a claim, 32 connections", "us", tuple(cost[2] for cost in costs)),
        Figure("claim p99 over the empty POST's p99, half load", "ratio", tuple(halves), at_most=2.0),
    ]


async def size_growth(bench: Bench) -> list[Figure]:
    """One claim at a time from pools of 100, 10,000 and 1 M ready VMs, in blocks that take turns."""
    sizes = [100, 10_000, bench.size]
    pools = {}
    for size in sizes:
        pools[size] = await make_pool(bench.url, f"size-{size}")
        bench.say(f"filling a pool with {size:,} ready VMs")
        await fill(bench.url, pools[size], size)
    with serve_api(bench.url, bench.folder) as api:
        clients = {size: Client(api.port, "/v1/claim", f'{{"pool": "size-{size}"}}') for size in sizes}

        async def top_up(size: int) -> None:
            await fill(bench.url, pools[size], _BLOCK)

        taken = await _take_turns(bench, clients, top_up)
    bench.curves["ready"] = [(size, *_medians(taken[size])) for size in sizes]
    small, large = taken[sizes[0]], taken[sizes[-1]]
    return [
        Figure(f"p50 growth, 100 to {bench.size:,} ready", "ratio", _ratios(large, small, 0.5), at_most=1.15),
        Figure(f"p99 growth, 100 to {bench.size:,} ready", "ratio", _ratios(large, small, 0.99), at_most=1.3),
    ]


async def history_growth(bench: Bench) -> list[Figure]:
    """The same pool shape fresh, and with 1 M claims behind it while one old snapshot is held open."""
    steps = [0, bench.size // 10, bench.size]
    pools = {}
    for step in steps:
        pools[step] = await make_pool(bench.url, f"history-{step}")
    async with connected(bench.url) as holder:
        await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await holder.fetchval("SELECT count(*) FROM pool")
        for step in steps[1:]:
            bench.say(f"churning {step:,} claims behind a held snapshot")
            await fill(bench.url, pools[step], step)
            await _churn(bench.url, pools[step], step)
        for step in steps:
            await fill(bench.url, pools[step], 10_000)
        with serve_api(bench.url, bench.folder) as api:
            clients = {step: Client(api.port, "/v1/claim", f'{{"pool": "history-{step}"}}') for step in steps}

            async def top_up(step: int) -> None:
                await fill(bench.url, pools[step], _BLOCK)

            taken = await _take_turns(bench, clients, top_up)
        await holder.execute("ROLLBACK")
    bench.curves["history"] = [(step, *_medians(taken[step])) for step in steps]
    name = f"growth under a held snapshot, {bench.size:,} claims behind"
    return [
        Figure(f"p50 {name}", "ratio", _ratios(taken[steps[-1]], taken[0], 0.5)),
        Figure(f"p99 {name}", "ratio", _ratios(taken[steps[-1]], taken[0], 0.99), at_most=1.3),
    ]


async def waiters(bench: Bench) -> list[Figure]:
    """1,000 requests wait in one pool while 200 VMs a second become ready: from ready to the waiter's answer."""
    p50s, p99s = [], []
    for number in range(bench.rounds):
        name = f"waiters-{number}"
        pool_id = await make_pool(bench.url, name)
        await fill(bench.url, pool_id, 1000, state="booting")
        with serve_api(bench.url, bench.folder) as api:
            took = await serve_waiters(bench.url, api.port, name, pool_id, count=1000, rate=200)
        p50s.append(quantile(took, 0.5))
        p99s.append(quantile(took, 0.99))
        bench.say(f"round {number + 1}: p50 {p50s[-1]:.2f} ms, p99 {p99s[-1]:.2f} ms")
    return [
        Figure("p50 from ready to a waiter's answer, 1,000 waiters, 200 VMs/s", "ms", tuple(p50s)),
        Figure("p99 from ready to a waiter's answer, 1,000 waiters, 200 VMs/s", "ms", tuple(p99s), at_most=10.0),
    ]


async def processes(bench: Bench) -> list[Figure]:
    """The claims of 1, 2 and 4 API processes on one database and one pool, all hammered at once."""
    pool_id = await make_pool(bench.url, "processes")
    found: dict[int, list[float]] = {2: [], 4: []}
    for number in range(bench.rounds):
        alone = 0.0
        for count in (1, 2, 4):
            await fill(bench.url, pool_id, 150_000)
            with ExitStack() as stack:
                served = [stack.enter_context(serve_api(bench.url, bench.folder)) for _ in range(count)]
                loads = await asyncio.gather(
                    *(asyncio.to_thread(_hammer, bench, api.port, "/v1/claim", 32, pool="processes") for api in served)
                )
            rate = sum(load.rate for load in loads)
            if count == 1:
                alone = rate
            else:
                found[count].append(rate / alone)
            bench.say(f"round {number + 1}: {count} processes, {rate:.0f} claims/s in all")
    return [
        Figure(f"claims/s of {count} API processes over one, same two cores", "ratio", tuple(ratios))
        for count, ratios in found.items()
    ]


def _hammer(
    bench: Bench, port: int, path: str, connections: int, *, rate: float | None = None, pool: str = "throughput"
) -> Load:
    body = f'{{"pool": "{pool}"}}' if path == "/v1/claim" else "{}"
    folder = bench.folder / f"wrk-{port}"
    folder.mkdir(exist_ok=True)
    load = hammer(port, path, connections=connections, seconds=_SECONDS, body=body, folder=folder, rate=rate)
    if load.refused:
        raise SystemExit(f"{load.refused} requests to {path} were refused: the figures would mean nothing")
    return load


Taken = list[list[float]]


async def _take_turns(bench: Bench, clients: dict[int, Client], top_up: Callable[[int], object]) -> dict[int, Taken]:
    """Blocks of claims from each pool in turn, topped up by as many before each; milliseconds, by pool and round."""
    taken: dict[int, Taken] = {key: [] for key in clients}
    for client in clients.values():
        for _ in range(20):
            client.post()  # the plan, the hint and the caches
    for number in range(bench.rounds):
        for rounds in taken.values():
            rounds.append([])
        for _ in range(15):
            for key, client in clients.items():
                await top_up(key)  # type: ignore[misc]
                taken[key][-1] += [client.post() for _ in range(_BLOCK)]
        said = ", ".join(
            f"{key:,}: p50 {quantile(t[-1], 0.5):.2f} p99 {quantile(t[-1], 0.99):.2f}" for key, t in taken.items()
        )
        bench.say(f"round {number + 1}, ms by pool: {said}")
    for client in clients.values():
        client.close()
    return taken


async def _churn(url: str, pool_id: UUID, count: int) -> None:
    """Claims `count` VMs as the service does, in its own statement."""
    warm_claims = WarmClaimStore(url, connections=1)
    request = ClaimRequest("bench", 0, 3600, {}, None, "")
    try:
        for start in range(0, count, 500):
            size = min(500, count - start)
            new = [NewClaim(new_id(), 3600, request) for _ in range(size)]
            outcomes = await warm_claims.claim(pool_id, new)
            if None in outcomes:
                raise SystemExit("the churn ran out of VMs")
    finally:
        await warm_claims.close()


def _ratios(after: Taken, before: Taken, share: float) -> tuple[float, ...]:
    return tuple(quantile(a, share) / quantile(b, share) for a, b in zip(after, before, strict=True))


def _medians(rounds: Taken) -> tuple[float, float]:
    return (
        statistics.median(quantile(one, 0.5) for one in rounds),
        statistics.median(quantile(one, 0.99) for one in rounds),
    )
