"""Several API processes on one database, killed at any moment, and clients that repeat themselves or give up in the middle.

Every claim has one VM, every VM one claim, every key one answer, and no ready VM is stranded: one process that was never
started again can still claim the last.
"""

import asyncio
import contextlib
import random
from collections import Counter

import aiohttp
import asyncpg
import pytest

from app.store.database import Database
from tests.support import store_invariants as invariants
from tests.support.claim_callers import Callers
from tests.support.claim_replicas import write_kubeconfig
from tests.support.processes import Service, until
from tests.support.rows import fetch, make_pool, make_vms, scalar

SEED = 7_310
READY = 1_500
ENOUGH = (
    2_000  # claims after which the clients stop, whatever else is still to come: the rest has to be there in the end
)
CLIENTS = 12
KILLS = 3
CUTS = 12  # each of all connections that claims are made on
_HISTORY = "SELECT count(*) FROM claim"
_CUT = """
    SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'emberpool-claims'
"""


@pytest.fixture
async def replicas(tmp_path, database_url):
    """Three processes of their own; the first is never killed."""
    kubeconfig = write_kubeconfig(tmp_path)
    services = [
        Service(tmp_path, name, database_url=database_url, kubeconfig=kubeconfig, role="api", log_level="info")
        for name in ("survivor", "one", "two")
    ]
    try:
        await asyncio.gather(*(service.serve() for service in services))
        yield services
    finally:
        for service in services:
            await service.close()


async def test_exactly_once_whoever_is_killed_and_whoever_gives_up(database_url, replicas):
    draw = random.Random(SEED)
    db = Database(database_url)
    pool = await make_pool(db, auto_replenish=False)
    everything = {str(vm_id) for vm_id in await make_vms(db, pool, READY)}
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(db.close)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        connection = await asyncpg.connect(database_url)
        stack.push_async_callback(connection.close)

        storm = Storm(replicas, connection, draw)
        callers = Callers(session, "web", storm.addresses, draw)
        errands = plan(draw, storm.over)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CLIENTS):
                tasks.create_task(run(callers, errands))
            tasks.create_task(storm.blow())
        ledger = callers.ledger
        assert ledger.statuses["201"] > 10 * (KILLS + CUTS), ledger.statuses

        # Every key has one answer: also those whose client gave up, once somebody asks.
        used = await fetch(db, "SELECT idem_key FROM claim WHERE idem_key LIKE 'key-%' ORDER BY id")
        await asyncio.gather(*(callers.claim_with_key(row["idem_key"]) for row in used[-100:]))
        contradictions = {key: told for key, told in ledger.claims_of_key.items() if len(told) > 1}
        assert not contradictions
        stored = {
            (str(row["id"]), str(row["vm_id"])): row["idem_key"]
            for row in await fetch(db, "SELECT id, vm_id, idem_key FROM claim")
        }
        assert ledger.told <= stored.keys(), "nobody was told of a claim that is not there"
        for key, (told,) in ledger.claims_of_key.items():
            assert {stored[pair].partition("\x1f")[0] for pair in told} == {key}
        batches = Counter(key.partition("\x1f")[0] for key in stored.values() if key and "\x1f" in key)
        assert all(count == sum(len(told) for told in ledger.claims_of_key[key]) for key, count in batches.items())
        assert Counter(vm for _, vm in stored).most_common(1)[0][1] == 1, "every VM has one claim"
        await invariants.check(db)

        # No ready VM is stranded: the survivor hands out the rest.
        left = await scalar(db, "SELECT count(*) FROM ready_slot")
        assert left == READY - len(stored) > 0
        drained = await drain(session, replicas[0].url)
        assert len(drained) == left
        assert {*drained, *(vm for _, vm in stored)} == everything
        await invariants.check(db)


def plan(draw, over):
    """What the clients do until it is over. A key comes several times within a short while, from whoever has the errand."""
    number = 0
    while not over.is_set():
        number += 1
        kind = draw.choices(["claim", "key", "batch", "give up", "give up with key"], [3, 12, 1, 2, 3])[0]
        key = draw.randint(max(0, number - 40), number) // 4
        yield kind, key


async def run(callers, errands):
    for kind, key in errands:
        match kind:
            case "claim":
                await callers.claim()
            case "key":
                await callers.claim_with_key(f"key-{key}")
            case "batch":
                await callers.claim_many(f"batch-{key}", count=1 + key % 12)
            case "give up":
                await callers.give_up(None)
            case "give up with key":
                await callers.give_up(f"key-{key}")


class Storm:
    """Kills now a process, now all connections that claims are made on, each time after some more claims. Then it is `over`."""

    def __init__(self, replicas, connection, draw):
        self.over = asyncio.Event()
        self._survivor, *self._victims = replicas
        self._connection = connection
        self._draw = draw
        self._starting = {}

    def addresses(self):
        """Of all processes, also of one that is just being started: clients find out."""
        return [each.url for each in (self._survivor, *self._victims)]

    async def blow(self):
        blows = ["process"] * KILLS + ["connections"] * CUTS
        self._draw.shuffle(blows)
        try:
            for blow in blows:
                await self._let_work(self._draw.randint(5, 40))
                if blow == "connections":
                    await self._connection.execute(_CUT)
                else:
                    await self._kill()
        finally:
            self.over.set()
            await asyncio.gather(*self._starting.values())

    async def _let_work(self, claims):
        goal = await self._connection.fetchval(_HISTORY) + claims
        assert goal < ENOUGH, "the clients were through before the storm was"

        async def has_grown():
            return await self._connection.fetchval(_HISTORY) >= goal

        await until(has_grown, f"{claims} more claims", every=0.002)

    async def _kill(self):
        """One of those that serve, where any does."""
        serving = [
            each for each in self._victims if each.name not in self._starting or self._starting[each.name].done()
        ]
        victim = self._draw.choice(serving or self._victims)
        if victim.name in self._starting:
            await self._starting[victim.name]
        await victim.kill()
        self._starting[victim.name] = asyncio.create_task(victim.serve())


async def drain(session, url):
    """Claims through one process until "none" is the answer to all; the VMs."""
    taken = []

    async def claim():
        while True:
            async with session.post(f"{url}/v1/claim", json={"pool": "web"}) as response:
                told = await response.json()
            if response.status != 201:
                assert told["code"] == "no-warm-vm", told
                return
            taken.append(told["vm"]["id"])

    await asyncio.gather(*(claim() for _ in range(CLIENTS)))
    return taken
