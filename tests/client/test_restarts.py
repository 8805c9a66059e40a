"""The Python clients while the service is restarted."""

import asyncio

from tests.support.patience import PATIENCE
from tests.support.python_client import call, entered
from tests.support.service import bind, serve, until


async def claims_of(server, pool: str) -> list[dict]:
    return (await server.client.get("/v1/claims", params={"pool": pool})).json()["items"]


async def test_a_service_that_is_restarted_loses_no_claim_that_waits(database_url, dev_cluster, tmp_path, kind):
    async with serve(database_url, dev_cluster, tmp_path) as one, bind(one.app) as (_, port):
        await one.fill("narrow", max_vms=1)
        first = await one.claim_one("narrow")
        client = kind(f"http://127.0.0.1:{port}", patience=PATIENCE)
        waiting = asyncio.create_task(call(client.obtain, {"pool": "narrow"}, wait=PATIENCE, key="k"))

        async def in_the_queue() -> bool:
            return any(claim["state"] == "pending" for claim in await claims_of(one, "narrow"))

        await until(in_the_queue)
    async with serve(database_url, dev_cluster, tmp_path) as two, bind(two.app, port=port), entered(client):
        await two.client.delete(f"/v1/claims/{first['id']}")
        claim = await waiting
        assert claim["state"] == "bound"
        assert {each["id"] for each in await claims_of(two, "narrow")} == {first["id"], claim["id"]}
