"""Claims that describe their VM, and what each path costs, over HTTP on a dev cluster."""

import asyncio

import pytest

from app.domain.stages import STAGES
from tests.support.service import Refused, check, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def vm(name):
    """A shape of a test's own."""
    return {"image": f"registry.local/{name}:1", "memory": "64Mi"}


async def claim(server, name, *, headers=None, **body):
    return await server.client.post("/v1/claim", json={"vm": vm(name), **body}, headers=headers)


async def test_a_vm_is_made_for_it_and_the_answer_explains_itself(server):
    answer = await claim(server, "explains", wait_seconds=30, labels={"job": "1"})
    assert answer.status_code == 201
    told = answer.json()
    assert (told["state"], told["path"], told["pool"]) == ("bound", "cold", None)
    assert told["choice"]["path"] == "cold"
    assert [each["path"] for each in told["choice"]["considered"]] == ["pool", "snapshot", "preload", "cold"]
    assert told["choice"]["considered"][0]["why"] == "no pool has this shape"
    assert told["choice"]["tried"] == []
    assert told["vm"]["addresses"]

    async def measured():
        found = (await server.client.get(f"/v1/claims/{told['id']}")).json()
        return found if (found["timings"]["stages"] or {}).get("image") is not None else None

    stages = (await until(measured))["timings"]["stages"]
    assert tuple(stages) == STAGES
    assert all(seconds is not None for seconds in stages.values())
    found = (await server.client.get(f"/v1/vms/{told['vm']['id']}")).json()
    assert (found["pool"], found["path"], found["shape"]) == (None, "cold", told["shape"])
    assert {event["pool"] for event in found["history"]} == {None}
    listed = (await server.client.get("/v1/claims", params={"shape": told["shape"]})).json()["items"]
    assert [each["id"] for each in listed] == [told["id"]]

    renewed = await server.client.post(f"/v1/claims/{told['id']}/renew", json={"lease_seconds": 60})
    assert renewed.json()["lease_seconds"] == 60
    ended = await server.client.delete(f"/v1/claims/{told['id']}")
    assert ended.json()["state"] == "released"


async def test_a_described_claim_is_counted_once_under_its_path(server):
    async def count():
        metrics = (await server.client.get("/metrics")).text
        lines = [line for line in metrics.splitlines() if line.startswith('emberpool_vm_claims_total{path="cold"}')]
        return float(lines[0].rpartition(" ")[2]) if lines else 0.0

    before = await count()
    await claim(server, "counted", headers={"Idempotency-Key": "counted"})
    await claim(server, "counted", headers={"Idempotency-Key": "counted"})
    assert await count() == before + 1


async def test_without_a_wait_it_is_pending_and_can_be_waited_for(server):
    answer = await claim(server, "pending")
    assert answer.status_code == 202
    told = answer.json()
    assert answer.headers["location"] == f"/v1/claims/{told['id']}"
    assert told["estimate"]["basis"]
    waited = await server.client.get(f"/v1/claims/{told['id']}", params={"wait_seconds": 30})
    assert waited.json()["state"] == "bound"


async def test_a_pool_of_the_shape_serves_it_warm_whatever_its_vm_is_called(server):
    await server.fill("warm-for-shape", template={**vm("warm"), "labels": {"team": "a"}})
    answer = await server.client.post("/v1/claim", json={"vm": vm("warm")})
    assert answer.status_code == 201
    told = answer.json()
    assert (told["path"], told["pool"], told["choice"]["source"]) == ("pool", "warm-for-shape", "warm-for-shape")
    assert told["timings"]["wait"] == 0
    stored = (await server.client.get(f"/v1/claims/{told['id']}")).json()
    assert stored == told


async def test_the_next_claim_is_warm_where_it_is_remembered(server):
    first = (await claim(server, "remembered", wait_seconds=30, remember=True)).json()
    pool = first["remembered"]["pool"]
    assert first["remembered"]["preloads"]

    async def full():
        return (await server.pool(pool))["status"]["counts"]["ready"] == 1

    await until(full)
    second = (await claim(server, "remembered", remember=True)).json()
    assert (second["path"], second["pool"], second["remembered"]["pool"]) == ("pool", pool, pool)


