"""The growing end of the history, shared by all streams of a process: one look at the database, whoever listens."""

import asyncio
from collections.abc import AsyncIterator

import structlog

from app.concurrency import first_of
from app.errors import DatabaseUnavailable
from app.store import events
from app.store.database import Database
from app.store.events import Cursor, EventRow

_LOOK_SECONDS = 0.25
_RETRY_SECONDS = 1.0
_PAGE = 200
log = structlog.get_logger(__name__)


class EventTail:
    """`run` looks for new events while somebody follows; without it followers wait for ever."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._end = Cursor()
        self._followers = 0
        self._grown = asyncio.Condition()

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if self._followers:
                try:
                    async with self._db.begin() as tx:
                        end = await events.latest(tx)
                except DatabaseUnavailable:
                    log.debug("tail.database_away")
                else:
                    if end != self._end:
                        self._end = end
                        await self._tell()
            await first_of(stop.wait(), timeout=_LOOK_SECONDS)
        await self._tell()

    async def follow(
        self, after: Cursor | None, *, pool: str | None, kind: str | None, stop: asyncio.Event
    ) -> AsyncIterator[EventRow]:
        """Every event after a cursor (None: from now on), in order, until `stop`. An absent database is waited for."""
        self._followers += 1
        try:
            while after is None and not stop.is_set():
                try:
                    async with self._db.begin() as tx:
                        after = await events.latest(tx)
                except DatabaseUnavailable:
                    await first_of(stop.wait(), timeout=_RETRY_SECONDS)
            while after is not None and not stop.is_set():
                seen = self._end
                found = await self._page(after, pool=pool, kind=kind)
                if found is None:
                    await first_of(stop.wait(), timeout=_RETRY_SECONDS)
                    continue
                for event in found:
                    after = event.cursor
                    yield event
                if len(found) < _PAGE:
                    async with self._grown:
                        while self._end == seen and not stop.is_set():
                            await self._grown.wait()
        finally:
            self._followers -= 1

    async def _page(self, after: Cursor, *, pool: str | None, kind: str | None) -> list[EventRow] | None:
        """None: the database is away."""
        try:
            async with self._db.begin() as tx:
                return await events.page(tx, after=after, limit=_PAGE, pool=pool, kind=kind)
        except DatabaseUnavailable:
            return None

    async def _tell(self) -> None:
        async with self._grown:
            self._grown.notify_all()
