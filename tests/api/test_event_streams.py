"""Many event streams in one process: what they share, how many there may be, and what one costs that is not read."""

import asyncio
import contextlib
import re
import socket
from contextlib import asynccontextmanager
from itertools import count

import httpx
import pytest

from app.api.events import history, tail
from app.api.events.history import PAGE, History, Selection
from app.api.events.tail import EventTail
from app.errors import TooManyStreams
from app.store import events
from app.store.database import Database
from app.store.events import Cursor
from tests.support.event_stream import STREAM, follow, take
from tests.support.patience import PATIENCE
from tests.support.raw_http import request
from tests.support.rows import execute, make_pool
from tests.support.service import Refused, bind, check, figures, listen, serve, until

_FILL = """INSERT INTO event (type, pool_id, data)
    SELECT (ARRAY['vm.ready', 'pool.paused'])[1 + n % 2], CASE WHEN n % 3 = 0 THEN CAST(:pool AS uuid) END, jsonb_build_object('n', n)
    FROM generate_series(1, :count) n"""


_LARGE = """INSERT INTO event (type, data)
    SELECT 'vm.ready', jsonb_build_object('text', repeat('x', 4000)) FROM generate_series(1, :count)"""


class CountedDatabase(Database):
    """Counts its transactions, and how many of them were open at the same time."""

    begun = at_once = most = 0

    @asynccontextmanager
    async def begin(self):
        self.begun += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            async with super().begin() as tx:
                yield tx
        finally:
            self.at_once -= 1


@pytest.fixture
async def db(database_url):
    db = CountedDatabase(database_url)
    yield db
    await db.close()


@pytest.fixture
def stop():
    return asyncio.Event()


@asynccontextmanager
async def running(end, stop):
    """With a follower who does nothing, so that the tail reads on."""
    task = asyncio.create_task(end.run(stop))
    try:
        with end.admitted():
            yield
    finally:
        stop.set()
        await task


def ids(text):
    return re.findall(rb"^id: (\S+)\r$", text, re.MULTILINE)


async def read(stream, count):
    """The cursors of the next events of a stream, as it is sent."""
    found = []
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            found += ids(await anext(stream))
    return [each.decode() for each in found]


async def listed(db, **filters):
    async with db.begin() as tx:
        return [str(each.cursor) for each in await events.page(tx, after=Cursor(), limit=10_000, **filters)]


