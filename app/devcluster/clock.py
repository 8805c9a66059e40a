"""The clock of the dev cluster: the time for stamps, and timers for simulated work.

Controllers never sleep, they ask for a callback. So a test can pass a `ManualClock` and advance it, while the same code
runs on the timers of the event loop otherwise.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

_SETTLE_TURNS = 100_000
_QUIET_TURNS = 4


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
    """Time that stands still until the test advances it; callbacks run in the order in which they are due."""

    def __init__(self, start: datetime | None = None) -> None:
        self.busy: list[Callable[[], bool]] = []
        """Time does not move on while one of these is true; a DevCluster adds its controllers."""
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
        """Move time forward. Between two callbacks the event loop runs until nothing is ready to run."""
        target = self._now + timedelta(seconds=seconds)
        await self.settle()
        while self._due and self._due[0][0] <= target:
            moment, _, timer = heapq.heappop(self._due)
            if timer.callback is None:
                continue
            self._now = max(self._now, moment)
            timer.fire()
            await self.settle()
        self._now = target
        await self.settle()

    async def settle(self) -> None:
        """Run the event loop until nothing is ready to run."""
        quiet = 0
        for _ in range(_SETTLE_TURNS):
            await asyncio.sleep(0)
            quiet = 0 if any(busy() for busy in self.busy) else quiet + 1
            if quiet > _QUIET_TURNS:
                return
        raise RuntimeError(f"the controllers were still busy after {_SETTLE_TURNS} turns of the event loop")


class _ManualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()
