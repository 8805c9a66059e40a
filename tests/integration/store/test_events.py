"""The history: in an order in which nothing can appear before what was read."""

from uuid import uuid4

import hypothesis.strategies as st
import pytest
from hypothesis import given

from app.store import events
from app.store.database import Database
from app.store.events import Cursor
from tests.support.rows import make_pool, make_vms


async def record(db: Database, *types, **about):
    async with db.begin() as tx:
        for type_ in types:
            await events.record(tx, type_, **about)


async def page(db: Database, after=None, *, limit=100, **filters):
    async with db.begin() as tx:
        return await events.page(tx, after=after or Cursor(), limit=limit, **filters)


async def test_events_come_in_the_order_of_their_transactions(db):
    pool = await make_pool(db)
    await record(db, "pool.created", "pool.changed", pool_id=pool.id, size=3)
    await record(db, "pool.paused", pool_id=pool.id)
    found = await page(db)
    assert [event.type for event in found] == ["pool.created", "pool.changed", "pool.paused"]
    assert (found[0].pool, found[0].data, found[2].data) == ("web", {"size": 3}, {})
    assert [event.type for event in await page(db, found[0].cursor)] == ["pool.changed", "pool.paused"]
    assert await page(db, found[2].cursor) == []


async def test_pages_of_one_end_where_the_next_begins(db):
    await record(db, "pool.a", "pool.b", "pool.c")
    cursor, seen = Cursor(), []
    while found := await page(db, cursor, limit=1):
        seen.append(found[0].type)
        cursor = found[0].cursor
    assert seen == ["pool.a", "pool.b", "pool.c"]


async def test_an_event_that_commits_late_is_not_missed(db):
    """A reader that remembered the highest id would pass it by: the later transaction committed first."""
    await record(db, "pool.before")
    async with db.begin() as slow:
        await events.record(slow, "pool.slow")
        await record(db, "pool.fast")
        first = await page(db)
        assert [event.type for event in first] == ["pool.before"], "what is not settled is not shown yet"
        async with db.begin() as tx:
            assert await events.latest(tx) == first[-1].cursor
    rest = await page(db, first[-1].cursor)
    assert [event.type for event in rest] == ["pool.slow", "pool.fast"]


async def test_an_id_given_out_early_in_a_transaction_that_began_late_is_not_missed_either(db):
    async with db.begin() as first:
        await events.record(first, "pool.one")
        async with db.begin() as second:
            await events.record(second, "pool.two")
        await events.record(first, "pool.three")
        assert await page(db) == []
    found = await page(db)
    assert [event.type for event in found] == ["pool.one", "pool.three", "pool.two"]
    assert sorted(found, key=lambda e: (e.cursor.xid, e.cursor.id)) == found


async def test_a_rolled_back_transaction_leaves_nothing(db):
    async def fail():
        async with db.begin() as tx:
            await events.record(tx, "pool.never")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await record(db, "pool.after")
    assert [event.type for event in await page(db)] == ["pool.after"]


async def test_filters_are_the_pool_and_the_kind(db):
    web, batch = await make_pool(db, "web"), await make_pool(db, "batch")
    await record(db, "pool.created", "claim.bound", pool_id=web.id)
    await record(db, "vm.ready", pool_id=batch.id)
    assert [e.type for e in await page(db, pool="web")] == ["pool.created", "claim.bound"]
    assert [e.type for e in await page(db, kind="vm")] == ["vm.ready"]
    assert await page(db, pool="web", kind="vm") == []
    assert await page(db, kind="v%") == [] or "a pattern is not a kind"


async def back(db: Database, before=None, *, limit=100, **filters):
    async with db.begin() as tx:
        return await events.page_back(tx, before=before, limit=limit, **filters)


async def test_pages_lead_back_from_the_newest_event_to_the_oldest(db):
    web = await make_pool(db, "web")
    await record(db, "pool.a", "pool.b", pool_id=web.id)
    await record(db, "vm.c", "pool.d")
    forward = await page(db)
    assert await back(db) == forward[::-1]
    cursor, seen = None, []
    while found := await back(db, cursor, limit=1):
        seen += found
        cursor = found[-1].cursor
    assert seen == forward[::-1]
    assert [event.type for event in await back(db, pool="web")] == ["pool.b", "pool.a"]
    assert [event.type for event in await back(db, kind="pool", limit=2)] == ["pool.d", "pool.b"]


async def test_looking_back_shows_nothing_that_an_older_transaction_could_still_precede(db):
    await record(db, "pool.before")
    async with db.begin() as slow:
        await events.record(slow, "pool.slow")
        await record(db, "pool.fast")
        assert [event.type for event in await back(db)] == ["pool.before"]
    assert [event.type for event in await back(db)] == ["pool.fast", "pool.slow", "pool.before"]


async def test_the_history_of_one_vm(db):
    pool = await make_pool(db)
    first, _ = await make_vms(db, pool, 2)
    async with db.begin() as tx:
        types = [event.type for event in await events.of_vm(tx, first)]
        assert types == ["vm.planned", "vm.creating", "vm.booting", "vm.ready"]
        assert len(await events.of_vm(tx, first, limit=2)) == 2
        assert await events.of_vm(tx, uuid4()) == []


async def test_the_end_of_an_empty_history_is_its_beginning(db):
    async with db.begin() as tx:
        assert await events.latest(tx) == Cursor()


@given(xid=st.integers(0, 2**64 - 1), number=st.integers(0, 2**63 - 1))
def test_a_cursor_survives_its_text(xid, number):
    assert Cursor.parse(str(Cursor(xid, number))) == Cursor(xid, number)


@pytest.mark.parametrize(
    "text", ["", "1", "1-", "-1", "a-b", "1-2-3", "99999999999999999999999-1", "1-9999999999999999999"]
)
def test_what_is_no_cursor_is_refused(text):
    with pytest.raises(ValueError, match="cursor"):
        Cursor.parse(text)
