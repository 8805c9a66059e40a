"""The batcher on a store that the test controls: which request gets an error, which is dropped, and in which order they are served.

Its statements on a database are in `tests/integration/services/claims/test_batcher.py`.
"""

import asyncio
import itertools

import pytest

from app.domain.claims import KnownClaim
from app.errors import DatabaseUnavailable
from tests.support.claim_lanes import Desk
from tests.support.patience import PATIENCE
from tests.support.rows import request


@pytest.fixture
async def claim_service():
    return Desk()


async def test_one_statement_is_in_flight_however_many_arrive(claim_service):
    asked = []
    for wave in range(5):
        asked += await claim_service.arrive(*(f"{wave}-{n}" for n in range(30)))
    await claim_service.lane.end_all(asked)
    assert claim_service.lane.most_in_flight == 1
    sent = [body for statement in claim_service.lane.statements for body in statement.bodies]
    assert sent == [f"{wave}-{n}" for wave in range(5) for n in range(30)], "in the order of arrival"
    assert max(len(statement.requests) for statement in claim_service.lane.statements) == 64


async def test_a_key_that_comes_twice_does_not_hold_up_those_behind_it(claim_service):
    held = await claim_service.hold()
    asked = [claim_service.ask(f"again-{n}", key="k") for n in range(3)] + await claim_service.arrive("behind")
    held.end()
    first = await claim_service.lane.statement(1)
    assert first.bodies == ["again-0", "behind"]
    late = await claim_service.arrive("late")
    first.end()
    second = await claim_service.lane.statement(2)
    assert second.bodies == ["again-1", "late"], "who came first is asked first, once its key is free"
    assert await claim_service.lane.end_all([*asked, *late])
    assert [statement.bodies for statement in claim_service.lane.statements[3:]] == [["again-2"]]


async def test_sixty_four_are_looked_for_behind_the_same_key(claim_service):
    held = await claim_service.hold()
    asked = [claim_service.ask(f"same-{n}", key="k") for n in range(10)]
    asked += await claim_service.arrive(*(f"other-{n}" for n in range(70)))
    held.end()
    await claim_service.lane.end_all(asked)
    assert claim_service.lane.statements[1].bodies == ["same-0", *(f"other-{n}" for n in range(63))]
    assert claim_service.lane.statements[2].bodies == ["same-1", *(f"other-{n}" for n in range(63, 70))]


async def test_where_a_statement_fails_only_the_guilty_one_hears_of_it(claim_service):
    def answer(requests, from_start):
        if any(request.request.request_hash.startswith("bad") for request in requests):
            raise ValueError("no such label")
        return [KnownClaim(request.id) for request in requests]

    claim_service.lane.answer = answer
    held = await claim_service.hold()
    asked = await claim_service.arrive("one", "bad-2", "three", "bad-4", "five")
    held.end()
    results = await claim_service.lane.end_all(asked)
    assert [type(result) for result in results] == [KnownClaim, ValueError, KnownClaim, ValueError, KnownClaim]
    assert [statement.bodies for statement in claim_service.lane.statements[2:]] == [
        *(["one"], ["bad-2"], ["three"], ["bad-4"], ["five"])
    ], "one by one, each once"
    assert len(claim_service.told) == 3 + 1


async def test_an_error_of_ours_refuses_all_of_its_statement_and_nobody_behind(claim_service):
    held = await claim_service.hold()
    asked = await claim_service.arrive("one", "two")
    held.end()
    statement = await claim_service.lane.statement(1)
    (behind,) = await claim_service.arrive("behind")
    statement.end(DatabaseUnavailable("away", retry_after=2))
    results = await claim_service.lane.end_all([*asked, behind])
    assert [type(result) for result in results] == [DatabaseUnavailable, DatabaseUnavailable, KnownClaim]
    assert [statement.bodies for statement in claim_service.lane.statements[1:]] == [["one", "two"], ["behind"]]


async def test_a_request_cancelled_while_others_are_asked_one_by_one_takes_nothing(claim_service):
    held = await claim_service.hold()
    asked = await claim_service.arrive("one", "leaves", "three")
    held.end()
    (await claim_service.lane.statement(1)).end(ValueError("of one of them"))
    one = await claim_service.lane.statement(2)
    asked[1].cancel()
    await asyncio.wait([asked[1]])
    one.end()
    await claim_service.lane.end_all(asked)
    assert [statement.bodies for statement in claim_service.lane.statements[2:]] == [["one"], ["three"]]


async def test_a_request_cancelled_in_flight_leaves_its_claim_and_its_neighbours_answers(claim_service):
    held = await claim_service.hold()
    asked = await claim_service.arrive("one", "leaves", "three")
    held.end()
    statement = await claim_service.lane.statement(1)
    asked[1].cancel()
    await asyncio.wait([asked[1]])
    statement.end()
    results = await claim_service.lane.end_all(asked)
    assert [type(result) for result in results] == [KnownClaim, asyncio.CancelledError, KnownClaim]
    assert [result.claim_id for result in (results[0], results[2])] == [
        statement.requests[0].id,
        statement.requests[2].id,
    ]
    assert len(claim_service.lane.statements) == 2, "what was sent is not sent again"


