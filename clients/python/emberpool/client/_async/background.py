"""What only asyncio has: a task beside the caller's, and work that a cancellation does not cut short.

`_sync.background` offers the same names for threads. All else in this package is translated from here to there.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import ParamSpec, Self, TypeVar

_Found = TypeVar("_Found")
_Given = ParamSpec("_Given")
sleep = asyncio.sleep
Event = asyncio.Event
to_thread = asyncio.to_thread


async def pause(stop: asyncio.Event, seconds: float) -> bool:
    """Waits so long, or until `stop` is set. Returns whether it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
    return stop.is_set()


async def to_its_end(
    work: Callable[_Given, Awaitable[_Found]], /, *args: _Given.args, **kwargs: _Given.kwargs
) -> _Found:
    """The result of `work`, which is done even if the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(work(*args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(Exception):
            await task
        raise


class Background:
    """Runs `work` beside the body of an `async with`, and sets `stop`, for which `work` has to look, at its end."""

    def __init__(self, work: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
        self._work = work
        self._stop = stop

    async def __aenter__(self) -> Self:
        self._task = asyncio.ensure_future(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        self._task.cancel()
        await asyncio.wait({self._task})
