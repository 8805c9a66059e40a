"""Fixtures of the use cases' tests: a database, a cluster that is faked, and desks that stand for processes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from app.config import Settings
from app.services.claims.queue import NewClaim
from app.services.claims.service import ClaimService
from app.services.claims.waiters import Waiters
from app.store.claims.warm import ClaimLane
from app.store.database import Database
from app.store.notices import Listener, Topic
from tests.support.fake_gateway import FakeGateway
from tests.support.shared_database import db, shared_database_url

__all__ = ["db", "shared_database_url"]


async def never() -> None:
    """A client that stays."""
    await asyncio.Event().wait()


def wish(pool="web", *, wait=0.0, lease=None, key=None, body="body", labels=None):
    return NewClaim(pool, wait, lease, labels or {}, key, body)


@asynccontextmanager
async def run_claim_service(url: str, **given) -> AsyncIterator[ClaimService]:
    """One process's claims, with all that runs beside them."""
    database = Database(url)
    lane = ClaimLane(url)
    room = Waiters(database, lane)
    claim_service = ClaimService(database, lane, room, Settings(**given))
    listener = Listener(url)
    listener.on(Topic.POOL, claim_service.forget_pools)
    listener.on(Topic.SETTLED, room.wake)
    listening = asyncio.Event()
    listener.on(Topic.POOL, lambda _: listening.set())
    stop = asyncio.Event()
    tasks = [asyncio.create_task(part.run(stop)) for part in (claim_service, room, listener)]
    try:
        await asyncio.wait_for(listening.wait(), 10)
        yield claim_service
    finally:
        stop.set()
        await asyncio.gather(*tasks)
        await lane.close()
        await database.close()


@pytest.fixture
async def make_claim_service(db) -> AsyncIterator[Callable[..., object]]:
    async with AsyncExitStack() as stack:

        async def make(**given):
            return await stack.enter_async_context(run_claim_service(db.url, **given))

        yield make


@pytest.fixture
async def claim_service(make_claim_service):
    return await make_claim_service()


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()
