"""Replicas of separate roles: what one leaves behind another takes up, at once where it left in order."""

import asyncio
import re
from typing import Final

import aiohttp
import asyncpg

from tests.support.processes import Service, until
from tests.support.system_calls import Calls, Orders
from tests.support.system_invariants import standing, violated

CREATES: Final = {"verbs": ["create"], "resource": "virtualmachines"}
NEVER: Final = 600  # seconds of a lease that must not be what another waited for


async def test_a_worker_takes_the_watch_over_from_one_that_was_killed(session, replica, database_url):
    api = replica("api", role="api")
    workers = [replica("first", role="worker"), replica("second", role="worker")]
    calls = Calls(session, await api.serve())
    for worker in workers:
        await worker.serve()
    await calls.put_pool("pool", size=3)
    await until(lambda: calls.is_full("pool", 3), "the pool is full")
    watching = await until(lambda: watchers(workers), "one watches")
    assert len(watching) == 1

    await watching[0].kill()
    standby = next(worker for worker in workers if worker is not watching[0])
    claim = await calls.claim("pool")

    await until(lambda: calls.is_full("pool", 3), "the other one sees the pool refill")
    assert await watchers([standby]) == [standby]
    assert (await calls.readiness())["status"] == "ready"
    assert (await calls.look(claim["id"]))["state"] == "bound"
    assert not {"pool.planned", "leader.elected"} & {event["event"] for event in api.events()}
    await watching[0].serve()  # a killed one comes back as a standby


async def watchers(workers: list[Service]) -> list[Service]:
    """Those that watch the cluster, or did."""
    return [
        each
        for each in workers
        if any(
            event.get("event") == "leader.elected" and event.get("lease") == "virtualmachines"
            for event in each.events()
        )
    ]


async def test_a_replica_told_to_stop_drains_and_leaves_nothing_that_another_must_wait_for(
    session, cluster, replica, database_url
):
    leases = {"watch_lease_seconds": NEVER, "work_lease_seconds": NEVER, "cluster_timeout_seconds": 3}
    leaving = replica("leaving", **leases)
    calls, orders = Calls(session, await leaving.serve()), Orders(session, cluster.url)
    await calls.put_pool("pool", size=4)
    await until(lambda: calls.is_full("pool", 4), "the pool is full")
    staying = replica("staying", **leases)
    await staying.serve()
    fault = await orders.order("delay", **CREATES, settings={"seconds": 1})
    for _ in range(4):
        await calls.claim("pool")
    await until(lambda: struck(orders, fault), "creates are under way")

    stream = asyncio.create_task(read_stream(session, leaving.url))
    waiting = asyncio.create_task(ask_and_wait(session, leaving.url))
    await until(lambda: count_waiting(calls), "a claim waits")
    leaving.terminate()

    assert await leaving.wait() == 0, leaving.tail()
    assert "data:" in await stream
    assert await waiting in {201, 202, 503}  # an answer, not a cut connection
    assert "stop.cancelled" not in {event["event"] for event in leaving.events()}
    connection = await asyncpg.connect(database_url)
    try:
        held = await connection.fetchval("SELECT count(*) FROM lease WHERE holder LIKE '%:' || $1", str(leaving.pid))
        assert held == 0
        calls = Calls(session, staying.url)
        await orders.lift_all()
        await until(lambda: calls.is_full("pool", 4), "the one that stays refills the pool")
        assert await watchers([staying]) == [staying]
        assert violated(await standing(connection)) == {}
    finally:
        await connection.close()


async def struck(orders: Orders, fault: str) -> int:
    return await orders.struck(fault)


async def count_waiting(calls: Calls) -> int:
    return int((await calls.pool("pool"))["counts"]["waiting"])


async def ask_and_wait(session: aiohttp.ClientSession, url: str) -> int:
    """The status of a claim that lets its request wait for longer than the replica has."""
    async with session.post(f"{url}/v1/claim", json={"pool": "pool", "wait_seconds": 60}) as response:
        await response.read()
        return response.status


async def read_stream(session: aiohttp.ClientSession, url: str) -> str:
    """All events that come until the stream ends; one that is cut raises."""
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "0-0"}
    async with session.get(f"{url}/v1/events", headers=headers) as response:
        assert response.status == 200, await response.text()
        return (await response.read()).decode()


async def test_claims_are_served_while_postgres_is_away_and_back(session, replica, tmp_path, database_url):
    """The way to Postgres is a socket in a folder: without the folder there is no Postgres."""
    folder = re.search(r"host=([^&]+)", database_url)[1]
    way = tmp_path / "pg"
    way.symlink_to(folder)
    service = replica("service", database_url=database_url.replace(folder, str(way)))
    calls = Calls(session, await service.serve())
    await calls.put_pool("pool", size=3)
    await until(lambda: calls.is_full("pool", 3), "the pool is full")
    kept = await calls.claim("pool")
    connection = await asyncpg.connect(database_url)
    try:
        way.unlink()
        await cut_connections(connection)
        await until(lambda: is_refused_without_database(calls), "a claim is told that nothing was changed")
        assert (await calls.readiness())["status"] == "unready"
        way.symlink_to(folder)

        await until(lambda: calls.is_full("pool", 3), "the pool refills")
        assert (await calls.look(kept["id"]))["state"] == "bound"
        assert (await calls.claim("pool"))["vm"]["name"] != kept["vm"]["name"]
        assert service.is_running
    finally:
        await connection.close()


async def is_refused_without_database(calls: Calls) -> bool:
    """Whether a claim is known to have changed nothing: one that was sent over a connection just cut is not known."""
    status, problem, headers = await calls.ask("POST", "/v1/claim", json={"pool": "pool"})
    assert status == 503, problem
    assert problem["code"] in {"database-unavailable", "outcome-unknown"}
    assert int(headers["Retry-After"]) > 0
    return problem["code"] == "database-unavailable"


async def cut_connections(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
