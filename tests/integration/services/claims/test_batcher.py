"""Claims that go together: each keeps its own answer, and nobody pays for another's mistake."""

import asyncio

import pytest

from app.domain.claims import KnownClaim, NewClaim, WarmClaim
from app.errors import DatabaseUnavailable
from app.ids import new_id
from app.services.claims.batcher import ClaimBatcher
from app.store.claims.warm import WarmClaimStore
from tests.support.rows import eventually, make_pool, make_vms, request, scalar


class Lane:
    """A lane whose statements are told what to answer, and wait until they are let go."""

    def __init__(self):
        self.batches: list[list[NewClaim]] = []
        self.from_start: list[bool] = []
        self.go = asyncio.Event()
        self.error_of = {}

    async def claim(self, pool_id, requests, *, from_start=False):
        self.batches.append(list(requests))
        self.from_start.append(from_start)
        await self.go.wait()
        for one in requests:
            if one.request.request_hash in self.error_of:
                raise self.error_of[one.request.request_hash]
        return [KnownClaim(one.id) for one in requests]


async def started(lane, batches=1):
    async def are():
        return len(lane.batches) >= batches

    await eventually(are)


def batcher(lane):
    told = []
    return ClaimBatcher(lane, new_id(), told.append, lambda _: None), told


async def test_what_arrives_while_a_statement_is_in_flight_goes_together_in_the_next():
    lane = Lane()
    shared, told = batcher(lane)
    first = asyncio.create_task(shared.claim(request()))
    await started(lane)
    others = [asyncio.create_task(shared.claim(request())) for _ in range(100)]
    await asyncio.sleep(0)
    lane.go.set()
    await asyncio.gather(first, *others)
    assert [len(batch) for batch in lane.batches] == [1, 64, 36]
    assert len(told) == 3
    assert shared.is_idle


async def test_each_gets_its_own_answer_in_order():
    lane = Lane()
    lane.go.set()
    shared, _ = batcher(lane)
    asked = [request() for _ in range(10)]
    answers = await asyncio.gather(*(shared.claim(one) for one in asked))
    assert [answer.claim_id for answer in answers] == [one.id for one in asked]
    assert [one.id for batch in lane.batches for one in batch] == [one.id for one in asked]


async def test_a_key_that_comes_twice_waits_for_the_statement_after():
    lane = Lane()
    shared, _ = batcher(lane)
    blocker = asyncio.create_task(shared.claim(request()))
    await started(lane)
    keys = ["a", "b", "a", None, None, "a", "b"]
    asked = [asyncio.create_task(shared.claim(request(key))) for key in keys]
    await asyncio.sleep(0)
    lane.go.set()
    await asyncio.gather(blocker, *asked)
    assert [[one.request.key for one in batch] for batch in lane.batches[1:]] == [
        ["a", "b", None, None],
        ["a", "b"],
        ["a"],
    ]


async def test_one_that_cannot_be_written_does_not_spoil_the_others():
    lane = Lane()
    lane.error_of["bad"] = ValueError("no such JSON")
    shared, _ = batcher(lane)
    blocker = asyncio.create_task(shared.claim(request()))
    await started(lane)
    asked = [asyncio.create_task(shared.claim(request(body=body))) for body in ("good", "bad", "fine")]
    await asyncio.sleep(0)
    lane.go.set()
    good, bad, fine = await asyncio.gather(*asked, return_exceptions=True)
    await blocker
    assert isinstance(good, KnownClaim)
    assert isinstance(fine, KnownClaim)
    assert isinstance(bad, ValueError)


async def test_an_absent_database_is_told_to_all_and_the_next_is_served():
    lane = Lane()
    lane.error_of["body"] = DatabaseUnavailable("away")
    lane.go.set()
    shared, _ = batcher(lane)
    results = await asyncio.gather(*(shared.claim(request()) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [DatabaseUnavailable] * 3
    assert [len(batch) for batch in lane.batches] == [3], "asking one by one would not help"
    lane.error_of.clear()
    assert isinstance(await shared.claim(request()), KnownClaim)


async def test_a_request_whose_client_left_before_its_statement_takes_nothing():
    lane = Lane()
    shared, _ = batcher(lane)
    blocker = asyncio.create_task(shared.claim(request()))
    await started(lane)
    leaves, stays = (asyncio.create_task(shared.claim(request(body=body))) for body in ("leaves", "stays"))
    await asyncio.sleep(0)
    leaves.cancel()
    lane.go.set()
    await asyncio.gather(blocker, stays)
    assert [one.request.request_hash for batch in lane.batches[1:] for one in batch] == ["stays"]
    with pytest.raises(asyncio.CancelledError):
        await leaves


async def test_a_look_from_the_start_is_one_for_all_that_go_with_it():
    lane = Lane()
    shared, _ = batcher(lane)
    blocker = asyncio.create_task(shared.claim(request()))
    await started(lane)
    asked = [asyncio.create_task(shared.claim(request(), from_start=start)) for start in (False, True)]
    await asyncio.sleep(0)
    lane.go.set()
    await asyncio.gather(blocker, *asked)
    assert lane.from_start == [False, True]


async def test_a_request_that_is_cancelled_after_its_statement_is_found_by_its_key(db):
    pool = await make_pool(db)
    (vm_id,) = await make_vms(db, pool, 1)
    lane = WarmClaimStore(db.url)
    shared = ClaimBatcher(lane, pool.id, lambda _: None, lambda _: None)
    async with db.begin() as tx:
        await tx.exec_driver_sql("SELECT 1 FROM vm FOR UPDATE")  # holds the statement in the middle
        asked = asyncio.create_task(shared.claim(request("k")))

        async def in_flight():
            query = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            return await scalar(db, query)

        await eventually(in_flight)
        asked.cancel()
        await asyncio.wait([asked])
    again = await shared.claim(request("k"), from_start=True)
    assert isinstance(again, KnownClaim)
    assert await scalar(db, "SELECT vm_id FROM claim WHERE id = :id", id=again.claim_id) == vm_id
    await lane.close()


async def test_hundreds_of_claims_on_two_batchers_get_a_vm_each(db):
    pool = await make_pool(db)
    await make_vms(db, pool, 300)
    lanes = [WarmClaimStore(db.url) for _ in range(2)]
    shared = [ClaimBatcher(lane, pool.id, lambda _: None, lambda _: None) for lane in lanes]
    answers = await asyncio.gather(*(shared[n % 2].claim(request()) for n in range(300)))
    missed = [answer for answer in answers if answer is None]
    again = await asyncio.gather(*(shared[0].claim(request(), from_start=True) for _ in missed))
    bound = [answer for answer in (*answers, *again) if isinstance(answer, WarmClaim)]
    assert len({one.vm_id for one in bound}) == 300
    for lane in lanes:
        await lane.close()
