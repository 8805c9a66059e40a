"""What goes wrong during a soak: faults of the cluster, kills of processes, cut connections, drawn at random from a seed."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import asyncpg

from tests.support.processes import Cluster, Program, Service
from tests.support.system_calls import Orders

BYSTANDER = "emberpool-soak"
"""The application name of connections that are never cut: those of the soak itself."""
PAUSE_SECONDS = (2.0, 15.0)
AT_ONCE = 4

VMS = {"resource": "virtualmachines"}
CREATES = {**VMS, "verbs": ["create"]}
WRITES = {**VMS, "verbs": ["create", "delete", "patch"]}
OTHERS = ("virtualmachinepools", "virtualmachinesnapshots", "datavolumes", "persistentvolumeclaims")
WATCHES = {"resource": "virtualmachine*", "settings": {"running": True}, "count": 2}

# Name, the order, and how long it stands: simulated seconds.
FAULTS: Sequence[tuple[str, dict[str, Any], tuple[float, float]]] = (
    ("errors 500", {"kind": "error", **WRITES, "probability": 0.5, "settings": {"status": 500}}, (5, 40)),
    (
        "errors 429",
        {"kind": "error", **WRITES, "probability": 0.5, "settings": {"status": 429, "retry_after": 1}},
        (5, 30),
    ),
    ("lost requests", {"kind": "reset-before", **WRITES, "probability": 0.3}, (5, 40)),
    ("lost answers", {"kind": "reset-after", **WRITES, "probability": 0.3}, (5, 40)),
    ("slow writes", {"kind": "delay", **WRITES, "probability": 0.5, "settings": {"seconds": 0.3}}, (5, 40)),
    ("hung creates", {"kind": "hang", **CREATES, "count": 10}, (5, 20)),
    ("hung webhook", {"kind": "webhook-hang", "probability": 0.5}, (5, 30)),
    ("virt-api down", {"kind": "virt-api-down"}, (5, 30)),
    ("quota", {"kind": "quota", **VMS, "settings": {"limit": 200}}, (5, 20)),
    ("broken watch", {"kind": "watch-break", **WATCHES}, (5, 30)),
    ("silent watch", {"kind": "watch-silent", **WATCHES}, (20, 60)),
    ("expired watch", {"kind": "watch-expire", **WATCHES}, (5, 30)),
    ("VMs that never boot", {"kind": "never-boots", "probability": 0.1}, (20, 90)),
    ("VMs that fail to boot", {"kind": "boot-fails", "probability": 0.1}, (20, 90)),
    ("a template that fails", {"kind": "boot-fails", "name": "pool-00-*"}, (60, 120)),
    ("images that cannot be pulled", {"kind": "image-error", "probability": 0.1}, (20, 60)),
    ("guests that die", {"kind": "guest-dies", "probability": 0.05, "settings": {"seconds": 2}}, (20, 60)),
    ("guests that are unready", {"kind": "unready", "probability": 0.1}, (10, 40)),
    ("guests that flap", {"kind": "flapping", "probability": 0.1, "settings": {"seconds": 0.5}}, (10, 40)),
    ("agents that go", {"kind": "agent-lost", "probability": 0.1}, (10, 40)),
    ("imports that fail", {"kind": "import-fails", "probability": 0.5}, (10, 60)),
    ("imports that stall", {"kind": "import-stalls", "probability": 0.2}, (10, 40)),
    ("snapshots that fail", {"kind": "snapshot-fails", "probability": 0.5}, (20, 60)),
    ("snapshots that hang", {"kind": "snapshot-hangs", "probability": 0.5}, (20, 60)),
    ("claims that never bind", {"kind": "claim-never-binds", "probability": 0.3}, (20, 60)),
    ("clones that hang", {"kind": "clone-hangs", "probability": 0.3}, (20, 60)),
    *(
        (f"{kind} of {plural}", {"kind": kind, "resource": plural, "probability": 0.3}, (5.0, 40.0))
        for plural in OTHERS
        for kind in ("error", "reset-after")
    ),
)


class Storm:
    """`run` orders until its stop; `clear` then puts everything back in order. Durations are divided by `speed`."""

    def __init__(
        self,
        orders: Orders,
        cluster: Cluster,
        replicas: Sequence[Service],
        database: "asyncpg.Connection[Any]",
        *,
        seed: int,
        speed: float,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._orders = orders
        self._cluster = cluster
        self._replicas = replicas
        self._database = database
        self._random = random.Random(seed)
        self._speed = speed
        self._in_force: Counter[str] = Counter()
        self._history: list[tuple[str, float, float]] = []
        self._busy: set[Program] = set()

    @property
    def in_force(self) -> list[str]:
        return sorted(self._in_force)

    def between(self, began: float, ended: float) -> list[str]:
        """What was in force at some moment of that time (of `time.monotonic`), and is over, with when it was relative to its beginning."""
        return [
            f"{name} ({since - began:+.1f} to {until - began:+.1f} s)"
            for name, since, until in self._history
            if since < ended and until > began
        ]

    async def run(self, stop: asyncio.Event) -> None:
        """One after the other at random moments, some of them at the same time; returns once the last one is over."""
        under_way: set[asyncio.Task[None]] = set()
        while not stop.is_set():
            await self._let(PAUSE_SECONDS)
            if len(under_way) >= AT_ONCE:
                continue
            task = asyncio.create_task(self._draw())
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

    async def clear(self) -> None:
        """No fault in force, every node alive, every process up."""
        await self._orders.lift_all()
        for node in await self._orders.dead_nodes():
            await self._orders.revive_node(node)
        for replica in self._replicas:
            if not replica.is_running:
                await replica.serve()

    def _draw(self) -> Awaitable[None]:
        deeds: list[Callable[[], Awaitable[None]]] = [
            *(self._kill_replica,) * 5,
            self._stop_replica,
            *(self._kill_node,) * 3,
            self._restart_api_server,
            self._kill_cluster,
            self._cut_connections,
        ]
        number = self._random.randrange(len(FAULTS) + len(deeds))
        return deeds[number]() if number < len(deeds) else self._fault(*FAULTS[number - len(deeds)])

    async def _fault(self, name: str, order: dict[str, Any], stands: tuple[float, float]) -> None:
        async with self._in(name):
            with contextlib.suppress(AssertionError, aiohttp.ClientError):  # the cluster may be down, or new
                fault = await self._orders.order(**order)
                await self._let(stands)
                await self._orders.lift(fault)

    async def _kill_replica(self) -> None:
        await self._with_process(self._random.choice(self._replicas), "replica killed", self._kill)

    async def _stop_replica(self) -> None:
        await self._with_process(self._random.choice(self._replicas), "replica told to stop", self._stop)

    async def _kill_cluster(self) -> None:
        await self._with_process(self._cluster, "cluster killed", self._kill)

    async def _kill_node(self) -> None:
        node = f"node{self._random.randint(1, 6)}"
        async with self._in("node dead"):
            with contextlib.suppress(AssertionError, aiohttp.ClientError):
                await self._orders.kill_node(node)
                await self._let((20, 120))
            while True:
                with contextlib.suppress(AssertionError, aiohttp.ClientError):
                    await self._orders.revive_node(node)
                    return
                await self._let((1, 2))

    async def _restart_api_server(self) -> None:
        async with self._in("API server restarts"):
            with contextlib.suppress(AssertionError, aiohttp.ClientError):
                await self._orders.restart(down=5 / self._speed, starting=5 / self._speed)
                await self._let((10, 10))

    async def _cut_connections(self) -> None:
        async with self._in("database connections cut"):
            await self._database.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name <> $1",
                BYSTANDER,
            )

    async def _with_process(
        self, program: Service | Cluster, name: str, end: Callable[[Program], Awaitable[None]]
    ) -> None:
        """Ends the process and starts it again, unless that is being done to it already."""
        if program in self._busy:
            return
        self._busy.add(program)
        try:
            async with self._in(name):
                await end(program)
                await self._let((0.1, 10))
                await program.serve()
        finally:
            self._busy.discard(program)

    async def _kill(self, program: Program) -> None:
        await program.kill()

    async def _stop(self, program: Program) -> None:
        program.terminate()
        code = await program.wait(seconds=30)
        if code != 0:
            self.counts[f"replica told to stop: it ended with {code}"] += 1

    @contextlib.asynccontextmanager
    async def _in(self, name: str) -> AsyncIterator[None]:
        self.counts[name] += 1
        self._in_force[name] += 1
        began = time.monotonic()
        try:
            yield
        finally:
            self._in_force -= Counter([name])
            self._history.append((name, began, time.monotonic()))

    async def _let(self, bounds: tuple[float, float]) -> None:
        await asyncio.sleep(self._random.uniform(*bounds) / self._speed)
