"""Lists are read a few at a time, on connections of their own, and written in slices: a claim never waits for more than a slice."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import orjson
from fastapi import Response
from pydantic import BaseModel

from app.errors import TooManyLists
from app.store.database import Database, Tx

_Row = TypeVar("_Row")
_SLICE = 5
_WAIT_SECONDS = 10.0
SESSION = {
    # Each combination of filters and values is planned for itself, and none reads a table whole.
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "off",
    "statement_timeout": "10000",
    "application_name": "emberpool-lists",
}
"""The settings of the connections that lists are read on."""


class Lists:
    """`at_once`: how many lists are read at the same time; the others wait for their turn."""

    def __init__(self, url: str, *, at_once: int) -> None:
        self._db = Database(url, pool_size=at_once, session=SESSION)
        self._turns = asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Tx]:
        """A transaction for one list. Its answer is written in the turn too. Raises TooManyLists, DatabaseUnavailable."""
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await self._turns.acquire()
        except TimeoutError as error:
            busy = f"other lists were read for {_WAIT_SECONDS:.0f} s; ask again later, or for fewer lists at a time"
            raise TooManyLists(busy, retry_after=_WAIT_SECONDS) from error
        try:
            async with self._db.begin() as tx:
                yield tx
        finally:
            self._turns.release()

    async def close(self) -> None:
        await self._db.close()


async def answer(rows: Sequence[_Row], view: Callable[[_Row], BaseModel], following: str | None) -> Response:
    """A `Page` of the views of these rows."""
    items: list[str] = []
    for start in range(0, len(rows), _SLICE):
        items += [view(row).model_dump_json() for row in rows[start : start + _SLICE]]
        await asyncio.sleep(0)
    body = f'{{"items":[{",".join(items)}],"next":{orjson.dumps(following).decode()}}}'
    return Response(body, media_type="application/json")
