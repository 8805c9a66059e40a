"""Claims over HTTP: handed out, waited for, renewed, released, repeated."""

import asyncio
import uuid

import pytest

from app.domain.stages import STAGES
from tests.support.patience import PATIENCE
from tests.support.service import Refused, check, listen, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_warm_claim_says_all_that_its_row_does(server):
    await server.fill("warm", size=1)
    labels = {"job": "ci-1", "empty": "", "name with spaces": 'and "quotes"'}
    answer = await server.claim("warm", labels=labels, lease_seconds=60)
    assert answer.status_code == 201
    told = answer.json()
    stored = (await server.client.get(f"/v1/claims/{told['id']}")).json()
    assert told == stored
    assert (told["state"], told["path"], told["labels"]) == ("bound", "pool", labels)
    assert told["vm"]["node"]
    assert told["vm"]["addresses"]
    assert told["timings"]["boot"] > 0
    vm = (await server.client.get(f"/v1/vms/{told['vm']['id']}")).json()
    assert (vm["state"], vm["claim_id"], vm["name"]) == ("claimed", told["id"], told["vm"]["name"])


async def test_the_pool_refills_behind_a_claim_and_a_released_vm_is_destroyed(server):
    await server.fill("refills", size=1)
    first = await server.claim_one("refills")

    async def full():
        return (await server.pool("refills"))["status"]["phase"] == "ready"

    await until(full)
    second = await server.claim_one("refills")
    assert second["vm"]["id"] != first["vm"]["id"]

    released = await server.client.delete(f"/v1/claims/{first['id']}")
    assert (released.status_code, released.json()["state"]) == (200, "released")
    assert released.json()["reason"] == "released by its client"
    assert (await server.client.delete(f"/v1/claims/{first['id']}")).json() == released.json()

    async def destroyed():
        return (await server.client.get(f"/v1/vms/{first['vm']['id']}")).json()["state"] == "deleted"

    await until(destroyed)


async def test_without_a_warm_vm_the_claim_is_pending_and_gets_the_next(server):
    await server.put("pending", size=0)
    answer = await server.claim("pending")
    assert answer.status_code == 202
    claim = answer.json()
    assert answer.headers["location"] == f"/v1/claims/{claim['id']}"
    assert (claim["state"], claim["vm"]) == ("pending", None)
    assert "has no ready VM" in claim["reason"]
    assert claim["estimate"]["seconds"] > 0
    assert claim["estimate"]["basis"]
    check(
        await server.client.post(f"/v1/claims/{claim['id']}/renew"),
        Refused(409, "conflict", says="wait until it is bound"),
    )
    waited = (await server.client.get(answer.headers["location"], params={"wait_seconds": 30})).json()
    assert (waited["state"], waited["id"]) == ("bound", claim["id"])
    assert waited["timings"]["wait"] > 0


async def test_a_request_can_wait_for_the_next_vm(server):
    await server.put("waits", size=0)
    answer = await server.claim("waits", wait_seconds=30)
    assert (answer.status_code, answer.json()["state"]) == (201, "bound")


async def test_a_lease_is_extended_from_now_on(server):
    await server.fill("leases", size=1, default_lease_seconds=60, max_lease_seconds=600)
    claim = await server.claim_one("leases")
    assert claim["lease_seconds"] == 60
    longer = (await server.client.post(f"/v1/claims/{claim['id']}/renew", json={"lease_seconds": 600})).json()
    assert longer["lease_seconds"] == 600
    assert longer["lease_expires_at"] > claim["lease_expires_at"]
    same = (await server.client.post(f"/v1/claims/{claim['id']}/renew")).json()
    assert same["lease_seconds"] == 600
    assert same["lease_expires_at"] > longer["lease_expires_at"]
    check(
        await server.client.post(f"/v1/claims/{claim['id']}/renew", json={"lease_seconds": 601}),
        Refused(422, "lease-too-long", "lease_seconds", says="up to 600 s"),
    )


async def test_a_lease_that_ends_releases_by_itself(server):
    await server.fill("ends", size=1)
    claim = await server.claim_one("ends", lease_seconds=1)

    async def expired():
        found = (await server.client.get(f"/v1/claims/{claim['id']}")).json()
        return found["state"] == "expired" and found

    ended = await until(expired)
    assert ended["ended_at"]
    check(
        await server.client.post(f"/v1/claims/{claim['id']}/renew"), Refused(409, "claim-ended", says="claim another")
    )


