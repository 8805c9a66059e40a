"""Time as the dev cluster sees it: a wall clock for stamps and timers for simulated work.

Controllers never sleep: they ask for a callback. So a test can hand in a `ManualClock` and move it, and the same
code runs against the event loop's own timers.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    def now(self) -> datetime:
        """The current moment, aware, UTC."""
        ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` on the event loop after `delay` seconds of this clock."""
        ...


class LoopClock:
    """Real time, on the running event loop."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(max(0.0, delay), callback)


class ManualClock:
    """Time that stands still until it is moved; callbacks run in the order in which they are due."""

    def __init__(self, start: datetime | None = None) -> None:
        self._now = start or datetime(2030, 1, 1, tzinfo=UTC)
        self._order = itertools.count()
        self._due: list[tuple[datetime, int, _ManualTimer]] = []

    def now(self) -> datetime:
        return self._now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = _ManualTimer(callback)
        heapq.heappush(self._due, (self._now + timedelta(seconds=max(0.0, delay)), next(self._order), timer))
        return timer

    async def advance(self, seconds: float) -> None:
        """Move time forward; between two callbacks the loop runs until it has nothing left to do at once."""
        target = self._now + timedelta(seconds=seconds)
        await _let_the_loop_run()
        while self._due and self._due[0][0] <= target:
            moment, _, timer = heapq.heappop(self._due)
            if timer.callback is None:
                continue
            self._now = max(self._now, moment)
            timer.fire()
            await _let_the_loop_run()
        self._now = target
        await _let_the_loop_run()


class _ManualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()


async def _let_the_loop_run() -> None:
    for _ in range(8):  # a callback may queue work that queues work; controllers need two or three turns
        await asyncio.sleep(0)
