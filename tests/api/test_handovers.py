"""Claims that hand data over, with the dev cluster's guests at the other end: from the claim to the hooks and back."""

import json

import pytest
import pytest_asyncio

from app.devcluster import DevCluster
from app.devcluster.apiserver.registry import PODS, SECRETS, VIRTUAL_MACHINE_INSTANCES, VIRTUAL_MACHINES
from tests.support.guests import identity_of, serve_guests
from tests.support.postgres import clone_database
from tests.support.service import TEMPLATE, Refused, check, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHANNEL = {"channel": True, "user": "ubuntu"}
HELLO = {"guest": CHANNEL, "warm_when": "hello"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(postgres, template_database, cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    async with clone_database(postgres, template_database) as url, serve_guests(url, cluster, folder) as server:
        yield server


@pytest.fixture
def hooks(cluster: DevCluster):
    """What the guests were given, by claim; a test may say what their hooks answer."""
    given, answers = {}, {}

    def run(claim):
        given[claim["claim"]] = claim
        return answers.get("all", (0, json.dumps(claim["data"]).encode()))

    before, cluster.guest_hooks = cluster.guest_hooks, run
    yield given, answers
    cluster.guest_hooks = before


async def until_handed_over(server, claim_id, *states):
    async def over():
        claim = (await server.client.get(f"/v1/claims/{claim_id}")).json()
        return claim if claim["handover"]["state"] in states else None

    return await until(over)


async def test_a_claim_that_waits_is_answered_with_what_the_hooks_printed(server, hooks):
    await server.fill("waits", size=1, **HELLO)
    claim = await server.claim_one("waits", handover={"data": {"env": {"JOB": "1"}}, "wait": True}, labels={"job": "a"})
    assert claim["state"] == "bound"
    handover = claim["handover"]
    assert (handover["state"], handover["exit_code"]) == ("done", 0)
    assert json.loads(handover["output"]) == {"env": {"JOB": "1"}}
    assert handover["taken_at"] <= handover["done_at"]
    given = hooks[0][claim["id"]]
    assert given["vm"] == {"id": claim["vm"]["id"], "name": claim["vm"]["name"]}
    assert (given["labels"], given["pool"], given["event"]) == ({"job": "a"}, "waits", "claimed")


async def test_each_vm_gets_its_own_data_and_no_other(server, hooks):
    await server.fill("own", size=4, **HELLO)
    claims = [await server.claim_one("own", handover={"data": {"n": n}, "wait": True}) for n in range(4)]
    assert len({claim["vm"]["id"] for claim in claims}) == 4
    for n, claim in enumerate(claims):
        given = hooks[0][claim["id"]]
        assert given["data"] == {"n": n}
        assert given["vm"]["id"] == claim["vm"]["id"]


async def test_hooks_that_fail_are_told_with_their_exit_code(server, hooks):
    hooks[1]["all"] = (3, b"no such job\n" + b"x" * 9000)
    await server.fill("fails", size=1, **HELLO)
    claim = await server.claim_one("fails", handover={"data": 1, "wait": True})
    assert (claim["state"], claim["handover"]["state"], claim["handover"]["exit_code"]) == ("bound", "failed", 3)
    assert claim["handover"]["reason"] == "a hook ended with exit code 3"
    assert claim["handover"]["output"].startswith("no such job\n")
    assert len(claim["handover"]["output"]) == 4096
    listed = (await server.client.get("/v1/claims", params={"pool": "fails"})).json()["items"]
    assert (listed[0]["handover"]["state"], listed[0]["handover"]["output"]) == ("failed", None)


async def test_a_claim_that_does_not_wait_tells_later_how_it_went(server, hooks):
    await server.fill("later", size=1, **HELLO)
    claim = await server.claim_one("later", handover={"data": [1, 2]})
    assert claim["handover"]["state"] in {"pending", "taken", "done"}
    assert (await until_handed_over(server, claim["id"], "done"))["handover"]["exit_code"] == 0
    events = (await server.client.get(f"/v1/vms/{claim['vm']['id']}")).json()["history"]
    assert [each["type"] for each in events if each["type"].startswith("claim.hand")] == [
        "claim.handover_taken",
        "claim.handed_over",
    ]


async def test_a_claim_that_waits_for_its_vm_hands_over_when_it_has_one(server, hooks):
    await server.fill("queued", size=1, **HELLO)
    await server.claim_one("queued")
    claim = await server.claim_one("queued", wait_seconds=60, handover={"data": "late", "wait": True})
    assert claim["handover"]["state"] == "done"
    assert hooks[0][claim["id"]]["data"] == "late"


async def test_a_retry_gets_the_same_claim_and_hands_nothing_over_again(server, hooks):
    await server.fill("retries", size=2, **HELLO)
    key = {"Idempotency-Key": "handed-over-once"}
    body = {"handover": {"data": {"once": True}, "wait": True}}
    first = await server.claim("retries", headers=key, **body)
    again = await server.claim("retries", headers=key, **body)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    other = await server.claim("retries", headers=key, handover={"data": {"once": False}, "wait": True})
    check(other, Refused(422, "idempotency-key-reused"))
    assert [given["data"] for given in hooks[0].values()] == [{"once": True}]


async def test_the_vms_of_a_batch_get_what_is_theirs(server, hooks):
    await server.fill("batch", size=3, **HELLO)
    body = {"pool": "batch", "count": 3, "handovers": [{"data": "a"}, None, {"data": "c"}]}
    key = {"Idempotency-Key": "a-batch-with-data"}
    answer = await server.client.post("/v1/claim/batch", json=body, headers=key)
    assert answer.status_code == 201, answer.text
    first, plain, third = answer.json()["claims"]
    assert plain["handover"] is None
    for claim, data in ((first, "a"), (third, "c")):
        await until_handed_over(server, claim["id"], "done")
        assert hooks[0][claim["id"]]["data"] == data
    again = await server.client.post("/v1/claim/batch", json=body, headers=key)
    assert [claim["id"] for claim in again.json()["claims"]] == [first["id"], plain["id"], third["id"]]


async def test_a_batch_that_is_to_be_whole_takes_nothing_where_there_are_too_few(server, hooks):
    await server.fill("whole", size=1, **HELLO)
    body = {"pool": "whole", "count": 2, "all_or_nothing": True, "handovers": [{"data": "a"}, {"data": "b"}]}
    check(await server.client.post("/v1/claim/batch", json=body), Refused(503, "no-warm-vm"))
    assert (await server.pool("whole"))["status"]["counts"]["claimed"] == 0


async def test_a_described_vm_gets_its_data(server, hooks):
    body = {
        "vm": {**TEMPLATE, "cpu": 3},
        "guest": CHANNEL,
        "warm_when": "hello",
        "wait_seconds": 60,
        "handover": {"data": {"described": 1}, "wait": True},
    }
    answer = await server.client.post("/v1/claim", json=body)
    assert answer.status_code == 201, answer.text
    claim = answer.json()
    assert (claim["path"], claim["handover"]["state"]) == ("cold", "done")
    assert hooks[0][claim["id"]]["data"] == {"described": 1}


async def test_data_is_in_no_spec_event_or_list(server, cluster, hooks):
    await server.fill("secret", size=1, **HELLO)
    secret = "correct-horse-battery-staple"
    hooks[1]["all"] = (0, b"")
    claim = await server.claim_one("secret", handover={"data": {"token": secret}, "wait": True})
    for path in ("/v1/claims", "/v1/events", f"/v1/vms/{claim['vm']['id']}", f"/v1/claims/{claim['id']}", "/v1/pools"):
        assert secret not in (await server.client.get(path, params={"limit": 500} if path == "/v1/events" else {})).text
    for kind in (VIRTUAL_MACHINES, VIRTUAL_MACHINE_INSTANCES, PODS, SECRETS):
        assert all(secret not in json.dumps(each.obj) for each in cluster.store.each(kind))


async def test_a_released_vm_goes_with_its_identity(server, cluster, hooks):
    await server.fill("ends", size=1, **HELLO)
    claim = await server.claim_one("ends", handover={"data": 1, "wait": True})
    name = claim["vm"]["name"]
    identity = identity_of(cluster, name)
    assert {"token", "url", "vm", "guest.sh", "install.sh"} <= identity.keys()
    assert identity["vm"] == claim["vm"]["id"]
    assert len(identity["token"]) == 43  # 32 bytes in base64
    await server.client.delete(f"/v1/claims/{claim['id']}")

    async def gone():
        return cluster.store.get(SECRETS, "default", name) is None

    await until(gone)


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        ({"backing": "VirtualMachinePool"}, Refused(422, "invalid-request", "guest", "has an identity of its own")),
        (
            {
                "template": {
                    "spec": {
                        "domain": {"memory": {"guest": "1Gi"}, "devices": {}},
                        "volumes": [{"name": "d", "secret": {"secretName": "x", "volumeLabel": "EMBERPOOL"}}],
                    }
                }
            },
            Refused(422, "template-refused", "template.spec.volumes[0].secret.volumeLabel", "another label"),
        ),
    ],
)
async def test_what_cannot_carry_an_identity_disk_is_refused(server, spec, refused):
    check(await server.put("cannot", guest=CHANNEL, **spec), refused)


async def test_hello_needs_a_channel(server):
    check(
        await server.put("deaf", warm_when="hello"),
        Refused(422, "invalid-request", "warm_when", "guest: {channel: true}"),
    )


async def test_a_pool_without_a_channel_hands_nothing_over(server):
    await server.fill("plain", size=1)
    answer = await server.claim("plain", handover={"data": 1})
    check(answer, Refused(422, "invalid-request", "handover", "have no channel"))
    assert (await server.pool("plain"))["status"]["counts"]["claimed"] == 0


async def test_data_above_the_limit_is_refused_without_a_word_of_it(server):
    answer = await server.claim("plain", handover={"data": "s3cret" * 11_000})
    problem = check(answer, Refused(422, "invalid-request", "handover.data", "the most is 65536"))
    assert "s3cret" not in json.dumps(problem)


async def test_a_handover_that_is_none_is_refused_without_a_word_of_it(server):
    answer = await server.claim("plain", handover="s3cret")
    assert answer.status_code == 422
    assert "s3cret" not in answer.text
