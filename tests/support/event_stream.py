"""The stream of events, as a client reads it."""

import asyncio
import json
from contextlib import asynccontextmanager

from tests.support.patience import PATIENCE

STREAM = {"Accept": "text/event-stream"}


@asynccontextmanager
async def follow(client, *, headers=(), **params):
    """The events of a stream as (id, type, data), for as long as the block lasts."""
    async with client.stream(
        "GET", "/v1/events", params=params, headers={**STREAM, **dict(headers)}, timeout=PATIENCE
    ) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")

        async def events():
            fields = {}
            async for line in answer.aiter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "data" in fields:
                    yield fields["id"], fields["event"], json.loads(fields["data"])
                    fields = {}

        yield events()


async def take(events, number):
    async with asyncio.timeout(PATIENCE):
        return [await anext(events) for _ in range(number)]
