"""The end of the history, read once for all streams of a process."""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from app.api.events.history import PAGE, History, Page, Selection, render
from app.background import PartHealth
from app.concurrency import first_of
from app.errors import TooManyStreams
from app.store import events
from app.store.database import Database
from app.store.events import Cursor, EventRow
from app.telemetry import EVENT_STREAMS, EVENT_STREAMS_REFUSED

_POLL_SECONDS = 0.25
_RETRY_SECONDS = 1.0
_RETRY_AFTER_SECONDS: Final = 5
_MOST_RECENT: Final = 1000
_WOKEN_AT_ONCE: Final = 8


class _Recent(NamedTuple):
    event: EventRow
    text: bytes


class EventTail:
    """`run` reads new events while there are followers. Without it, followers wait forever.

    The last events are kept: who has read up to one of them needs nothing else than memory. All others read the history until
    they have come so far.
    """

    def __init__(self, db: Database, *, max_followers: int) -> None:
        self.health = PartHealth("tail")
        self._db = db
        self._max_followers = max_followers
        self._followers = 0
        self._history = History(db)
        self._recent: list[_Recent] = []
        self._pages: dict[tuple[Cursor, Selection], Page] = {}  # of the recent events, until there are more
        self._begin: Cursor | None = None  # all events after this one are recent; None: nobody reads them
        self._end = Cursor()
        self._grown = asyncio.Condition()

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            has_more = False
            if self._followers:
                with self.health.attempt():
                    has_more = await self._read_on()
            else:
                self._begin = None
            if not has_more:
                await first_of(stop.wait(), timeout=_POLL_SECONDS)
        await self._wake()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a follower. Raises TooManyStreams."""
        if self._followers >= self._max_followers:
            EVENT_STREAMS_REFUSED.inc()
            raise TooManyStreams(
                f"this process serves {self._followers} event streams, which is as many as it may; try again, or read pages",
                retry_after=_RETRY_AFTER_SECONDS,
            )
        self._followers += 1
        EVENT_STREAMS.inc()
        try:
            yield
        finally:
            self._followers -= 1
            EVENT_STREAMS.dec()

    async def follow(self, after: Cursor | None, selection: Selection, *, stop: asyncio.Event) -> AsyncIterator[bytes]:
        """Yields every event after the cursor (None: from now on), in order and as it is sent, several at a time, until `stop`.
        Waits while the database is unavailable.
        """
        while not stop.is_set():
            if after is not None and self._begin is not None and after >= self._begin:
                page = self._page(after, selection)
                if page.end <= after:
                    await self._growth(after, stop)
            else:
                found = await self._history.page(after, selection)
                if found is None:
                    await first_of(stop.wait(), timeout=_RETRY_SECONDS)
                    continue
                page = found
                if self._begin is None:
                    await self._growth(None, stop)
            after = page.end
            if page.text:
                yield page.text

    def _page(self, after: Cursor, selection: Selection) -> Page:
        """What is recent after a place. Many followers stand at the same one."""
        key = after, selection
        if (page := self._pages.get(key)) is None:
            first = bisect_right(self._recent, after, key=lambda each: each.event.cursor)
            new = self._recent[first : first + PAGE]
            end = new[-1].event.cursor if first + PAGE < len(self._recent) else max(after, self._end)
            page = Page(b"".join(each.text for each in new if selection.has(each.event)), end)
            self._pages[key] = page
        return page

    async def _growth(self, after: Cursor | None, stop: asyncio.Event) -> None:
        """Waits until there are events after that place; None: until new events are read at all."""
        async with self._grown:
            while not stop.is_set() and (self._begin is None or (after is not None and self._end <= after)):
                await self._grown.wait()

    async def _read_on(self) -> bool:
        """Whether there may be more to read."""
        async with self._db.begin() as tx:
            starting = self._begin is None
            if starting:
                self._start(await events.latest(tx))
            found = await events.page(tx, after=self._end, limit=PAGE)
        if found:
            self._add(found)
        if found or starting:
            await self._wake()
        return len(found) == PAGE

    def _start(self, at: Cursor) -> None:
        self._begin = self._end = at
        self._recent = []
        self._pages.clear()

    def _add(self, found: Sequence[EventRow]) -> None:
        self._recent += [_Recent(event, render(event)) for event in found]
        self._end = found[-1].cursor
        self._pages.clear()
        if forgotten := self._recent[:-_MOST_RECENT]:
            self._begin = forgotten[-1].event.cursor
            self._recent = self._recent[-_MOST_RECENT:]

    async def _wake(self) -> None:
        """A few at a time: what else this process has to do comes in between."""
        for _ in range(0, self._followers + 1, _WOKEN_AT_ONCE):
            async with self._grown:
                self._grown.notify(_WOKEN_AT_ONCE)
            await asyncio.sleep(0)
