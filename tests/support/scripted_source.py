"""A cluster for the reflector that does what a test says: lists in pages that may be held, and watches that a test feeds."""

import asyncio
from contextlib import asynccontextmanager

from app.compute.kubevirt.streams import Page
from tests.support.patience import PATIENCE


def event(kind, item):
    return {"type": kind, "object": item}


class ScriptedSource:
    """`lists[kind]` are the lists of a kind, one after the other, the last for ever: each is an exception, or pages, of which one
    that is an `asyncio.Event` holds the list until it is set. A list is at version `at`.
    """

    def __init__(self, lists, *, at="10"):
        self.lists = lists
        self.at = at
        self.listed = []
        """Each list that was begun: its kind."""
        self.most_at_once = 0
        """So many lists ran side by side."""
        self.watched = []
        """Each watch that was opened: its kind and version."""
        self.open = 0
        self.refused = None
        """Raised when a watch is to be opened."""
        self._running = 0
        self._feeds = {}
        self._changed = asyncio.Event()

    async def newest_version(self, kind):
        answer = self.lists[kind][0]
        if isinstance(answer, Exception):
            self._next(kind)
            raise answer
        return self.at

    async def stream(self, kind):
        self.listed.append(kind)
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)
        self._notice()
        try:
            await asyncio.sleep(0)
            answer = self._next(kind)
            if isinstance(answer, Exception):
                raise answer
            for page in answer:
                if isinstance(page, asyncio.Event):
                    await page.wait()
                else:
                    yield Page(page, self.at)
        finally:
            self._running -= 1

    async def metadata(self, kind):
        """The same lists: only the metadata in them is read."""
        async for page in self.stream(kind):
            yield Page([{"metadata": item["metadata"]} for item in page.items], page.version)

    @asynccontextmanager
    async def watch(self, kind, version):
        if self.refused is not None:
            raise self.refused
        feed = self._feeds[kind] = asyncio.Queue()
        self.watched.append((kind, version))
        self.open += 1
        self._notice()
        try:
            yield _read(feed)
        finally:
            self.open -= 1

    async def feed(self, kind, *events):
        """Into the open watch of the kind, once there is one. An exception is raised there; None ends the watch."""
        await self.until(lambda: kind in self._feeds)
        for item in events:
            self._feeds[kind].put_nowait(item)
        if events and not isinstance(events[-1], dict):
            del self._feeds[kind]

    async def taken(self, kind):
        """Until what was fed has been read and handed on."""
        async with asyncio.timeout(PATIENCE):
            await self._feeds[kind].join()

    async def until(self, holds):
        """Until something about the source holds."""
        async with asyncio.timeout(PATIENCE):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    def _next(self, kind):
        lists = self.lists[kind]
        return lists.pop(0) if len(lists) > 1 else lists[0]

    def _notice(self):
        self._changed.set()


async def _read(feed):
    while (item := await feed.get()) is not None:
        if isinstance(item, Exception):
            raise item
        yield [item]
        feed.task_done()


class Naps:
    """Stands for sleeping: remembers how long, and takes no time."""

    def __init__(self):
        self.taken = []

    async def __call__(self, seconds):
        self.taken.append(seconds)
        await asyncio.sleep(0)


async def soon(events):
    async with asyncio.timeout(PATIENCE):
        return await anext(events)
