"""The one place where objects are built, and the order in which they start and stop."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

from app.api.services import Services
from app.api.tail import EventTail
from app.cluster.kubevirt import connect
from app.config import Role, Settings
from app.errors import DatabaseUnavailable
from app.store.claim_lane import ClaimLane
from app.store.database import Database
from app.store.notices import Listener, Topic
from app.usecases.claiming import ClaimDesk
from app.usecases.waiting import WaitingRoom
from app.workers.run import Workers

log = structlog.get_logger(__name__)


@asynccontextmanager
async def run_services(settings: Settings, *, stopping: asyncio.Event) -> AsyncIterator[Services]:
    """Everything of one process, running until the block ends. `stopping` is set by a signal, or here where a part dies.

    On the way out work stops being taken, calls under way are finished or handed back within the grace period, and
    connections are closed. Raises what a side task died of.
    """
    url = settings.database_url.get_secret_value()
    db = Database(url, pool_size=settings.database_pool_size)
    # Of their own: a flood of requests that wait for VMs must not keep those that make VMs from the database.
    workers_db = Database(url, pool_size=settings.database_pool_size)
    lane = ClaimLane(url)
    gateway = await connect(settings)
    room = WaitingRoom(db)
    desk = ClaimDesk(db, lane, room, settings)
    tail = EventTail(db)
    listener = Listener(url)

    parts: list[Coroutine[Any, Any, None]] = []
    if settings.role is not Role.WORKER:
        listener.on(Topic.POOL, desk.forget_pools)
        listener.on(Topic.SETTLED, room.wake)
        parts += [desk.run(stopping), room.run(stopping), tail.run(stopping)]
        try:
            await desk.warm_up()
        except DatabaseUnavailable as error:
            log.warning("start.without_database", error=error.detail)
    if settings.role is not Role.API:
        parts.append(Workers(workers_db, gateway, listener, settings).run(stopping))
    parts.append(listener.run(stopping))

    tasks = [asyncio.create_task(part) for part in parts]
    for task in tasks:
        task.add_done_callback(lambda done: _note_end(done, stopping))
    try:
        yield Services(settings=settings, db=db, gateway=gateway, desk=desk, tail=tail, stopping=stopping)
    finally:
        stopping.set()
        _, late = await asyncio.wait(tasks, timeout=settings.shutdown_grace_seconds)
        for task in late:
            log.warning("stop.cancelled", task=task.get_name())
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await lane.close()
        await db.close()
        await workers_db.close()
        await gateway.close()
    for result in results:
        if isinstance(result, Exception):
            raise result


def _note_end(done: "asyncio.Task[None]", stopping: asyncio.Event) -> None:
    """A side task that dies ends the process, so that whatever supervises it starts a whole one."""
    if not stopping.is_set():
        log.error("part.died", task=done.get_name(), error=repr(None if done.cancelled() else done.exception()))
        stopping.set()
