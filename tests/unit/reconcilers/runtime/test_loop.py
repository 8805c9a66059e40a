"""The shared loop: again while there is work, at a hint, after the interval, and not after a stop."""

import asyncio

import pytest

from app.background import PartHealth
from app.errors import ClusterUnavailable, DatabaseUnavailable
from app.reconcilers.runtime import loop
from app.reconcilers.runtime.loop import Wake, at_once, rest, run_loop
from tests.support.patience import PATIENCE

FOR_EVER = 3600.0


class Rests:
    """Takes the place of `rest`: no time passes, and each pause is written down. Stops the loop after `limit`."""

    def __init__(self, stop, limit):
        self.pauses = []
        self._stop = stop
        self._limit = limit

    async def __call__(self, seconds, wake, stop):
        self.pauses.append((seconds, wake is not None))
        await asyncio.sleep(0)
        if len(self.pauses) >= self._limit:
            self._stop.set()


async def test_a_step_that_found_work_is_run_again_at_once(monkeypatch):
    stop, left = asyncio.Event(), [True, True, False, True, False]
    rests = Rests(stop, 2)
    monkeypatch.setattr(loop, "rest", rests)

    async def step():
        return left.pop(0)

    await run_loop(PartHealth("x"), step, every=7, wake=Wake(), stop=stop)
    assert left == []
    assert rests.pauses == [(7, True), (7, True)]


async def test_errors_back_off_and_success_ends_that(monkeypatch):
    stop = asyncio.Event()
    rests = Rests(stop, 8)
    monkeypatch.setattr(loop, "rest", rests)
    errors = [
        DatabaseUnavailable("away"),
        ClusterUnavailable("away"),
        ValueError("a bug"),
        *[OSError("x")] * 3,
        None,
        None,
    ]

    async def step():
        error = errors.pop(0)
        if error is not None:
            raise error
        return False

    await run_loop(PartHealth("x"), step, every=7, wake=Wake(), stop=stop)
    waits = [seconds for seconds, _ in rests.pauses]
    for number, seconds in enumerate(waits[:6]):
        share = min(15.0, 0.5 * 2**number)
        assert share / 2 <= seconds <= share
    assert waits[6:] == [7, 7]
    assert [woken for _, woken in rests.pauses] == [False] * 6 + [True] * 2, "hints do not shorten a backoff"


async def running(step, *, wake=None, every=FOR_EVER):
    stop = asyncio.Event()
    return asyncio.create_task(run_loop(PartHealth("x"), step, every=every, wake=wake or Wake(), stop=stop)), stop


async def test_a_hint_ends_the_rest_and_a_stop_ends_the_loop():
    wake, steps = Wake(), asyncio.Queue()

    async def step():
        steps.put_nowait(1)
        return False

    task, stop = await running(step, wake=wake)
    for _ in range(3):
        await asyncio.wait_for(steps.get(), PATIENCE)
        wake("a payload")
    stop.set()
    await asyncio.wait_for(task, PATIENCE)


async def test_hints_during_a_step_are_one_hint_for_the_next():
    wake, seen, go = Wake(), [], asyncio.Event()

    async def step():
        seen.append(1)
        if len(seen) == 1:
            for _ in range(5):
                wake()
        if len(seen) == 2:
            go.set()
        return False

    task, stop = await running(step, wake=wake)
    await asyncio.wait_for(go.wait(), PATIENCE)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(seen) == 2
    stop.set()
    await asyncio.wait_for(task, PATIENCE)


async def test_a_step_under_way_is_finished_after_a_stop():
    begun, go, ended = asyncio.Event(), asyncio.Event(), []

    async def step():
        begun.set()
        await go.wait()
        ended.append(1)
        return True

    task, stop = await running(step)
    await asyncio.wait_for(begun.wait(), PATIENCE)
    stop.set()
    go.set()
    await asyncio.wait_for(task, PATIENCE)
    assert ended == [1]


async def test_a_cancelled_loop_ends():
    begun = asyncio.Event()

    async def step():
        begun.set()
        await asyncio.Event().wait()

    task, _ = await running(step)
    await asyncio.wait_for(begun.wait(), PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_rest_ends_with_its_time():
    await asyncio.wait_for(rest(0.001, Wake(), asyncio.Event()), PATIENCE)


async def test_all_items_are_handled_to_their_end_and_then_the_first_failure_is_raised():
    done = []

    async def handle(item):
        if item == 1:
            raise ValueError("first")
        await asyncio.sleep(0)
        done.append(item)

    with pytest.raises(ValueError, match="first"):
        await at_once(handle, [1, 2, 3])
    assert done == [2, 3]
    await at_once(handle, [])
