"""One read for all who ask the same at the same moment: who shares which, and what the others notice of one that leaves."""

import asyncio

import pytest

from app.services.single_flight import SingleFlight


class Reader:
    """Counts its reads; each ends when the test lets it, with its own number."""

    def __init__(self):
        self.begun = []
        self._ends = []

    async def read(self, key):
        self.begun.append(key)
        end = asyncio.get_running_loop().create_future()
        self._ends.append(end)
        number = len(self.begun)
        await end
        return f"{key}{number}"

    def end(self, number, error=None):
        """The so-manieth read that began, counted from 1."""
        if error is None:
            self._ends[number - 1].set_result(None)
        else:
            self._ends[number - 1].set_exception(error)


@pytest.fixture
async def reader():
    return Reader()


@pytest.fixture
async def shared(reader):
    """Nothing is left of it when its readers are through: no read, and no error that nobody was told of."""
    untold = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: untold.append(context))
    shared = SingleFlight(reader.read)
    yield shared
    await settle()
    assert (shared._running, shared._next) == ({}, {})
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert untold == []


async def settle():
    """Whatever can go on without the test has gone on."""
    for _ in range(10):
        await asyncio.sleep(0)


def ask(shared, key="a", *, fresh=False):
    return asyncio.ensure_future(shared.get_fresh(key) if fresh else shared.get(key))


async def test_all_who_ask_during_a_read_share_it(reader, shared):
    asked = [ask(shared) for _ in range(3)]
    await settle()
    asked.append(ask(shared))
    other = ask(shared, "b")
    await settle()
    assert reader.begun == ["a", "b"]
    reader.end(1)
    assert await asyncio.gather(*asked) == ["a1"] * 4
    later = ask(shared)
    await settle()
    reader.end(2)
    reader.end(3)
    assert (await other, await later) == ("b2", "a3")


async def test_a_fresh_read_begins_after_it_was_asked_for(reader, shared):
    early = ask(shared)
    await settle()
    fresh = [ask(shared, fresh=True) for _ in range(3)]
    await settle()
    assert reader.begun == ["a"], "two reads of one key never run at once"
    reader.end(1)
    assert await early == "a1"
    await settle()
    assert reader.begun == ["a", "a"]
    fresher = [ask(shared, fresh=True) for _ in range(2)]
    joins = ask(shared)
    await settle()
    reader.end(2)
    assert await asyncio.gather(*fresh, joins) == ["a2"] * 4
    await settle()
    reader.end(3)
    assert await asyncio.gather(*fresher) == ["a3"] * 2
    assert len(reader.begun) == 3


async def test_a_fresh_read_with_none_under_way_begins_at_once(reader, shared):
    first, second = ask(shared, fresh=True), ask(shared)
    await settle()
    reader.end(1)
    assert (await first, await second) == ("a1", "a1")


@pytest.mark.parametrize("ticks", range(6))
async def test_a_fresh_read_is_fresh_whenever_it_is_asked_for(reader, shared, ticks):
    """Also in the moments between the end of one read and the beginning of the one that others wait for."""
    begun_before = {}

    async def watch():
        begun_before["asked"] = len(reader.begun)
        return await shared.get_fresh("a")

    first, waiting = ask(shared), None
    await settle()
    waiting = ask(shared, fresh=True)
    await settle()
    reader.end(1)
    for _ in range(ticks):
        await asyncio.sleep(0)
    joins = ask(shared)
    for _ in range(2):
        await asyncio.sleep(0)
    late = asyncio.ensure_future(watch())
    ends = asyncio.ensure_future(end_as_they_come(reader))
    answers = await asyncio.gather(first, waiting, joins, late)
    ends.cancel()
    assert int(answers[-1][1:]) > begun_before["asked"]
    assert int(answers[1][1:]) > 1


async def end_as_they_come(reader):
    number = 1
    while True:
        await asyncio.sleep(0)
        if len(reader.begun) > number:
            number += 1
            await asyncio.sleep(0)
            reader.end(number)


@pytest.mark.parametrize("fresh", [False, True])
async def test_who_is_cancelled_leaves_the_read_to_the_others(reader, shared, fresh):
    before = ask(shared)
    await settle()
    leaves, stays = ask(shared, fresh=fresh), ask(shared, fresh=fresh)
    await settle()
    leaves.cancel()
    await settle()
    assert leaves.cancelled()
    reader.end(1)
    await settle()
    if fresh:
        reader.end(2)
    assert await stays == ("a2" if fresh else "a1")
    assert await before == "a1"


@pytest.mark.parametrize("error", [None, ValueError("no such pool")])
async def test_a_read_that_nobody_waits_for_any_more_ends_quietly(reader, shared, error):
    asked = [ask(shared), ask(shared)]
    await settle()
    asked.append(ask(shared, fresh=True))
    await settle()
    for each in asked:
        each.cancel()
    await settle()
    reader.end(1, error)
    await settle()
    if len(reader.begun) > 1:
        reader.end(2, error)
    await settle()
    again = ask(shared)
    await settle()
    reader.end(len(reader.begun))
    assert await again == f"a{len(reader.begun)}"


async def test_an_error_is_everybodys_and_the_next_reads_anew(reader, shared):
    asked = [ask(shared) for _ in range(3)]
    await settle()
    fresh = ask(shared, fresh=True)
    await settle()
    error = ValueError("away")
    reader.end(1, error)
    assert await asyncio.gather(*asked, return_exceptions=True) == [error] * 3
    await settle()
    reader.end(2)
    assert await fresh == "a2", "it was not its read that failed"
