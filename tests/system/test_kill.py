"""Killed at any moment: replicas by SIGKILL again and again, the cluster and every database connection once, under load.

Afterwards no VM has two claims, no VM is in the cluster that no row knows, and the pools are back at their size.
"""

import asyncio
import contextlib
import random
from typing import Final

import aiohttp
import asyncpg
import pytest

from tests.support.processes import NeverCame, Service, until
from tests.support.system_clients import Clients, Habits
from tests.support.system_invariants import settled, standing, violated

SEED: Final = 20_260
KILLS: Final = 4
CLIENTS: Final = 8
SIZES: Final = {"busy": 20, "calm": 5}
HISTORY: Final = "SELECT count(*) FROM event"
TEMPLATE: Final = {"image": "registry.local/disk:1", "memory": "64Mi"}
WORK: Final = (20, 300)  # entries that the history grows by between two kills
WORK_SECONDS: Final = 3  # where it does not grow so far: nobody watches until a dead holder's lease is over


@pytest.mark.timeout(900)  # it starts many processes, each of which takes a minute on a machine with much other work
async def test_nothing_is_lost_and_nothing_doubled_however_often_it_is_killed(session, cluster, replica, database_url):
    draw = random.Random(SEED)
    replicas = [replica("one"), replica("two")]
    for service in replicas:
        await service.serve()
    for name, size in SIZES.items():
        pool = {"size": size, "min_available": 1, "template": TEMPLATE}
        async with session.put(f"{replicas[0].url}/v1/pools/{name}", json=pool) as response:
            assert response.status == 201, await response.text()

    stop = asyncio.Event()
    habits = Habits(hold_seconds=(0.02, 0.4), wait_seconds=1.0)
    clients = Clients(
        session, lambda: [each.url for each in replicas if each.is_running], [*SIZES], seed=SEED, habits=habits
    )
    connection = await asyncpg.connect(database_url)
    try:
        errands = [asyncio.create_task(clients.run(stop)) for _ in range(CLIENTS)]
        for kill in range(KILLS):
            await let_work(connection, draw.randint(*WORK))
            victim = draw.choice(replicas)
            await victim.kill()
            if kill == KILLS // 3:
                await cluster.kill()
                await cluster.serve()
            if kill == 2 * KILLS // 3:
                await cut_connections(connection)
            assert violated(await standing(connection)) == {}
            await victim.serve()
        stop.set()
        await asyncio.gather(*errands)

        await until(lambda: is_settled(connection, session, cluster.url, replicas), "all is at rest")
        assert violated(await standing(connection)) == {}
        assert clients.ledger.contradictions() == []
        assert clients.ledger.outcomes["not released in time"] == 0
        assert clients.ledger.outcomes["released"] > CLIENTS, clients.ledger.outcomes
        assert all(service.is_running for service in replicas)
    finally:
        stop.set()
        await connection.close()


async def let_work(connection: asyncpg.Connection, entries: int) -> None:
    """Until so much more was written down: so kills fall into work and not into pauses."""
    goal = await connection.fetchval(HISTORY) + entries

    async def has_grown() -> bool:
        return await connection.fetchval(HISTORY) >= goal

    with contextlib.suppress(NeverCame):
        await until(has_grown, f"{entries} more entries", seconds=WORK_SECONDS, every=0.005)


async def is_settled(
    connection: asyncpg.Connection, session: aiohttp.ClientSession, cluster: str, replicas: list[Service]
) -> bool:
    left = violated(await settled(connection, session, cluster=cluster, services=[each.url for each in replicas]))
    return not left


async def cut_connections(connection: asyncpg.Connection) -> None:
    """Ends every connection to the database but this one, as an operator or a failover does."""
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
