"""Requests that wait for something that has an id: they are woken by notices that name it, by anybody who looks, or by time."""

import asyncio
from collections.abc import Iterable
from uuid import UUID

_REMEMBERED_SECONDS = 5.0


class Waiting:
    """All of one kind in one process. Each costs a future and a timer, and no task."""

    def __init__(self) -> None:
        self.closed = False
        self._waiting: dict[UUID, set[asyncio.Future[bool]]] = {}
        self._noticed: dict[UUID, float] = {}
        """When something without a waiter was last named: who began to look before that looks again."""

    def __len__(self) -> int:
        return len(self._waiting)

    def all(self) -> list[UUID]:
        """What is waited for."""
        return list(self._waiting)

    @property
    def now(self) -> float:
        """On the clock of `wait`."""
        return asyncio.get_running_loop().time()

    async def wait(self, key: UUID, seconds: float, *, looked_at: float) -> bool:
        """True once it was named since `looked_at`, False after `seconds` or at the stop."""
        if self._noticed.get(key, 0.0) >= looked_at:
            return True
        if self.closed or seconds <= 0:
            return False
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiting.setdefault(key, set()).add(waiter)
        timer = loop.call_later(seconds, _settle, waiter, False)
        try:
            return await waiter
        finally:
            timer.cancel()
            waiters = self._waiting[key]
            waiters.discard(waiter)
            if not waiters:
                del self._waiting[key]

    def wake(self, payload: str) -> None:
        """The ids that a notice names, separated by commas. A notice without any names all: some may have been lost."""
        self.wake_each([UUID(each) for each in payload.split(",")] if payload else list(self._waiting))

    def wake_each(self, keys: Iterable[UUID]) -> None:
        now = self.now
        for key in keys:
            self._noticed[key] = now
            for waiter in self._waiting.get(key, ()):
                _settle(waiter, True)

    def forget(self) -> None:
        """Drops what was noticed so long ago that nobody is between a look and a wait. Call it about once a second."""
        before = self.now - _REMEMBERED_SECONDS
        self._noticed = {key: at for key, at in self._noticed.items() if at >= before}

    def close(self) -> None:
        """Nobody waits any more."""
        self.closed = True
        for waiters in self._waiting.values():
            for waiter in waiters:
                _settle(waiter, False)


def _settle(waiter: "asyncio.Future[bool]", woken: bool) -> None:  # noqa: FBT001 - a callback's argument
    if not waiter.done():
        waiter.set_result(woken)
