"""Waiting for the first of several things."""

import asyncio

import pytest

from app.concurrency import first_of


async def test_the_things_that_are_done_come_back_and_own_coroutines_are_cancelled() -> None:
    ended = asyncio.Event()

    async def never() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def at_once() -> int:
        return 4

    done = await first_of(never(), at_once())

    assert [each.result() for each in done] == [4]
    assert ended.is_set()


async def test_nothing_comes_back_when_the_timeout_is_reached_first() -> None:
    assert await first_of(asyncio.Event().wait(), timeout=0.01) == []


async def test_a_task_of_the_caller_keeps_running() -> None:
    finish = asyncio.Event()
    task = asyncio.create_task(finish.wait())

    await first_of(task, asyncio.sleep(0))

    assert not task.done()
    finish.set()
    assert await task


async def test_a_failure_is_left_to_whoever_asks_for_the_result() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    (failed,) = await first_of(fail())

    with pytest.raises(ValueError, match="broken"):
        failed.result()


async def test_cancelling_the_wait_ends_its_own_coroutines_first() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def never() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(first_of(never()))
    await started.wait()
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
