"""The two Python clients through one set of hands: what belongs to the one for threads runs in a thread."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from inspect import iscoroutinefunction
from typing import Any

import httpx

from emberpool.client import AsyncClient, Client
from tests.support.service import until

_SIP = 0.01


async def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of a method of either client."""
    if iscoroutinefunction(function):
        return await function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


@asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """The body of a `with` or an `async with`."""
    if hasattr(manager, "__aenter__"):
        async with manager as found:
            yield found
        return
    found = await asyncio.to_thread(manager.__enter__)
    try:
        yield found
    except BaseException:
        if not await asyncio.to_thread(manager.__exit__, *sys.exc_info()):
            raise
    else:
        await asyncio.to_thread(manager.__exit__, None, None, None)


async def following(iterator: Any) -> Any:
    """The next item of an iterator of either client."""
    return await anext(iterator) if hasattr(iterator, "__anext__") else await asyncio.to_thread(next, iterator)


class Steps:
    """In place of the time between two renewals: `seconds` are the pauses that were asked for, and `step` ends the next one."""

    def __init__(self, client: Client | AsyncClient) -> None:
        self.seconds: list[float] = []
        self._steps = threading.Semaphore(0)
        client._pause = self._pause_async if isinstance(client, AsyncClient) else self._pause

    async def step(self) -> None:
        """Ends the pause, and waits for the next, or for the end of them."""
        await self._until_pause(1)
        asked = len(self.seconds)
        self._steps.release()
        await self._until_pause(asked + 1)

    def end(self) -> None:
        """Ends the pause."""
        self._steps.release()

    async def _until_pause(self, number: int) -> None:
        async def paused() -> bool:
            return len(self.seconds) >= number

        await until(paused)

    def _pause(self, stop: threading.Event, seconds: float) -> bool:
        self.seconds.append(seconds)
        while not stop.is_set():
            if self._steps.acquire(timeout=_SIP):
                return False
        return True

    async def _pause_async(self, stop: asyncio.Event, seconds: float) -> bool:
        self.seconds.append(seconds)
        while not stop.is_set():
            if self._steps.acquire(blocking=False):
                return False
            await asyncio.sleep(_SIP)
        return True


class Scripted(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers with what the script has for the request after the other: an answer, or an error to raise. It ends with the last."""

    def __init__(self, *script: httpx.Response | type[BaseException]) -> None:
        self.requests: list[httpx.Request] = []
        self.tokens: list[str | None] = []
        self._script = list(script)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.tokens.append(request.headers.get("authorization"))
        found = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(found, type):
            raise found("broken")
        return httpx.Response(found.status_code, headers=found.headers, content=found.content)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return self.handle_request(request)


class LosesAnswers(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Sends every request, but raises in place of the first answer to a POST."""

    def __init__(self, raised: BaseException) -> None:
        self._raised: BaseException | None = raised
        self._sync, self._async = httpx.HTTPTransport(), httpx.AsyncHTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._sync.handle_request(request)
        answer.read()
        self._lose(request)
        return answer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self._async.handle_async_request(request)
        await answer.aread()
        self._lose(request)
        return answer

    def close(self) -> None:
        self._sync.close()

    async def aclose(self) -> None:
        await self._async.aclose()

    def _lose(self, request: httpx.Request) -> None:
        raised, self._raised = (self._raised, None) if request.method == "POST" else (None, self._raised)
        if raised is not None:
            raise raised
