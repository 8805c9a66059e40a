"""`POST /v1/claim/batch`: many VMs in one statement, each its own claim; all or nothing where asked; once for each key."""

import asyncio
from collections import Counter

import pytest

from app.domain.states import VmState
from app.store.vms import rows as vms
from tests.support import store_invariants as invariants
from tests.support.rows import blocked, execute, fetch, make_pool, make_ready, make_vms, scalar
from tests.support.service import Refused, check


async def batch(server, pool="web", count=1, *, key=None, **body):
    headers = {"Idempotency-Key": key} if key is not None else {}
    return await server.client.post("/v1/claim/batch", json={"pool": pool, "count": count, **body}, headers=headers)


async def claimed(server, *given, **how):
    answer = await batch(server, *given, **how)
    assert answer.status_code == 201, answer.text
    return answer.json()


def ids(answer):
    return [claim["id"] for claim in answer["claims"]]


async def ready(db):
    return await scalar(db, "SELECT count(*) FROM ready_slot")


async def drain(server, pool="web"):
    """Claims singly until there is none, and says how many there were."""
    count = 0
    while (answer := await server.claim(pool)).status_code == 201:
        count += 1
    check(answer, Refused(503, "no-warm-vm"))
    return count


@pytest.fixture
async def pool(db):
    """It does not refill, so that "none" is told at once and no claim goes into a queue."""
    return await make_pool(db, auto_replenish=False, default_lease_seconds=60, max_lease_seconds=600)


async def test_a_batch_takes_from_one_to_a_hundred_vms(db, replica, pool):
    known = await make_vms(db, pool, 102)
    one = await claimed(replica, count=1)
    many = await claimed(replica, count=100, labels={"job": "7"}, lease_seconds=600)
    assert (one["requested"], one["missing"], many["requested"], many["missing"]) == (1, 0, 100, 0)
    claims = one["claims"] + many["claims"]
    assert [claim["vm"]["id"] for claim in claims] == [str(vm_id) for vm_id in known[:101]], "the longest ready first"
    assert len({claim["id"] for claim in claims}) == 101
    assert {(claim["state"], claim["path"], claim["lease_seconds"]) for claim in many["claims"]} == {
        ("bound", "pool", 600)
    }
    assert all(claim["labels"] == {"job": "7"} for claim in many["claims"])
    assert await ready(db) == 1


@pytest.mark.parametrize("count", [0, 101, -1, None, "three", 1.5])
async def test_another_count_is_refused(db, replica, pool, count):
    await make_vms(db, pool, 1)
    check(await batch(replica, count=count), Refused(422, "invalid-request", "count"))
    assert await ready(db) == 1


async def test_what_is_not_ready_is_missing(db, replica, pool):
    await make_vms(db, pool, 2)
    answer = await claimed(replica, count=5)
    assert (len(answer["claims"]), answer["requested"], answer["missing"]) == (2, 5, 3)
    refused = check(await batch(replica, count=5), Refused(503, "no-warm-vm", says="0 ready VMs and 5 were asked for"))
    assert refused["code"] == "no-warm-vm"
    assert (await batch(replica, count=5)).headers["retry-after"]


async def test_all_or_nothing_takes_none_and_strands_none(db, replica, pool):
    await make_vms(db, pool, 3)
    answer = await batch(replica, count=4, all_or_nothing=True)
    check(answer, Refused(503, "no-warm-vm", says="3 ready VMs and 4 were asked for, all or nothing; none was claimed"))
    assert answer.headers["retry-after"]
    assert await scalar(db, "SELECT count(*) FROM claim") == 0
    assert len((await claimed(replica, count=2, all_or_nothing=True))["claims"]) == 2
    check(await batch(replica, count=2, all_or_nothing=True), Refused(503, "no-warm-vm"))
    assert await drain(replica) == 1


async def test_all_or_nothing_at_once_with_others_that_want_the_same(db, make_replica, pool):
    """Ten want three of ten: whoever gets any gets three, and what is left over can be claimed."""
    replicas = [await make_replica(), await make_replica()]
    await make_vms(db, pool, 10)
    answers = await asyncio.gather(*(batch(replicas[n % 2], count=3, all_or_nothing=True) for n in range(10)))
    served = [answer.json() for answer in answers if answer.status_code == 201]
    assert all(len(answer["claims"]) == 3 and answer["missing"] == 0 for answer in served)
    refused = [answer for answer in answers if answer.status_code != 201]
    for answer in refused:
        check(answer, Refused(503, "no-warm-vm"))
    assert 1 <= len(served) <= 3
    given = Counter(claim["vm"]["id"] for answer in served for claim in answer["claims"])
    assert set(given.values()) == {1}
    assert await drain(replicas[0]) == 10 - 3 * len(served)


