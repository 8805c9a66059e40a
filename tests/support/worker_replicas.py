"""The background work of whole replicas on one database, and a wait until the rows of VMs have come to rest."""

import asyncio
from contextlib import asynccontextmanager

from app.reconcilers.runtime.run import Reconcilers
from app.store.notices import Listener
from tests.support.patience import PATIENCE
from tests.support.rows import eventually, fetch


@asynccontextmanager
async def replicas(db, gateway, settings, count=2):
    """So many replicas' workers; gives the tasks, each of which can be cancelled."""
    stop = asyncio.Event()
    listeners = [Listener(db.url) for _ in range(count)]
    parts = [Reconcilers(db, gateway, listener, settings) for listener in listeners]
    listening = [asyncio.create_task(listener.run(stop)) for listener in listeners]
    working = [asyncio.create_task(part.run(stop)) for part in parts]
    try:
        yield working
    finally:
        stop.set()
        await asyncio.wait([*working, *listening], timeout=PATIENCE)
        assert all(task.done() for task in working)


async def counts(db):
    rows = await fetch(db, "SELECT state, count(*) AS n FROM vm WHERE ended_at IS NULL GROUP BY state")
    return {row["state"]: row["n"] for row in rows}


async def settles(db, **wanted):
    async def has():
        return await counts(db) == wanted

    await eventually(has)
