"""A claim for a shape with no pool: the whole service is killed at each stage of it and started again, and it ends with one VM."""

import asyncio
import contextlib

import aiohttp
import asyncpg
import pytest

from tests.support.processes import until
from tests.support.system_invariants import labels_of, list_vms, standing, violated

SETTLED_SECONDS = 40

# What the rows say once the stage has begun.
STAGES = {
    "its place is written": "SELECT 1 FROM claim WHERE state = 'pending'",
    "its VM is planned": "SELECT 1 FROM vm",
    "the cluster is asked": "SELECT 1 FROM vm WHERE asked_at IS NOT NULL",
    "the cluster has it": "SELECT 1 FROM vm WHERE uid IS NOT NULL",
    "it has its VM": "SELECT 1 FROM claim WHERE state = 'bound'",
}


@pytest.mark.parametrize("stage", STAGES)
async def test_killed_at_each_stage_it_ends_with_exactly_one_vm(session, cluster, replica, database_url, stage):
    service = replica("one")
    await service.serve()
    body = {"vm": {"image": "registry.local/disk:1", "memory": "64Mi"}, "wait_seconds": 30}
    headers = {"Idempotency-Key": "one-vm"}
    connection = await asyncpg.connect(database_url)
    try:
        asking = asyncio.create_task(post(session, service.url, body, headers))
        await until(lambda: connection.fetchval(STAGES[stage]), stage, every=0.002)
        await service.kill()
        with contextlib.suppress(aiohttp.ClientError):
            await asking
        assert violated(await standing(connection)) == {}

        await service.serve()
        status, claim = await post(session, service.url, body, headers)
        assert (status, claim["state"]) == (201, "bound"), claim

        async def at_rest():
            return (
                not await connection.fetchval("SELECT count(*) FROM vm WHERE ended_at IS NULL AND state <> 'claimed'")
                and len(await list_vms(session, cluster.url)) == 1
            )

        await until(at_rest, "one VM is left, and nothing is on its way", seconds=SETTLED_SECONDS)
        assert await connection.fetchval("SELECT count(*) FROM claim") == 1
        ((name, vm),) = (await list_vms(session, cluster.url)).items()
        assert name == claim["vm"]["name"]
        assert labels_of(vm)["emberpool.io/vm-id"] == claim["vm"]["id"]
        assert violated(await standing(connection)) == {}
    finally:
        await connection.close()


async def post(session, url, body, headers):
    async with session.post(f"{url}/v1/claim", json=body, headers=headers) as response:
        return response.status, await response.json()
