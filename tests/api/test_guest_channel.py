"""The channel of guests, with the test in a guest's place: who is served, who is refused, and that nothing is handed over twice."""

import asyncio
import uuid
from datetime import datetime
from pathlib import Path

import pytest
import pytest_asyncio

from app.devcluster import DevCluster, DevClusterConfig, Durations
from tests.support.clusters import COLD_BOOT_SECONDS
from tests.support.guests import KEY, NOWHERE, Guest, identity_of
from tests.support.postgres import clone_database
from tests.support.rows import execute, fetch, scalar
from tests.support.service import Gate, Refused, check, figures, serve, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHANNEL = {"guest": {"channel": True, "release_seconds": 60}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(postgres, template_database, cluster, tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("service")
    given = {"guest_url": NOWHERE, "handover_key": KEY}
    async with clone_database(postgres, template_database) as url, serve(url, cluster, folder, **given) as server:
        yield server


async def ready_vms(server, pool, size=1):
    await server.fill(pool, size=size, auto_replenish=False, **CHANNEL)
    return (await server.client.get("/v1/vms", params={"pool": pool, "state": "ready"})).json()["items"]


async def greeted(server, cluster, pool):
    """The only VM of a new pool, and its guest, which has said hello."""
    (vm,) = await ready_vms(server, pool)
    guest = Guest.of(server, cluster, vm["name"])
    answer = await guest.hello()
    assert answer.status_code == 200, answer.text
    return vm, guest


async def handover_of(server, claim):
    return (await server.client.get(f"/v1/claims/{claim['id']}")).json()["handover"]


async def events_of(server, vm, prefix):
    history = (await server.client.get(f"/v1/vms/{vm['id']}")).json()["history"]
    return [each for each in history if each["type"].startswith(prefix)]


async def test_hello_tells_the_guest_who_it_is_and_is_an_event_of_the_vm(server, cluster):
    vm, guest = await greeted(server, cluster, "who")
    assert (await guest.hello()).json() == {"vm": vm["id"], "name": vm["name"], "pool": "who"}
    assert [each["data"] for each in await events_of(server, vm, "vm.hello")] == [{"boot_id": guest.boot_id}]


async def test_a_guest_that_waits_is_told_of_its_claim_at_once(server, cluster):
    _, guest = await greeted(server, cluster, "prompt")
    fetching = asyncio.create_task(guest.fetch())
    await until(lambda: _counted(server, 1))
    claim = await server.claim_one("prompt", handover={"data": {"a": 1}})
    told = await fetching
    assert (told["claim"], told["data"]) == (claim["id"], {"a": 1})
    assert (await handover_of(server, claim))["state"] == "taken"


async def _counted(server, count):
    return len(server.services.guests.waiting) >= count


async def test_a_claim_is_repeated_until_the_guest_has_acknowledged_it(server, cluster):
    _, guest = await greeted(server, cluster, "repeats")
    claim = await server.claim_one("repeats", handover={"data": "x"})
    first, again = await guest.look(), await guest.look()
    assert first.json()["data"] == again.json()["data"] == "x"
    for _ in range(2):
        assert (await guest.report(claim["id"], output=b"\0done")).status_code == 204
    found = await handover_of(server, claim)
    assert (found["state"], found["output"]) == ("done", "\N{REPLACEMENT CHARACTER}done")
    taken = [each["type"] for each in await events_of(server, {"id": claim["vm"]["id"]}, "claim.hand")]
    assert taken == ["claim.handover_taken", "claim.handed_over"]


async def test_what_was_acknowledged_is_erased_and_never_handed_over_again(server, cluster):
    _, guest = await greeted(server, cluster, "erased")
    claim = await server.claim_one("erased", handover={"data": "x"})
    await guest.fetch()
    db = server.services.db
    sealed = await scalar(db, "SELECT sealed FROM handover WHERE claim_id = :id", id=claim["id"])
    assert KEY.encode() not in bytes(sealed)
    assert b'"x"' not in bytes(sealed)
    await guest.report(claim["id"])
    assert await scalar(db, "SELECT sealed FROM handover WHERE claim_id = :id", id=claim["id"]) is None
    looking = asyncio.create_task(guest.look(known=""))
    await until(lambda: _counted(server, 1))
    looking.cancel()


async def test_the_data_is_erased_when_the_claim_ends_before_it_was_fetched(server, cluster):
    _, guest = await greeted(server, cluster, "unfetched")
    claim = await server.claim_one("unfetched", handover={"data": "x"})
    ended = (await server.client.delete(f"/v1/claims/{claim['id']}")).json()
    assert ended["handover"]["state"] == "failed"
    assert ended["handover"]["reason"] == "the claim ended before the hooks had run"
    db = server.services.db
    assert await scalar(db, "SELECT sealed FROM handover WHERE claim_id = :id", id=claim["id"]) is None
    check(await guest.look(), Refused(410, "guest-gone", says="has ended"))


async def test_a_plain_claim_is_told_when_the_guest_asks(server, cluster):
    _, guest = await greeted(server, cluster, "plainly")
    claim = await server.claim_one("plainly")
    told = await guest.fetch()
    assert (told["claim"], told["data"]) == (claim["id"], None)
    assert (await guest.report(claim["id"])).status_code == 204
    assert await handover_of(server, claim) is None


async def test_the_shells_form_has_the_variables_of_the_data_before_its_json(server, cluster):
    _, guest = await greeted(server, cluster, "shell")
    env = {"A": "it's", "N": 3, "YES": True, "LINES": "1\n2", "bad-name": "x", "PATH": "/evil", "EMBERPOOL_CLAIM": "x"}
    claim = await server.claim_one("shell", handover={"data": {"env": env}})
    text = (await guest.look(form="shell")).text
    heads, _, document = text.partition("\n\n")
    lines = heads.split("\n")
    assert lines[:3] == ["A='it'\\''s'", "N='3'", "YES='true'"]
    assert f"EMBERPOOL_CLAIM='{claim['id']}'" in lines
    assert not any(line.startswith(("LINES", "bad", "PATH")) for line in lines)
    assert '"LINES":"1\\n2"' in document


async def test_a_renewed_lease_is_told(server, cluster):
    _, guest = await greeted(server, cluster, "renewed")
    claim = await server.claim_one("renewed", lease_seconds=600, handover={"data": 1})
    await guest.fetch()
    await guest.report(claim["id"])
    waiting = asyncio.create_task(guest.look(lease="1"))
    told = (await waiting).json()
    assert told["event"] == "renewed"
    lease = str(int(_moment(told["lease_expires_at"])))
    waiting = asyncio.create_task(guest.look(lease=lease))
    await until(lambda: _counted(server, 1))
    await server.client.post(f"/v1/claims/{claim['id']}/renew", json={"lease_seconds": 3000})
    told = (await waiting).json()
    assert (told["event"], told["claim"]) == ("renewed", claim["id"])
    assert told["seconds"] > 2000


def _moment(text):
    return datetime.fromisoformat(text).timestamp()


async def test_a_guest_that_took_its_claim_hears_of_the_release_before_its_vm_goes(server, cluster):
    vm, guest = await greeted(server, cluster, "released")
    claim = await server.claim_one("released", handover={"data": 1})
    await guest.fetch()
    waiting = asyncio.create_task(guest.look())
    await until(lambda: _counted(server, 1))
    await server.client.delete(f"/v1/claims/{claim['id']}")
    told = (await waiting).json()
    assert told["event"] == "releasing"
    assert 0 < told["seconds"] <= 60
    check(await guest.report(claim["id"]), Refused(409, "claim-ended"))
    assert identity_of(cluster, vm["name"]) is not None
    assert (await guest.released(claim["id"])).status_code == 204

    async def gone():
        return (await server.client.get(f"/v1/vms/{vm['id']}")).json()["state"] == "deleted"

    await until(gone)
    assert identity_of(cluster, vm["name"]) is None
    check(await guest.look(), Refused(410, "guest-gone"))
    assert (await events_of(server, vm, "vm.guest_refused"))[-1]["data"]["code"] == "guest-gone"


async def test_a_token_opens_its_own_vm_and_no_other(server, cluster):
    mine, other = await ready_vms(server, "apart", size=2)
    guest, stranger = Guest.of(server, cluster, mine["name"]), Guest.of(server, cluster, other["name"])
    check(await guest.hello(vm=other["id"]), Refused(403, "guest-mistaken", says="another VM"))
    assert [each["data"]["code"] for each in await events_of(server, mine, "vm.guest_refused")] == ["guest-mistaken"]
    await guest.hello()
    await stranger.hello()
    claims = [await server.claim_one("apart", handover={"data": n}) for n in range(2)]
    by_vm = {claim["vm"]["id"]: (claim["id"], n) for n, claim in enumerate(claims)}
    for each, vm in ((guest, mine), (stranger, other)):
        told = await each.fetch()
        assert (told["claim"], told["data"]) == by_vm[vm["id"]]
    check(await guest.report(by_vm[other["id"]][0]), Refused(403, "guest-mistaken"))


@pytest.mark.parametrize("token", ["", "Bearer", "Bearer nonsense", "Basic x"])
async def test_without_a_token_that_is_known_nothing_is_told(server, token):
    heads = {"Authorization": token} if token else {}
    answer = await server.client.get("/guest/v1/claim", params={"boot_id": "b"}, headers=heads)
    check(answer, Refused(401, "unauthenticated"))


async def test_the_guests_token_opens_nothing_of_the_api(postgres, template_database, tmp_path):
    given = {"guest_url": NOWHERE, "handover_key": KEY, "api_token": "of-the-api"}
    config = DevClusterConfig(durations=Durations.for_cold_boot(COLD_BOOT_SECONDS))
    async with (
        DevCluster(config) as cluster,
        clone_database(postgres, template_database) as url,
        serve(url, cluster, tmp_path, **given) as server,
    ):
        server.client.headers["Authorization"] = "Bearer of-the-api"
        (vm,) = await ready_vms(server, "guarded")
        guest = Guest.of(server, cluster, vm["name"])
        assert (await guest.hello()).status_code == 200
        server.client.headers["Authorization"] = f"Bearer {guest.disk['token']}"
        check(await server.client.get("/v1/claims"), Refused(401, "unauthenticated"))


async def test_two_guests_with_one_token_are_both_refused(server, cluster):
    vm, guest = await greeted(server, cluster, "copied")
    copy = Guest(server, guest.disk)
    assert (await copy.hello()).status_code == 200
    check(await guest.look(), Refused(409, "guest-replaced", says="started anew"))
    check(await guest.hello(), Refused(409, "guest-conflict", says="two guests have the token"))
    check(await copy.look(), Refused(409, "guest-conflict"))
    assert [each["data"]["code"] for each in await events_of(server, vm, "vm.guest_refused")][-1] == "guest-conflict"


async def test_a_former_guest_that_still_asks_shows_a_copy(server, cluster):
    vm, guest = await greeted(server, cluster, "copied-later")
    claim = await server.claim_one("copied-later", handover={"data": 1})
    copy = Guest(server, guest.disk)
    assert (await copy.hello()).status_code == 200
    await execute(
        server.services.db, "UPDATE guest SET hello_at = hello_at - interval '1 hour' WHERE vm_id = :id", id=vm["id"]
    )
    check(await guest.look(), Refused(409, "guest-conflict"))
    found = await handover_of(server, claim)
    assert found["state"] == "failed"
    assert "two guests have the token" in found["reason"]


async def test_a_guest_that_was_started_anew_goes_on_where_it_was(server, cluster):
    vm, guest = await greeted(server, cluster, "anew")
    anew = Guest(server, guest.disk)
    check(await anew.look(), Refused(409, "guest-replaced", says="say hello first"))
    await anew.hello()
    claim = await server.claim_one("anew", handover={"data": "x"})
    assert (await anew.fetch())["claim"] == claim["id"]
    assert len(await events_of(server, vm, "vm.hello")) == 2


async def test_a_guest_that_never_says_hello_is_the_reason_of_a_claim_that_waits(server):
    await ready_vms(server, "silent")
    claim = await server.claim_one("silent", handover={"data": 1, "wait": True, "wait_seconds": 0.1})
    assert (claim["handover"]["state"], claim["handover"]["reason"]) == ("pending", "the guest has not said hello yet")


async def test_a_vm_is_warm_once_its_guest_has_said_hello(server, cluster):
    await server.put("hello", size=1, warm_when="hello", **CHANNEL)

    async def running():
        found = (await server.client.get("/v1/vms", params={"pool": "hello", "state": "booting"})).json()["items"]
        return [vm for vm in found if vm["health"] and "has not said hello" in vm["health"]]

    (vm,) = await until(running)
    await Guest.of(server, cluster, vm["name"]).hello()
    assert (await server.client.get(f"/v1/vms/{vm['id']}")).json()["state"] == "ready"


async def test_claims_wait_for_a_hello_that_makes_a_vm_warm(server, cluster):
    await server.put("hello-queue", size=1, warm_when="hello", **CHANNEL)
    claiming = asyncio.create_task(server.claim_one("hello-queue", wait_seconds=60, handover={"data": 1}))

    async def made():
        found = (await server.client.get("/v1/vms", params={"pool": "hello-queue"})).json()["items"]
        return next((vm for vm in found if vm["addresses"]), None)

    vm = await until(made)
    guest = Guest.of(server, cluster, vm["name"])
    await guest.hello()
    claim = await claiming
    assert claim["vm"]["id"] == vm["id"]
    assert (await guest.fetch())["claim"] == claim["id"]


async def test_a_vm_of_before_the_channel_is_not_taken_for_a_claim_with_data(server, cluster):
    await server.fill("older", size=1, auto_replenish=False)
    assert (await server.client.post("/v1/pools/older/pause")).status_code == 200
    answer = await server.put("older", auto_replenish=False, **CHANNEL)
    assert answer.status_code == 200, answer.text
    answer = await server.claim("older", handover={"data": 1})
    assert answer.status_code in {202, 503} or answer.json()["handover"]["state"] == "failed", answer.text
    if answer.status_code == 201:
        assert "made before its pool had guest.channel" in answer.json()["handover"]["reason"]


async def test_the_guests_that_wait_and_those_refused_are_counted(server, cluster):
    before = await figures(server)
    _, guest = await greeted(server, cluster, "counted")
    check(await Guest(server, {**guest.disk, "token": "x"}).look(), Refused(401, "unauthenticated"))
    claim = await server.claim_one("counted", handover={"data": 1})
    await guest.fetch()
    await guest.report(claim["id"], exit_code=124)
    found = await handover_of(server, claim)
    assert (found["state"], "took longer than it may" in found["reason"]) == ("failed", True)
    after = await figures(server)

    def rose(name):
        return after.get(name, 0) - before.get(name, 0)

    assert rose("emberpool_handover_seconds_count") == 1
    assert rose('emberpool_handover_failures_total{reason="hook-timeout"}') == 1
    assert rose('emberpool_guests_refused_total{reason="unauthenticated"}') == 1


@pytest.mark.parametrize(
    ("method", "path", "refused"),
    [
        ("GET", "/guest/v1/nothing", Refused(404, "not-found")),
        ("POST", "/guest/v1/claim?boot_id=b", Refused(405, "method-not-allowed")),
        ("GET", "/guest/v1/claim?boot_id=b&lees=1", Refused(422, "invalid-request", "lees")),
        ("GET", "/guest/v1/claim", Refused(422, "invalid-request", "boot_id")),
        ("GET", "/guest/v1/claim?boot_id=b&known=x", Refused(422, "invalid-request", "known")),
        ("POST", f"/guest/v1/handed-over?claim={uuid.UUID(int=1)}", Refused(422, "invalid-request", "exit_code")),
        ("POST", "/guest/v1/hello", Refused(400, "malformed-body")),
    ],
)
async def test_what_is_no_request_of_a_guest_is_refused(server, method, path, refused):
    check(await server.client.request(method, path, headers={"Authorization": "Bearer x"}, content=b""), refused)


async def test_nothing_of_a_token_is_in_the_database(server, cluster):
    _, guest = await greeted(server, cluster, "hashed")
    rows = await fetch(server.services.db, "SELECT guest::text AS row FROM guest")
    assert rows
    assert all(guest.disk["token"] not in row["row"] for row in rows)


async def test_a_postgres_that_is_lost_between_claim_and_hand_over_loses_nothing(postgres, template_database, tmp_path):
    folder = tmp_path / "gate"
    folder.mkdir()
    gate = Gate(folder, postgres.socket_dir)
    config = DevClusterConfig(durations=Durations.for_cold_boot(COLD_BOOT_SECONDS))
    given = {"guest_url": NOWHERE, "handover_key": KEY}
    async with DevCluster(config) as cluster, clone_database(postgres, template_database) as url:
        await gate.open()
        async with serve(gate.url(url), cluster, tmp_path, **given) as server:
            _, guest = await greeted(server, cluster, "lost")
            key = {"Idempotency-Key": "over-the-outage"}
            body = {"handover": {"data": "x"}}
            claim = (await server.claim("lost", headers=key, **body)).json()
            await gate.close()
            check(await guest.look(), Refused(503, "database-unavailable"))
            await gate.open()

            async def told():
                answer = await guest.look()
                return answer.json() if answer.status_code == 200 else None

            found = await until(told)
            assert (found["claim"], found["data"]) == (claim["id"], "x")

            async def reported():
                return (await guest.report(claim["id"])).status_code == 204

            await until(reported)
            again = await server.claim("lost", headers=key, **body)
            assert (again.json()["id"], again.json()["handover"]["state"]) == (claim["id"], "done")
        await gate.close()