async def test_a_key_stands_for_one_claim(server):
    headers = {"Idempotency-Key": "one-vm"}
    answers = await asyncio.gather(*(claim(server, "keyed", headers=headers, wait_seconds=30) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {201}
    (told,) = {answer.json()["id"] for answer in answers}
    again = await claim(server, "keyed", headers=headers, wait_seconds=30)
    assert (again.json()["id"], again.headers["idempotent-replayed"]) == (told, "true")
    other = await claim(server, "keyed", headers=headers, wait_seconds=1)
    check(other, Refused(422, "idempotency-key-reused"))


async def test_no_way_and_no_time(server):
    answer = await claim(server, "nowhere", paths=["pool", "snapshot"])
    problem = check(answer, Refused(503, "no-path", says="snapshot: no snapshot of this shape"))
    assert "cold: not among the paths" in problem["detail"]
    assert int(answer.headers["retry-after"]) > 0
    assert (await claim(server, "slow", wait_seconds=30)).status_code == 201
    answer = await claim(server, "slow", deadline_seconds=0.001)
    check(answer, Refused(503, "deadline-too-short", says="beyond the deadline"))
    assert "retry-after" not in answer.headers


async def test_released_while_it_waits_nothing_of_it_stays(server):
    told = (await claim(server, "dropped")).json()
    ended = await server.client.delete(f"/v1/claims/{told['id']}")
    assert ended.json()["state"] == "released"

    async def gone():
        vms = (await server.client.get("/v1/vms")).json()["items"]
        return not [each for each in vms if each["shape"] == told["shape"]]

    await until(gone)


async def test_hidden_pools_cannot_be_reached(server):
    told = (await claim(server, "hidden", wait_seconds=30)).json()
    name = told["vm"]["name"]
    async with server.services.db.begin() as tx:
        hidden = (
            await tx.exec_driver_sql(
                "SELECT p.name FROM pool p JOIN vm v ON v.pool_id = p.id WHERE v.name = $1", (name,)
            )
        ).scalar()
    assert hidden.startswith("shape.")
    assert (await server.client.get(f"/v1/pools/{hidden}")).status_code == 422
    assert (await server.client.delete(f"/v1/pools/{hidden}")).status_code == 422
    check(await server.claim(hidden), Refused(422, "invalid-request", "pool"))
    for path in ("/v1/vms", "/v1/claims", "/v1/events"):
        assert (await server.client.get(path, params={"pool": hidden})).json()["items"] == []
    assert hidden not in (await server.client.get("/v1/events", params={"limit": 500})).text


async def test_what_each_path_costs(server):
    assert (await claim(server, "another-shape", wait_seconds=30)).status_code == 201
    told = (await claim(server, "costs", wait_seconds=30)).json()
    page = (await server.client.get("/v1/paths", params={"shape": told["shape"]})).json()
    assert page["next"] is None
    by_path = {each["path"]: each for each in page["items"]}
    assert list(by_path) == ["pool", "memory", "snapshot", "preload", "cold"]
    cold = by_path["cold"]
    assert (cold["count"], cold["expected"], cold["saving"]) == (1, None, None)
    assert cold["p50"] == cold["p95"] > 0
    snapshot = by_path["snapshot"]
    assert (snapshot["count"], snapshot["p50"], snapshot["saving"], snapshot["expected"]) == (0, None, None, 0.7)
    assert snapshot["basis"] == "no data: no VM of this shape has used this path yet"

    await server.fill("costs", template=vm("costs"))
    assert (await claim(server, "costs")).json()["path"] == "pool"
    only = (await server.client.get("/v1/paths", params={"shape": told["shape"], "path": "pool"})).json()["items"]
    assert [(each["path"], each["count"], each["expected"]) for each in only] == [("pool", 1, 0.8)]
    assert only[0]["p50"] > 0, "what the service took for it"
    assert only[0]["saving"] < 1

    first = (await server.client.get("/v1/paths", params={"limit": 1})).json()
    assert [each["shape"] for each in first["items"][:5]] == [None] * 5
    assert first["items"][4]["count"] >= 2
    second = (await server.client.get("/v1/paths", params={"limit": 1, "after": first["next"]})).json()
    shapes = {each["shape"] for each in first["items"][5:]} | {each["shape"] for each in second["items"]}
    assert len(shapes) == 2
