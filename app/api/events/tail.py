"""The end of the history, polled once for all streams of a process."""

import asyncio
from collections.abc import AsyncIterator

from app.background import PartHealth
from app.concurrency import first_of
from app.errors import DatabaseUnavailable
from app.store import events
from app.store.database import Database
from app.store.events import Cursor, EventRow

_POLL_SECONDS = 0.25
_RETRY_SECONDS = 1.0
_PAGE = 200


class EventTail:
    """`run` polls for new events while there are followers. Without it, followers wait forever."""

    def __init__(self, db: Database) -> None:
        self.health = PartHealth("tail")
        self._db = db
        self._end = Cursor()
        self._followers = 0
        self._grown = asyncio.Condition()

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if self._followers:
                with self.health.attempt():
                    async with self._db.begin() as tx:
                        end = await events.latest(tx)
                    if end != self._end:
                        self._end = end
                        await self._notify()
            await first_of(stop.wait(), timeout=_POLL_SECONDS)
        await self._notify()

    async def follow(
        self, after: Cursor | None, *, pool: str | None, kind: str | None, stop: asyncio.Event
    ) -> AsyncIterator[EventRow]:
        """Yields every event after the cursor (None: from now on), in order, until `stop`. Waits while the database is unavailable."""
        self._followers += 1
        try:
            while after is None and not stop.is_set():
                try:
                    async with self._db.begin() as tx:
                        after = await events.latest(tx)
                except DatabaseUnavailable:
                    await first_of(stop.wait(), timeout=_RETRY_SECONDS)
            while after is not None and not stop.is_set():
                known = self._end
                found = await self._page(after, pool=pool, kind=kind)
                if found is None:
                    await first_of(stop.wait(), timeout=_RETRY_SECONDS)
                    continue
                for event in found:
                    after = event.cursor
                    yield event
                if len(found) < _PAGE:
                    async with self._grown:
                        while self._end == known and not stop.is_set():
                            await self._grown.wait()
        finally:
            self._followers -= 1

    async def _page(self, after: Cursor, *, pool: str | None, kind: str | None) -> list[EventRow] | None:
        """None if the database is unavailable."""
        try:
            async with self._db.begin() as tx:
                return await events.page(tx, after=after, limit=_PAGE, pool=pool, kind=kind)
        except DatabaseUnavailable:
            return None

    async def _notify(self) -> None:
        async with self._grown:
            self._grown.notify_all()