async def test_the_same_key_gets_the_same_claim(server):
    await server.fill("keyed", size=2)
    key = {"Idempotency-Key": str(uuid.uuid4())}
    answers = await asyncio.gather(*(server.claim("keyed", headers=key, labels={"n": "1"}) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {201}
    (one,) = {answer.json()["id"] for answer in answers}
    check(
        await server.claim("keyed", headers=key, labels={"n": "2"}),
        Refused(422, "idempotency-key-reused", says=f"belongs to claim {one}"),
    )
    replayed = await server.claim("keyed", headers=key, labels={"n": "1"})
    assert replayed.headers["idempotent-replayed"] == "true"

    await server.client.delete(f"/v1/claims/{one}")
    ended = await server.claim("keyed", headers=key, labels={"n": "1"})
    assert (ended.status_code, ended.json()["id"], ended.json()["state"]) == (200, one, "released")


async def test_a_key_that_is_none_is_refused(server):
    await server.put("keyless", size=0)
    for key in ("", "x" * 256):
        check(
            await server.claim("keyless", headers={"Idempotency-Key": key}),
            Refused(422, "invalid-request", "Idempotency-Key", says="255 printable characters"),
        )


async def test_claims_are_listed_by_page_label_pool_and_state(server):
    await server.fill("listed", size=3)
    claims = [await server.claim_one("listed", labels={"job": f"l{n}", "all": "yes"}) for n in range(3)]
    newest_first = [claim["id"] for claim in reversed(claims)]

    async def listed(**params):
        answer = await server.client.get("/v1/claims", params={"pool": "listed", **params})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        return [claim["id"] for claim in page["items"]], page["next"]

    assert await listed() == (newest_first, None)
    first, after = await listed(limit=2)
    assert first == newest_first[:2]
    assert await listed(limit=2, after=after) == (newest_first[2:], None)
    assert await listed(label="job=l1") == ([claims[1]["id"]], None)
    assert await listed(label="all=yes") == (newest_first, None)
    assert await listed(label="all=no") == ([], None)
    assert await listed(state="pending") == ([], None)
    check(
        await server.client.get("/v1/claims", params={"label": "job"}),
        Refused(422, "invalid-request", "label", says="name=value"),
    )


async def test_a_client_that_leaves_frees_its_place(server):
    await server.put("left", size=0, max_vms=0)
    async with listen(server.app) as client:
        asking = asyncio.create_task(
            client.post("/v1/claim", json={"pool": "left", "wait_seconds": 60}, timeout=PATIENCE)
        )

        async def claims():
            return (await server.client.get("/v1/claims", params={"pool": "left"})).json()["items"]

        (waiting,) = await until(claims)
        assert waiting["state"] == "pending"
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

        async def freed():
            (claim,) = await claims()
            return claim["state"] == "failed" and claim

        assert (await until(freed))["reason"] == "nobody waits for it any more"
    assert (await server.pool("left"))["status"]["counts"]["waiting"] == 0


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/renew")])
async def test_a_claim_that_does_not_exist(server, method, path):
    unknown = uuid.uuid4()
    check(
        await server.client.request(method, f"/v1/claims/{unknown}{path}"),
        Refused(404, "claim-not-found", says=str(unknown)),
    )


async def test_a_vm_tells_its_history(server):
    await server.fill("history", size=1)
    claim = await server.claim_one("history")
    vm = (await server.client.get(f"/v1/vms/{claim['vm']['id']}")).json()
    assert [event["type"] for event in vm["history"]][:3] == ["vm.planned", "vm.creating", "vm.booting"]
    assert "vm.ready" in [event["type"] for event in vm["history"]]
    assert tuple(vm["stages"]) == STAGES
    assert vm["stages"]["queue"] > 0
    assert vm["boot_seconds"] == claim["timings"]["boot"]


async def test_vms_are_listed_by_page_pool_and_state(server):
    await server.fill("machines", size=2)
    params = {"pool": "machines", "limit": 1}
    first = (await server.client.get("/v1/vms", params=params)).json()
    second = (await server.client.get("/v1/vms", params={**params, "after": first["next"]})).json()
    assert second["next"] is None
    assert len({vm["id"] for page in (first, second) for vm in page["items"]}) == 2
    ready = (await server.client.get("/v1/vms", params={"pool": "machines", "state": "ready"})).json()["items"]
    assert len(ready) == 2
    assert (await server.client.get("/v1/vms", params={"pool": "machines", "state": "claimed"})).json()["items"] == []


async def test_vms_that_ended_are_listed_on_request(server):
    await server.fill("former", size=1)
    claim = await server.claim_one("former")
    await server.client.delete(f"/v1/claims/{claim['id']}")

    async def deleted():
        params = {"pool": "former", "state": "deleted"}
        return (await server.client.get("/v1/vms", params=params)).json()["items"]

    (vm,) = await until(deleted)
    assert vm["id"] == claim["vm"]["id"]

    async def listed(**params):
        return [
            vm["id"] for vm in (await server.client.get("/v1/vms", params={"pool": "former", **params})).json()["items"]
        ]

    assert vm["id"] not in await listed()
    assert vm["id"] in await listed(ended=True)


async def test_a_vm_that_does_not_exist(server):
    unknown = uuid.uuid4()
    check(await server.client.get(f"/v1/vms/{unknown}"), Refused(404, "vm-not-found", says=str(unknown)))


async def test_many_are_claimed_at_once_each_on_its_own(server):
    await server.fill("many", size=2)
    answer = await server.client.post("/v1/claim/batch", json={"pool": "many", "count": 3, "labels": {"job": "b"}})
    assert answer.status_code == 201
    batch = answer.json()
    assert (batch["requested"], batch["missing"], len(batch["claims"])) == (3, 1, 2)
    assert len({claim["vm"]["id"] for claim in batch["claims"]}) == 2
    for claim in batch["claims"]:
        assert (await server.client.get(f"/v1/claims/{claim['id']}")).json() == claim
    await server.client.post("/v1/pools/many/pause")
    refused = await server.client.post("/v1/claim/batch", json={"pool": "many", "count": 9, "all_or_nothing": True})
    check(refused, Refused(503, "no-warm-vm"))
    assert int(refused.headers["retry-after"]) >= 1