async def test_where_all_are_cancelled_nothing_is_sent(claim_service):
    held = await claim_service.hold()
    asked = await claim_service.arrive("one", "two")
    for each in asked:
        each.cancel()
    await asyncio.wait(asked)
    running = claim_service.batcher._running
    held.end()
    await asyncio.wait_for(running, PATIENCE)
    assert claim_service.batcher.is_idle
    assert len(claim_service.lane.statements) == 1
    (later,) = await claim_service.arrive("later")
    await claim_service.lane.end_all([later])
    assert claim_service.lane.statements[1].bodies == ["later"]


async def test_who_found_none_looks_again_before_those_that_came_after(claim_service):
    """Each is asked from the start once more. A VM that appears in between goes to the one that came first."""
    vms = []

    def answer(requests, from_start):
        return [KnownClaim(request.id) if from_start and vms and vms.pop() else None for request in requests]

    claim_service.lane.answer = answer
    asked = await claim_service.arrive("one", "two")
    first = await claim_service.lane.statement(0)
    asked += await claim_service.arrive("late")
    first.end()
    again = await claim_service.lane.statement(1)
    assert (again.bodies, again.from_start) == (["one", "two", "late"], True)
    vms.append("ready")
    assert [type(result) for result in await claim_service.lane.end_all(asked)] == [KnownClaim, type(None), type(None)]
    looks = [body for statement in claim_service.lane.statements if statement.from_start for body in statement.bodies]
    assert looks.count("one") == looks.count("two") == 1, "twice is enough"


async def test_planners_are_told_once_a_statement_and_only_where_it_took_something(claim_service):
    claim_service.lane.answer = lambda requests, from_start: [None] * len(requests)
    await claim_service.lane.end_all(await claim_service.arrive("one", "two"))
    assert claim_service.told == []
    claim_service.lane.answer = lambda requests, from_start: [
        KnownClaim(request.id) if request.request.request_hash == "two" else None for request in requests
    ]
    await claim_service.lane.end_all(await claim_service.arrive("one", "two", "three"))
    assert claim_service.told == [claim_service.pool_id]


async def test_an_idle_batcher_runs_no_task(claim_service):
    assert claim_service.batcher.is_idle
    asked = await claim_service.arrive("one")
    assert not claim_service.batcher.is_idle
    await claim_service.lane.end_all(asked)
    await asyncio.sleep(0)
    assert claim_service.batcher.is_idle
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("batcher-")] == []
    await claim_service.lane.end_all(await claim_service.arrive("two"))
    assert [statement.bodies for statement in claim_service.lane.statements] == [["one"], ["two"]]


class Hears:
    """Somebody who asks without a task of his own; notes how many statements were sent when he heard."""

    def __init__(self, claim_service):
        self.claim_service = claim_service
        self.left = False
        self.heard = []

    def is_disconnected(self):
        return self.left

    def receive(self, request, outcome):
        self.heard.append((request, outcome, len(self.claim_service.lane.statements)))


def ask(claim_service, body):
    asker = Hears(claim_service)
    claim_service.batcher.submit(request(body=body), asker)
    return asker


async def test_the_next_statement_is_sent_before_the_answers_of_the_last_are_given(claim_service):
    held = await claim_service.hold()
    first = [ask(claim_service, f"first-{n}") for n in range(10)]
    held.end()
    statement = await claim_service.lane.statement(1)
    second = ask(claim_service, "second")
    statement.end()
    next_one = await claim_service.lane.statement(2)
    told = []
    while len(told) < 10 or told[-1] < 10:
        told.append(sum(len(asker.heard) for asker in first))
        await asyncio.sleep(0)
    assert {count for asker in first for _, _, count in asker.heard} == {3}
    assert all(later - earlier <= 4 for earlier, later in itertools.pairwise(told)), "a few in each turn of the loop"
    assert not second.heard
    next_one.end()
    await until_idle(claim_service)
    for asker in (*first, second):
        ((request, outcome, _),) = asker.heard
        assert outcome == KnownClaim(request.id)


async def test_who_asks_without_a_task_hears_of_its_error_and_leaves_when_it_likes(claim_service):
    def answer(requests, from_start):
        if any(request.request.request_hash == "bad" for request in requests):
            raise ValueError("no such label")
        return [KnownClaim(request.id) for request in requests]

    claim_service.lane.answer = answer
    held = await claim_service.hold()
    good, bad, early, late = (ask(claim_service, body) for body in ("good", "bad", "early", "late"))
    early.left = True
    held.end()
    statement = await claim_service.lane.statement(1)
    assert statement.bodies == ["good", "bad", "late"]
    late.left = True
    await claim_service.lane.end_all([])
    await until_idle(claim_service)
    assert [type(outcome) for asker in (good, bad) for _, outcome, _ in asker.heard] == [KnownClaim, ValueError]
    assert early.heard == late.heard == []


async def until_idle(claim_service):
    if claim_service.batcher._running is not None:
        await asyncio.wait_for(claim_service.batcher._running, PATIENCE)
    for _ in range(20):  # what is still told by and by
        await asyncio.sleep(0)