async def test_each_is_a_claim_of_its_own(db, replica, pool):
    await make_vms(db, pool, 3)
    released, renewed, kept = (await claimed(replica, count=3))["claims"]
    assert (await replica.client.delete(f"/v1/claims/{released['id']}")).json()["state"] == "released"
    longer = await replica.client.post(f"/v1/claims/{renewed['id']}/renew", json={"lease_seconds": 600})
    assert longer.json()["lease_seconds"] == 600
    assert (await replica.client.get(f"/v1/claims/{kept['id']}")).json() == kept
    states = {str(row["id"]): row["state"] for row in await fetch(db, "SELECT id, state FROM vm")}
    assert [states[claim["vm"]["id"]] for claim in (released, renewed, kept)] == ["releasing", "claimed", "claimed"]


async def test_all_are_taken_in_one_statement_also_those_below_the_hint(db, replica, pool):
    """A VM whose sequence number is lower became visible after a higher one was claimed. All of a batch have one moment."""
    late, early, more = await make_vms(db, pool, 2, VmState.BOOTING), *await two_of(db, pool)
    async with db.begin() as slow:
        await vms.move(slow, late, VmState.READY, sources=[VmState.BOOTING])
        await make_ready(db, [early])
        await claimed(replica, count=1)
    await make_ready(db, [more])
    answer = await claimed(replica, count=3, all_or_nothing=True)
    assert {claim["vm"]["id"] for claim in answer["claims"]} == {str(vm_id) for vm_id in (*late, more)}

    late, early, more = await make_vms(db, pool, 2, VmState.BOOTING), *await two_of(db, pool)
    async with db.begin() as slow:
        await vms.move(slow, late, VmState.READY, sources=[VmState.BOOTING])
        await make_ready(db, [early])
        await claimed(replica, count=1)
    await make_ready(db, [more])
    answer = await claimed(replica, count=9)
    assert {claim["vm"]["id"] for claim in answer["claims"]} == {str(vm_id) for vm_id in (*late, more)}
    assert len({claim["created_at"] for claim in answer["claims"]}) == 1


async def two_of(db, pool):
    return [(await make_vms(db, pool, 1, VmState.BOOTING))[0] for _ in range(2)]


async def test_a_retry_gets_the_same_claims(db, make_replica, pool):
    replicas = [await make_replica(), await make_replica()]
    await make_vms(db, pool, 5)
    first = await claimed(replicas[0], count=3, key="k", labels={"a": "1"})
    for server in replicas:
        again = await claimed(server, count=3, key="k", labels={"a": "1"})
        assert again == first
    await replicas[0].client.delete(f"/v1/claims/{ids(first)[1]}")
    again = await claimed(replicas[1], count=3, key="k", labels={"a": "1"})
    assert ids(again) == ids(first)
    assert [claim["state"] for claim in again["claims"]] == ["bound", "released", "bound"]
    assert await ready(db) == 2


async def test_a_retry_of_a_partial_batch_adds_nothing(db, make_replica, pool):
    replicas = [await make_replica(), await make_replica()]
    await make_vms(db, pool, 2)
    first = await claimed(replicas[0], count=4, key="k")
    assert first["missing"] == 2
    await make_vms(db, pool, 4)
    for server in replicas:
        again = await claimed(server, count=4, key="k")
        assert (ids(again), again["missing"]) == (ids(first), 2)
    assert await ready(db) == 4


async def test_a_retry_of_a_refused_batch_tries_again(db, replica, pool):
    check(await batch(replica, count=2, key="k"), Refused(503, "no-warm-vm"))
    await make_vms(db, pool, 2)
    assert (await claimed(replica, count=2, key="k"))["missing"] == 0


@pytest.mark.parametrize(
    "other", [{"count": 2}, {"count": 4}, {"all_or_nothing": True}, {"labels": {"a": "2"}}, {"lease_seconds": 61}]
)
async def test_the_same_key_with_another_body_is_refused(db, make_replica, pool, other):
    replicas = [await make_replica(), await make_replica()]
    await make_vms(db, pool, 9)
    first = await claimed(replicas[0], count=3, key="k")
    for server in replicas:
        refused = check(
            await batch(server, **{"count": 3, "key": "k", **other}), Refused(422, "idempotency-key-reused")
        )
        assert any(claim in refused["detail"] for claim in ids(first))
    assert await ready(db) == 6


