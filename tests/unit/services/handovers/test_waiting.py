"""Requests that wait for an id: by what they are woken, and that no notice falls between a look and a wait."""

import asyncio
from uuid import UUID

from app.services.handovers.waiting import Waiting

ONE, TWO = UUID(int=1), UUID(int=2)


async def begin(waiting, key, seconds=60.0):
    task = asyncio.create_task(waiting.wait(key, seconds, looked_at=waiting.now))
    await asyncio.sleep(0)  # the task runs up to its wait, and no further
    assert key in waiting.all()
    return task


async def test_a_notice_wakes_those_that_it_names_and_no_others():
    waiting = Waiting()
    one, also_one, two = await begin(waiting, ONE), await begin(waiting, ONE), await begin(waiting, TWO)
    await asyncio.sleep(0)
    waiting.wake(f"{ONE}")
    assert await one
    assert await also_one
    assert not two.done()
    waiting.close()
    assert not await two
    assert len(waiting) == 0


async def test_a_notice_without_names_wakes_all():
    waiting = Waiting()
    both = [await begin(waiting, ONE), await begin(waiting, TWO)]
    waiting.wake("")
    assert await asyncio.gather(*both) == [True, True]


async def test_a_notice_between_the_look_and_the_wait_is_not_lost():
    waiting = Waiting()
    looked_at = waiting.now
    waiting.wake(f"{ONE}")
    assert await waiting.wait(ONE, 60, looked_at=looked_at)
    waiting.forget()  # it is not so long ago
    assert await waiting.wait(ONE, 60, looked_at=looked_at)


async def test_a_wait_ends_by_itself_and_leaves_nothing_behind():
    waiting = Waiting()
    assert not await waiting.wait(ONE, 0.01, looked_at=waiting.now)
    assert waiting.all() == []


async def test_a_cancelled_wait_leaves_nothing_behind():
    waiting = Waiting()
    one = await begin(waiting, ONE)
    one.cancel()
    await asyncio.gather(one, return_exceptions=True)
    assert waiting.all() == []


async def test_nobody_waits_once_it_is_closed():
    waiting = Waiting()
    waiting.close()
    assert not await waiting.wait(ONE, 60, looked_at=waiting.now)
