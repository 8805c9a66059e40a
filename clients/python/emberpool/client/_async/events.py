"""The stream of events, which goes on where it broke."""

import json
import time
from collections.abc import AsyncIterator
from typing import Final

import httpx
from httpx_sse import ServerSentEvent, aconnect_sse

from emberpool.client._answers import describe_failure, read_answer
from emberpool.client._async.operations import AsyncOperations
from emberpool.client.errors import Unavailable, Unreachable
from emberpool.client.schemas import EventKind, EventView

_SILENT_SECONDS: Final = 60.0
"""The service says something at least every 15 seconds."""
_PAUSE_SECONDS: Final = 0.5
_OLDEST: Final = "0-0"


class AsyncEvents(AsyncOperations):
    """Adds `events` to the operations."""

    async def events(
        self, *, pool: str | None = None, kind: EventKind | None = None, after: str | None = None
    ) -> AsyncIterator[EventView]:
        """What happens from now on, or after the event whose cursor is `after` ("0-0": all that the history has), without end.

        A stream that breaks is opened again, and none of its events is lost or comes twice. Raises Unreachable and Unavailable
        when that has failed for longer than the client's patience, and Refused.
        """
        last = after if after is not None else await self._newest()
        good = time.monotonic()
        while True:
            try:
                async for event in self._stream(pool, kind, last):
                    if event is not None:
                        last = event.id
                        found: EventView = json.loads(event.data)
                        yield found
                    good = time.monotonic()
                pause = _PAUSE_SECONDS
            except (Unreachable, Unavailable) as error:
                pause = (error.retry_after if isinstance(error, Unavailable) else None) or _PAUSE_SECONDS
                if time.monotonic() - good + pause > self.patience or (
                    isinstance(error, Unreachable) and not error.passing
                ):
                    raise
            await self._sleep(pause)

    async def _newest(self) -> str:
        page = await self.list_events(limit=1, order="newest")
        return page["items"][0]["cursor"] if page["items"] else _OLDEST

    async def _stream(
        self, pool: str | None, kind: EventKind | None, last: str
    ) -> AsyncIterator[ServerSentEvent | None]:
        """None once it is open, then each event. Ends when the service ends it. Raises Unreachable, Refused."""
        given = {"pool": pool, "kind": kind}
        opened = aconnect_sse(
            self.http,
            "GET",
            "/v1/events",
            params={name: value for name, value in given.items() if value is not None},
            headers={"Last-Event-ID": last},
            timeout=_SILENT_SECONDS,
        )
        try:
            async with opened as source:
                if source.response.is_error:
                    await source.response.aread()
                    read_answer(self.url, source.response)
                yield None
                async for event in source.aiter_sse():
                    if event.id and event.data:
                        yield event
        except httpx.TransportError as error:
            raise describe_failure(self.url, error) from error
