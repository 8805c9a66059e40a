"""The history for those who catch up with it: read and written down once for all of them, and after everybody else.

Any number of clients may come back after a pause and want the same events. What lies between two events never changes, so a page
is kept for whoever comes to the same place. Pages are read and handed out one after another, with pauses that are several times
as long as the work: to catch up is never urgent, and claims are.
"""

import asyncio
import time
from collections import OrderedDict
from typing import Final, NamedTuple

from sse_starlette import ServerSentEvent

from app.api.events.schemas import EventView
from app.errors import DatabaseUnavailable
from app.store import events
from app.store.database import Database
from app.store.events import Cursor, EventRow

PAGE: Final = 200
_MOST_KEPT: Final = 8 * 1024 * 1024
_HAND_OUT_SECONDS: Final = 0.0002
"""What it costs to send a page to one client (measured)."""
_SHORTEST_WORK: Final = 0.002
_PAUSES: Final = 3
"""How many times as long as the work each pause is."""
_now = time.monotonic


class Selection(NamedTuple):
    """Which events a client wants. None: all."""

    pool: str | None = None
    kind: str | None = None

    def has(self, event: EventRow) -> bool:
        return (self.pool is None or self.pool == event.pool) and (
            self.kind is None or self.kind == event.type.partition(".")[0]
        )


class Page(NamedTuple):
    """All events of a selection from one place to another, as they are sent. `end`: where the next page begins."""

    text: bytes
    end: Cursor


class History:
    def __init__(self, db: Database) -> None:
        self._db = db
        self._turn = asyncio.Lock()
        self._kept: OrderedDict[tuple[Cursor, Selection], Page] = OrderedDict()
        self._size = 0
        self._worked = 0.0

    async def page(self, after: Cursor | None, selection: Selection) -> Page | None:
        """The events after a place; after None, which is the end of the history, there are none. None: the database is unavailable."""
        async with self._turn:
            began = _now()
            try:
                found = await self._find(after, selection)
            except DatabaseUnavailable:
                return None
            await asyncio.sleep(self._pause(_now() - began))
            return found

    def _pause(self, worked: float) -> float:
        """How long to wait after that much more work: 0 is for what has come in meanwhile."""
        self._worked += worked + _HAND_OUT_SECONDS
        if self._worked < _SHORTEST_WORK:
            return 0.0
        pause, self._worked = _PAUSES * self._worked, 0.0
        return pause

    async def _find(self, after: Cursor | None, selection: Selection) -> Page:
        if after is None:
            async with self._db.begin() as tx:
                return Page(b"", await events.latest(tx))
        key = after, selection
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return kept
        found = await self._read(after, selection)
        self._keep(key, found)
        return found

    async def _read(self, after: Cursor, selection: Selection) -> Page:
        async with self._db.begin() as tx:
            end = await events.latest(tx)  # before the page: what the page does not have up to here is not there
            found = await events.page(tx, after=after, limit=PAGE, pool=selection.pool, kind=selection.kind)
        text = b"".join(map(render, found))
        if len(found) == PAGE:
            return Page(text, found[-1].cursor)
        return Page(text, max(after, end, *(event.cursor for event in found[-1:])))

    def _keep(self, key: tuple[Cursor, Selection], page: Page) -> None:
        self._kept[key] = page
        self._size += len(page.text)
        while self._size > _MOST_KEPT:
            _, oldest = self._kept.popitem(last=False)
            self._size -= len(oldest.text)


def render(event: EventRow) -> bytes:
    """The event as a stream sends it."""
    view = EventView.from_row(event)
    return ServerSentEvent(data=view.model_dump_json(), event=event.type, id=view.cursor).encode()
