"""Fixtures of the use cases' tests: a database, a cluster that is faked, and desks that stand for processes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from app.config import Settings
from app.store.claim_lane import ClaimLane
from app.store.database import Database
from app.store.notices import Listener, Topic
from app.usecases.claiming import ClaimDesk
from app.usecases.queueing import NewClaim
from app.usecases.waiting import WaitingRoom
from tests.store.shared import db, shared_database_url
from tests.workers.gateway import FakeGateway

__all__ = ["db", "shared_database_url"]


async def never() -> None:
    """A client that stays."""
    await asyncio.Event().wait()


def wish(pool="web", *, wait=0.0, lease=None, key=None, body="body", labels=None):
    return NewClaim(pool, wait, lease, labels or {}, key, body)


@asynccontextmanager
async def run_desk(url: str, **given) -> AsyncIterator[ClaimDesk]:
    """One process's claims, with all that runs beside them."""
    database = Database(url)
    lane = ClaimLane(url)
    room = WaitingRoom(database, lane)
    desk = ClaimDesk(database, lane, room, Settings(**given))
    listener = Listener(url)
    listener.on(Topic.POOL, desk.forget_pools)
    listener.on(Topic.SETTLED, room.wake)
    listening = asyncio.Event()
    listener.on(Topic.POOL, lambda _: listening.set())
    stop = asyncio.Event()
    tasks = [asyncio.create_task(part.run(stop)) for part in (desk, room, listener)]
    try:
        await asyncio.wait_for(listening.wait(), 10)
        yield desk
    finally:
        stop.set()
        await asyncio.gather(*tasks)
        await lane.close()
        await database.close()


@pytest.fixture
async def make_desk(db) -> AsyncIterator[Callable[..., object]]:
    async with AsyncExitStack() as stack:

        async def make(**given):
            return await stack.enter_async_context(run_desk(db.url, **given))

        yield make


@pytest.fixture
async def desk(make_desk):
    return await make_desk()


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()