async def test_whoever_reads_the_same_place_shares_what_was_read_of_it(db, stop):
    pool = await make_pool(db)
    await execute(db, _FILL, pool=pool.id, count=5 * PAGE + 7)
    whole = await listed(db)
    end = EventTail(db, max_followers=100)
    async with running(end, stop):
        await until(lambda: _is_reading(end))
        db.begun = 0
        readers = [end.follow(Cursor(), Selection(), stop=stop) for _ in range(60)]
        found = await asyncio.gather(*(read(reader, len(whole)) for reader in readers))
        polls = db.begun
    assert all(each == whole for each in found)
    pages = -(-len(whole) // PAGE)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(reader.aclose() for reader in readers))
    assert len(end._history._kept) == pages
    assert polls < 60  # of the pages once each, and of the tail a few


async def _is_reading(end):
    return end._begin is not None


async def test_those_who_catch_up_read_one_after_another_with_pauses_and_what_happens_meanwhile(db, stop, monkeypatch):
    pool = await make_pool(db)
    await execute(db, _FILL, pool=pool.id, count=3 * PAGE)
    whole = await listed(db)
    pauses = []
    pause = asyncio.sleep

    async def noted(seconds):
        pauses.append(seconds)
        await pause(0)

    monkeypatch.setattr(history.asyncio, "sleep", noted)
    monkeypatch.setattr(history, "_now", count().__next__)  # a second passes whenever somebody looks
    pages, db.begun, db.most = History(db), 0, 0
    places = [Cursor.parse(whole[n]) for n in range(20)]
    found = await asyncio.gather(*(pages.page(place, Selection()) for place in places))
    assert [ids(page.text)[0].decode() for page in found] == whole[1:21]
    assert (db.begun, db.most) == (20, 1)
    assert all(seconds > 1 for seconds in pauses)
    pauses.clear()
    monkeypatch.setattr(history, "_now", lambda: 0)
    for _ in range(30):
        assert await pages.page(places[0], Selection()) == found[0]
    assert (db.begun, len(pauses)) == (20, 30)
    assert 0 < sum(seconds > 0 for seconds in pauses) < 10


@pytest.mark.parametrize("filters", [{}, {"pool": "web"}, {"kind": "vm"}, {"pool": "web", "kind": "pool"}], ids=str)
async def test_a_stream_has_each_event_once_and_in_order_from_the_history_on_to_the_newest(
    db, stop, monkeypatch, filters
):
    monkeypatch.setattr(tail, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(tail, "_MOST_RECENT", 15)
    monkeypatch.setattr(tail, "PAGE", 10)
    monkeypatch.setattr(history, "PAGE", 10)
    pool = await make_pool(db)
    await execute(db, _FILL, pool=pool.id, count=60)
    end = EventTail(db, max_followers=100)
    async with running(end, stop):
        places = [Cursor(), Cursor.parse((await listed(db))[30])]
        following = [end.follow(place, Selection(**filters), stop=stop) for place in places]
        first = [await read(stream, 3) for stream in following]
        for _ in range(12):
            await execute(db, _FILL, pool=pool.id, count=20)
            await asyncio.sleep(0)
        whole = await listed(db, **filters)
        later = [each for each in whole if Cursor.parse(each) > places[1]]
        rest = await asyncio.gather(
            read(following[0], len(whole) - len(first[0])), read(following[1], len(later) - len(first[1]))
        )
    assert [first[0] + rest[0], first[1] + rest[1]] == [whole, later]


async def test_what_is_kept_of_the_history_and_of_its_end_is_bounded(db, stop, monkeypatch):
    monkeypatch.setattr(history, "_MOST_KEPT", 50_000)
    monkeypatch.setattr(tail, "_MOST_RECENT", 30)
    pool = await make_pool(db)
    await execute(db, _FILL, pool=pool.id, count=1000)
    whole = await listed(db)
    pages = History(db)
    for place in whole[::50]:
        await pages.page(Cursor.parse(place), Selection())
    kept = [len(page.text) for page in pages._kept.values()]
    assert 0 < sum(kept) == pages._size <= 50_000
    end = EventTail(db, max_followers=1)
    async with running(end, stop):
        await until(lambda: _is_reading(end))
        await execute(db, _FILL, pool=pool.id, count=100)
        newest = (await listed(db))[-1]

        async def has_read():
            return str(end._end) == newest

        await until(has_read)
        assert len(end._recent) == 30
        assert str(end._begin) == (await listed(db))[-31]


async def test_there_are_only_so_many_followers(db):
    end = EventTail(db, max_followers=2)
    with end.admitted(), end.admitted(), pytest.raises(TooManyStreams, match="serves 2 event streams"), end.admitted():
        pass
    with end.admitted(), end.admitted():
        pass


async def test_a_stream_beyond_the_limit_is_told_to_try_again_and_pages_are_served_still(
    database_url, dev_cluster, tmp_path
):
    async with (
        serve(database_url, dev_cluster, tmp_path, max_event_streams=2) as server,
        listen(server.app) as client,
    ):
        await server.put("one", size=0)
        before = await figures(server)
        async with follow(client, after="0-0") as first:
            async with follow(client, after="0-0") as second:
                await take(first, 1)
                await take(second, 1)
                refused = await client.get("/v1/events", headers=STREAM)
                problem = check(refused, Refused(503, "too-many-streams", says="serves 2 event streams"))
                assert (refused.headers["retry-after"], problem["status"]) == ("5", 503)
                assert (await client.get("/v1/events")).status_code == 200
                counted = await figures(server)
                assert counted["emberpool_event_streams"] - before["emberpool_event_streams"] == 2
                name = "emberpool_event_streams_refused_total"
                assert counted[name] - before[name] == 1

            async def is_free():
                return server.services.tail._followers == 1

            await until(is_free)
            async with follow(client, after="0-0") as second:
                await take(second, 1)


async def test_a_client_that_does_not_read_holds_two_pages_at_most_and_is_dropped(database_url, dev_cluster, tmp_path):
    async with (
        serve(database_url, dev_cluster, tmp_path) as server,
        bind(server.app, unread_timeout_seconds=PATIENCE) as (serving, port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        await execute(server.services.db, _LARGE, count=20 * PAGE)
        page = await server.services.tail._history.page(Cursor(), Selection())
        slow = socket.create_connection(("127.0.0.1", port))
        slow.sendall(request("GET", "/v1/events?after=0-0", "Accept: text/event-stream"))

        async def stalled():
            return next((each for each in serving.server_state.connections if each.flow.write_paused), None)

        connection = await until(stalled)
        async with follow(client, after="0-0") as events:
            assert len(await take(events, 20 * PAGE)) == 20 * PAGE
            assert await stalled() is connection
            assert 0 < connection.transport.get_write_buffer_size() <= 2 * len(page.text)
            connection.read_deadline = -1  # its time to read is over

            async def is_dropped():
                return server.services.tail._followers == 1

            await until(is_dropped)
        assert 0 < _rest_of(slow) < 20 * len(page.text)


def _rest_of(connection):
    """How many bytes still come over a connection that its other end has given up."""
    size = 0
    with connection, contextlib.suppress(ConnectionError):
        while received := len(connection.recv(1024 * 1024)):
            size += received
    return size
