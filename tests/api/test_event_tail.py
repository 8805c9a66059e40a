"""The growing end of the history, where nobody else looks: what it leaves behind, and how it ends."""

import asyncio
from contextlib import asynccontextmanager

from app.api.events import tail
from app.api.events.history import Selection
from app.api.events.tail import EventTail
from app.store.postgres_errors import not_committed
from tests.support.event_stream import follow, take
from tests.support.patience import PATIENCE
from tests.support.service import listen, serve, until


class AbsentDatabase:
    """Never there; counts how often it was asked for."""

    def __init__(self):
        self.asked = 0

    @asynccontextmanager
    async def begin(self):
        self.asked += 1
        raise not_committed()
        yield


async def test_looking_again_and_again_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr(tail, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(tail, "_RETRY_SECONDS", 0.001)
    db, stop = AbsentDatabase(), asyncio.Event()
    end = EventTail(db, max_followers=1)
    events = end.follow(None, Selection(), stop=stop)
    before = asyncio.all_tasks()
    running = [asyncio.create_task(end.run(stop)), asyncio.create_task(anext(events, None))]

    async def looked_often():
        return db.asked > 50

    with end.admitted():
        await until(looked_often)
        # What is running, and the one wait that each of it may be in.
        assert len(asyncio.all_tasks() - before) <= 2 * len(running)
        stop.set()
        assert await asyncio.gather(*running) == [None, None]


async def test_streams_end_when_the_service_stops(database_url, dev_cluster, tmp_path):
    async with serve(database_url, dev_cluster, tmp_path) as server, listen(server.app) as client:
        await server.put("last", size=0)
        async with follow(client, after="0-0") as events:
            await take(events, 1)
            server.services.stopping.set()
            async with asyncio.timeout(PATIENCE):
                assert [each async for each in events] == []
