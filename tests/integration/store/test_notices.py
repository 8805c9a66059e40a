"""Hints between processes: sent with the commit, heard by all, and not needed where they are lost."""

import asyncio

import pytest

from app.store.notices import Listener, Topic, notify
from tests.support.patience import PATIENCE
from tests.support.rows import eventually, execute, scalar


@pytest.fixture
async def heard(db):
    """What a running listener was told, as (topic, payload)."""
    told: list[tuple[Topic, str]] = []
    listener = Listener(db.url)
    for topic in Topic:
        listener.on(topic, lambda payload, topic=topic: told.append((topic, payload)))
    stop = asyncio.Event()
    running = asyncio.create_task(listener.run(stop))
    yield told
    stop.set()
    await asyncio.wait_for(running, PATIENCE)


async def until(condition):
    async def holds():
        return condition()

    await eventually(holds)


async def test_every_topic_is_called_when_listening_begins(heard):
    await until(lambda: len(heard) == len(Topic))
    assert {topic for topic, _ in heard} == set(Topic)
    assert {payload for _, payload in heard} == {""}


async def test_a_notice_is_heard_with_its_payload_once_its_transaction_commits(db, heard):
    await until(lambda: len(heard) == len(Topic))
    heard.clear()
    async with db.begin() as tx:
        await notify(tx, Topic.PLAN, "pool-1")
        await notify(tx, Topic.CREATE)
        await execute(db, "SELECT pg_notify('emberpool', 'unknown:x'), pg_notify('emberpool', 'nonsense')")
        assert heard == []
    await until(lambda: len(heard) == 2)
    assert heard == [(Topic.PLAN, "pool-1"), (Topic.CREATE, "")]


async def test_what_is_rolled_back_is_not_heard(db, heard):
    await until(lambda: len(heard) == len(Topic))
    heard.clear()

    async def fail():
        async with db.begin() as tx:
            await notify(tx, Topic.PLAN, "never")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with db.begin() as tx:
        await notify(tx, Topic.PLAN, "after")
    await until(lambda: heard)
    assert heard == [(Topic.PLAN, "after")]


async def test_a_lost_connection_is_made_again_and_everybody_is_told_to_look(db, heard):
    await until(lambda: len(heard) == len(Topic))
    heard.clear()
    query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND pid <> pg_backend_pid()"
    assert await scalar(db, query) == 1
    await until(lambda: len(heard) == len(Topic))
    assert {topic for topic, _ in heard} == set(Topic)
