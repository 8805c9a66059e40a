"""Drawn schedules of a batcher's requests: arrivals, keys, clients that leave, and statements that fail."""

import asyncio
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.claims import KnownClaim
from app.errors import DatabaseUnavailable
from tests.support.claim_lanes import Desk
from tests.support.patience import PATIENCE

STEPS = st.one_of(
    st.tuples(st.just("arrive"), st.sampled_from([None, None, "a", "b"]), st.sampled_from(["fine"] * 4 + ["bad"])),
    st.tuples(st.just("crowd"), st.integers(1, 90)),
    st.tuples(st.just("cancel"), st.integers(0, 400)),
    st.tuples(st.just("end"), st.sampled_from(["well"] * 4 + ["away"])),
)


class Schedule:
    """Each request has a body of its own: its number behind "fine", or behind "bad" for one that no statement can hold."""

    def __init__(self):
        self.claim_service = Desk(answer)
        self.asked = []
        self.unsent = set()

    @property
    def sent(self):
        """The bodies of all statements, in their order."""
        return [body for statement in self.claim_service.lane.statements for body in statement.bodies]

    async def run(self, steps):
        for name, *how in steps:
            getattr(self, name)(*how)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return await self.claim_service.lane.end_all([task for _, task in self.asked])

    def arrive(self, key, kind):
        self.asked.append((key, self.claim_service.ask(f"{kind}-{len(self.asked)}", key)))

    def crowd(self, size):
        for _ in range(size):
            self.arrive(None, "fine")

    def cancel(self, number):
        if self.asked:
            task = self.asked[number % len(self.asked)][1]
            if not task.done() and task.get_name() not in self.sent:
                self.unsent.add(task.get_name())
            task.cancel()

    def end(self, how):
        if self.claim_service.lane.in_flight:
            self.claim_service.lane.statements[-1].end(DatabaseUnavailable("away") if how == "away" else None)


def answer(requests, from_start):
    if any(request.request.request_hash.startswith("bad") for request in requests):
        raise ValueError("of one of these")
    return [KnownClaim(request.id) for request in requests]


@given(steps=st.lists(STEPS, min_size=4, max_size=40))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
async def test_no_schedule_mixes_requests_up(steps):
    schedule = Schedule()
    results = await schedule.run(steps)
    statements, sent = schedule.claim_service.lane.statements, schedule.sent
    assert schedule.claim_service.lane.most_in_flight <= 1
    # Its task ends some turns of the loop after the last statement.
    ending = [task for task in asyncio.all_tasks() if task.get_name().startswith("batcher-")]
    await asyncio.wait_for(asyncio.gather(*ending), PATIENCE)
    assert schedule.claim_service.batcher.is_idle

    for statement in statements:
        keys = Counter(request.request.key for request in statement.requests if request.request.key is not None)
        assert not keys or max(keys.values()) == 1
        assert len(statement.requests) <= 64
    assert not schedule.unsent & set(sent), "who leaves before its statement is in none"
    times = Counter(sent)
    assert max(times.values(), default=0) <= 2, "together with others, and alone where that failed"
    firsts = list(dict.fromkeys(sent))
    for key in ("a", "b", None):
        mine = [task.get_name() for one, task in schedule.asked if one == key]
        assert [body for body in firsts if body in set(mine)] == [body for body in mine if times[body]]

    claim_of = {request.request.request_hash: request.id for each in statements for request in each.requests}
    for (_, task), result in zip(schedule.asked, results, strict=True):
        if isinstance(result, KnownClaim):
            assert task.get_name().startswith("fine")
            assert result.claim_id == claim_of[task.get_name()]
        elif isinstance(result, ValueError):
            assert task.get_name().startswith("bad")
        else:
            assert isinstance(result, asyncio.CancelledError | DatabaseUnavailable)