async def test_another_body_at_the_same_moment_is_refused_and_takes_nothing(db, make_replica, pool):
    replicas = [await make_replica(), await make_replica()]
    await make_vms(db, pool, 50)
    for turn in range(8):
        before = await ready(db)
        answers = await asyncio.gather(
            *(batch(replicas[n % 2], count=count, key=f"k{turn}") for n, count in enumerate([2, 5, 3]))
        )
        (served,) = [answer.json() for answer in answers if answer.status_code == 201]
        for answer in answers:
            if answer.status_code != 201:
                check(answer, Refused(422, "idempotency-key-reused"))
        assert before - await ready(db) == len(served["claims"]) == served["requested"]


async def test_one_key_on_two_replicas_at_once_gets_the_same_claims(db, make_replica, pool):
    replicas = [await make_replica(), await make_replica()]
    for turn in range(10):
        await make_vms(db, pool, 4)
        # More are asked for than there are: what the one has taken is all that the other can be told of.
        asked = (batch(replicas[n % 2], count=6, key=f"k{turn}") for n in range(4))
        answers = [answer.json() for answer in await asyncio.gather(*asked) if answer.status_code == 201]
        assert answers
        assert {tuple(ids(answer)) for answer in answers} == {tuple(ids(answers[0]))}
        await invariants.check(db)
        await drain(replicas[0])


async def test_one_key_on_two_replicas_at_once_adds_nothing_to_what_the_first_took(db, make_replica, pool):
    """The second looks before the first has committed, and finds more VMs than the first did."""
    replicas = [await make_replica(), await make_replica()]
    some = await make_vms(db, pool, 3)
    async with db.begin() as tx:
        await tx.exec_driver_sql("SELECT 1 FROM vm FOR UPDATE")  # holds the first between its insert and its end
        first = asyncio.create_task(claimed(replicas[0], count=6, key="k"))
        await blocked(db)
        await make_vms(db, pool, 5)
        second = asyncio.create_task(claimed(replicas[1], count=6, key="k"))
        await blocked(db, 2)
    answers = [await first, await second]
    assert ids(answers[0]) == ids(answers[1])
    assert {claim["vm"]["id"] for claim in answers[1]["claims"]} == {str(vm_id) for vm_id in some}
    assert await ready(db) == 5


async def test_all_or_nothing_with_one_key_on_two_replicas_at_once(db, make_replica, pool):
    replicas = [await make_replica(), await make_replica()]
    await make_vms(db, pool, 3)
    async with db.begin() as tx:
        await tx.exec_driver_sql("SELECT 1 FROM vm FOR UPDATE")
        first = asyncio.create_task(claimed(replicas[0], count=3, key="k", all_or_nothing=True))
        await blocked(db)
        await make_vms(db, pool, 3)
        second = asyncio.create_task(claimed(replicas[1], count=3, key="k", all_or_nothing=True))
        await blocked(db, 2)
    answers = [await first, await second]
    assert ids(answers[0]) == ids(answers[1])
    assert await drain(replicas[1]) == 3


async def test_a_batch_and_a_claim_may_carry_the_same_key(db, replica, pool):
    await make_vms(db, pool, 3)
    one = await replica.claim("web", headers={"Idempotency-Key": "k"})
    many = await claimed(replica, count=2, key="k")
    assert one.json()["id"] not in ids(many)
    assert (await replica.claim("web", headers={"Idempotency-Key": "k"})).json()["id"] == one.json()["id"]


async def test_a_key_that_is_none_is_refused(db, replica, pool):
    await make_vms(db, pool, 1)
    for key in ("", "x" * 256, "a\x1f0"):
        refused = check(await batch(replica, key=key), Refused(422, "invalid-request"))
        assert [problem["field"].lower() for problem in refused["errors"]] == ["idempotency-key"]
    assert await ready(db) == 1


async def test_what_cannot_be_is_refused(db, replica, pool):
    await make_vms(db, pool, 2)
    check(await batch(replica, "nowhere"), Refused(404, "pool-not-found"))
    check(
        await batch(replica, count=2, lease_seconds=601), Refused(422, "lease-too-long", "lease_seconds", says="600 s")
    )
    check(await batch(replica, count=2, wait_seconds=5), Refused(422, "invalid-request", "wait_seconds"))
    assert await ready(db) == 2
    await execute(db, "UPDATE pool SET deleting_at = now()")
    for all_or_nothing in (False, True):
        check(await batch(replica, all_or_nothing=all_or_nothing), Refused(409, "pool-being-deleted"))
    assert await ready(db) == 2


async def test_a_pool_of_the_same_name_is_found_though_the_old_one_is_remembered(db, replica, pool):
    await make_vms(db, pool, 1)
    await claimed(replica)
    await execute(db, "UPDATE pool SET deleting_at = now(), deleted_at = now()")
    again = await make_pool(db, auto_replenish=False)
    known = await make_vms(db, again, 2)
    assert [claim["vm"]["id"] for claim in (await claimed(replica, count=2))["claims"]] == [str(each) for each in known]
