"""The one way to wait for the first of several things."""

import asyncio
from collections.abc import Awaitable
from typing import Any


async def first_of(*things: Awaitable[Any], timeout: float | None = None) -> list["asyncio.Future[Any]"]:  # noqa: ASYNC109 - reaching it is no error
    """Waits until one of `things` is done, or for `timeout` seconds. Returns those that are done, in the order given.

    A coroutine runs as a task, which is cancelled and has ended before this returns or raises. A task or a future that
    the caller passes keeps running. Nothing is raised for a thing that failed: the caller asks its `result()`.
    """
    futures = [asyncio.ensure_future(thing) for thing in things]
    own = [future for future, thing in zip(futures, things, strict=True) if future is not thing]
    try:
        await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in own:
            future.cancel()
        await asyncio.gather(*own, return_exceptions=True)
    return [future for future in futures if future.done() and not future.cancelled()]
