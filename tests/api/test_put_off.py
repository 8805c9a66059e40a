"""What puts the creation of VMs off is told by pools, by claims that wait, and by readiness, as long as it lasts."""

from contextlib import asynccontextmanager

import pytest

from tests.support.service import until

pytestmark = pytest.mark.asyncio(loop_scope="module")
CREATES = {"verbs": ["create"], "resource": "virtualmachines"}
FAULTS = {
    "virt-api is dead": ({"kind": "virt-api-down"}, "failed calling webhook"),
    "no answer": ({"kind": "hang", **CREATES}, "did not answer in time"),
    "no right": ({"kind": "forbidden", **CREATES}, 'cannot create resource "virtualmachines"'),
}


async def readiness(server):
    answer = await server.client.get("/readyz")
    assert answer.status_code == 200
    return answer.json()


def in_flight(counts):
    return sum(counts[state] for state in ("planned", "creating", "booting"))


@asynccontextmanager
async def ordered(cluster, fault):
    """Ends with the block, also where the test fails: the other tests have the same cluster."""
    cluster.faults.order(**fault)
    try:
        yield
    finally:
        cluster.faults.lift_all()


@pytest.mark.parametrize(("fault", "reason"), FAULTS.values(), ids=FAULTS)
async def test_pools_claims_and_readiness_say_it_and_nothing_is_planned_that_cannot_be_created(
    server, cluster, request, fault, reason
):
    number = list(FAULTS).index(request.node.callspec.id)
    full = f"full-{number}"
    await server.fill(full, size=1)
    async with ordered(cluster, fault):
        await server.claim_one(full)
        claim = (await server.claim(full, headers={"Idempotency-Key": f"{number}-0"})).json()

        async def told():
            pool = (await server.pool(full))["status"]
            pending = (await server.client.get(f"/v1/claims/{claim['id']}")).json()
            ready = await readiness(server)
            reasons = [pool["reason"] or "", pending["reason"], ready["creates"]["detail"]]
            since = all("no VM can be created since " in each for each in reasons)
            told = (pool["phase"], ready["status"], ready["creates"]["ok"]) == ("degraded", "degraded", False)
            return since and told and all(reason in each for each in reasons) and pool

        pool = await until(told)
        for n in range(1, 5):
            await server.claim(full, headers={"Idempotency-Key": f"{number}-{n}"})
        counts = (await until(told))["counts"]
        assert (counts["waiting"], in_flight(counts)) == (5, in_flight(pool["counts"]))

    async def passed():
        pool = (await server.pool(full))["status"]
        return pool["reason"] is None and pool["counts"]["claimed"] == 6 and (await readiness(server))["creates"]["ok"]

    await until(passed)
    await server.client.delete(f"/v1/pools/{full}", params={"force": "true"})
