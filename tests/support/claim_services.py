"""The claim service of one process, without HTTP in front of it, and what a test asks of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.config import Settings
from app.domain.claims import ClaimRequest
from app.services.claims.service import ClaimService
from app.services.claims.waiters import Waiters
from app.store.claims.warm import WarmClaimStore
from app.store.database import Database
from app.store.notices import Listener, Topic
from tests.support.patience import PATIENCE


async def stays_connected() -> None:
    """A client that never disconnects."""
    await asyncio.Event().wait()


def new_claim(pool="web", *, wait=0.0, lease=None, key=None, body="body", labels=None):
    return ClaimRequest(pool, wait, lease, labels or {}, key, body)


@asynccontextmanager
async def run_claim_service(url: str, **given) -> AsyncIterator[ClaimService]:
    """One process's claims, with all that runs beside them."""
    database = Database(url)
    lane = WarmClaimStore(url)
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
        await asyncio.wait_for(listening.wait(), PATIENCE)
        yield claim_service
    finally:
        stop.set()
        await asyncio.gather(*tasks)
        await lane.close()
        await database.close()
