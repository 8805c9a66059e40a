"""A claim for a shape with no pool: the whole service is killed at each stage of it and started again, and it ends with one VM."""

import asyncio
import contextlib

import aiohttp
import asyncpg
import pytest

from tests.support.processes import until
from tests.support.system_invariants import labels_of, list_vms, standing, violated

# What the rows say once the stage has begun. What earlier claims left is over by then.
STAGES = {
    "its place is written": "SELECT 1 FROM claim WHERE state = 'pending'",
    "its VM is planned": "SELECT 1 FROM vm WHERE ended_at IS NULL",
    "the cluster is asked": "SELECT 1 FROM vm WHERE ended_at IS NULL AND asked_at IS NOT NULL",
    "the cluster has it": "SELECT 1 FROM vm WHERE ended_at IS NULL AND uid IS NOT NULL",
    "it has its VM": "SELECT 1 FROM claim WHERE state = 'bound'",
}


@pytest.mark.timeout(900)  # it starts many processes, each of which takes a minute on a machine with much other work
async def test_killed_at_each_stage_it_ends_with_exactly_one_vm(session, cluster, replica, database_url):
    """One service for all stages, each with a shape of its own: to start a service costs more than all else here."""
    service = replica("one")
    await service.serve()
    connection = await asyncpg.connect(database_url)
    try:
        for number, (stage, has_begun) in enumerate(STAGES.items(), start=1):
            body = {"vm": {"image": f"registry.local/disk:{number}", "memory": "64Mi"}, "wait_seconds": 30}
            headers = {"Idempotency-Key": stage}
            asking = asyncio.create_task(post(session, service.url, body, headers))
            await until(lambda has_begun=has_begun: connection.fetchval(has_begun), stage, every=0.002)
            await service.kill()
            with contextlib.suppress(aiohttp.ClientError):
                await asking
            assert violated(await standing(connection)) == {}

            await service.serve()
            status, claim = await post(session, service.url, body, headers)
            assert (status, claim["state"]) == (201, "bound"), (stage, claim)
            await until(lambda: lives(connection, session, cluster, 1), f"killed when {stage}: one VM is left")
            assert await connection.fetchval("SELECT count(*) FROM claim") == number
            ((name, vm),) = (await list_vms(session, cluster.url)).items()
            assert name == claim["vm"]["name"]
            assert labels_of(vm)["emberpool.io/vm-id"] == claim["vm"]["id"]
            assert violated(await standing(connection)) == {}

            async with session.delete(f"{service.url}/v1/claims/{claim['id']}") as response:
                assert response.status == 200, await response.text()
            await until(lambda: lives(connection, session, cluster, 0), "the VM is gone")
    finally:
        await connection.close()


async def lives(connection, session, cluster, count):
    """So many VMs are claimed and in the cluster, and nothing is on its way."""
    states = [row["state"] for row in await connection.fetch("SELECT state FROM vm WHERE ended_at IS NULL")]
    return states == ["claimed"] * count and len(await list_vms(session, cluster.url)) == count


async def post(session, url, body, headers):
    async with session.post(f"{url}/v1/claim", json=body, headers=headers) as response:
        return response.status, await response.json()
