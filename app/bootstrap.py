"""The one place where objects are built, and the order in which they start and stop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog

from app.api.dependencies import Services
from app.api.events.tail import EventTail
from app.api.lists import Lists
from app.background import PartHealth
from app.compute.kubevirt.gateway import connect
from app.config import Role, Settings
from app.errors import DatabaseUnavailable
from app.reconcilers.installation.watch import InstallationWatch
from app.reconcilers.runtime.loop import Wake, run_loop
from app.reconcilers.runtime.run import Reconcilers
from app.services.claims.service import ClaimService
from app.services.claims.waiters import Waiters
from app.services.guests.service import GuestService
from app.services.handovers.outcomes import HandoverOutcomes
from app.services.handovers.sealing import Sealer
from app.services.manifests.handlers import make_manifest_service
from app.services.paths.selector import PathSelector
from app.services.vms.console import Consoles
from app.store.claims.warm import WarmClaimStore
from app.store.database import Database
from app.store.notices import Listener, Topic

_LOOK_SECONDS = 2.0
_GUEST_CONNECTIONS = 4
_Part = Callable[[asyncio.Event], Coroutine[Any, Any, None]]
"""Runs until its argument is set."""
log = structlog.get_logger(__name__)


@asynccontextmanager
async def run_services(settings: Settings, *, stopping: asyncio.Event) -> AsyncIterator[Services]:
    """Everything of one process, running until the block ends. `stopping` is set by a signal, or here where a part dies.

    On the way out work stops being taken, calls under way are finished or handed back within the grace period, and
    connections are closed. Raises what a side task died of.
    """
    url = settings.database_url.get_secret_value()
    async with AsyncExitStack() as closing:
        db = Database(url, pool_size=settings.database_pool_size)
        closing.push_async_callback(db.close)
        warm_claims = WarmClaimStore(url)
        closing.push_async_callback(warm_claims.close)
        gateway = await connect(settings)
        closing.push_async_callback(gateway.close)
        waiters = Waiters(db, warm_claims)
        watch = InstallationWatch(db, gateway)
        claim_service = ClaimService(db, warm_claims, waiters, settings, gate=watch.gate)
        handovers = HandoverOutcomes(db)
        guests = _guest_service(settings, claim_service.sealer, closing)
        path_selector = PathSelector(db, gateway, claim_service, settings)
        tail = EventTail(db, max_followers=settings.max_event_streams)
        listener = Listener(url)

        # Of its own, so that it tells of the database also while all others are in use.
        probe = Database(url, pool_size=1)
        closing.push_async_callback(probe.close)
        # Likewise: however many lists are asked for, all other requests find their connections free.
        lists = Lists(url, at_once=settings.list_connections)
        closing.push_async_callback(lists.close)
        background = [PartHealth("installation-watch")]
        parts: dict[str, _Part] = {"listen": listener.run, "installation": _run_watch(watch, listener, background[0])}
        if settings.role is not Role.WORKER:
            calls: dict[Topic, tuple[Callable[[str], None], ...]] = {
                Topic.POOL: (claim_service.forget_pools, path_selector.forget_pools),
                Topic.SETTLED: (waiters.wake, handovers.waiting.wake),
                Topic.HANDED_OVER: (handovers.waiting.wake,),
                Topic.GUEST: (guests.waiting.wake,),
            }
            for topic, call in ((topic, call) for topic, found in calls.items() for call in found):
                listener.on(topic, call)
            background += [claim_service.health, waiters.health, handovers.health, guests.health, tail.health]
            parts |= {"claim_service": claim_service.run, "waiters": waiters.run, "tail": tail.run}
            parts |= {"handovers": handovers.run, "guests": guests.run}
            await _look(watch, claim_service)
        if settings.role is not Role.API:
            # Of their own: a flood of requests that wait for VMs must not keep those that make VMs from the database.
            workers_db = Database(url, pool_size=settings.database_pool_size)
            closing.push_async_callback(workers_db.close)
            reconcilers = Reconcilers(workers_db, gateway, listener, settings, gate=watch.gate)
            background += reconcilers.healths
            parts["workers"] = reconcilers.run

        tasks = [asyncio.create_task(part(stopping), name=name) for name, part in parts.items()]
        for task in tasks:
            task.add_done_callback(lambda done: _note_end(done, stopping))
        try:
            manifests = make_manifest_service(db, gateway, path_selector, namespace=settings.namespace)
            yield Services(
                settings=settings,
                db=db,
                probe=probe,
                lists=lists,
                background=background,
                gateway=gateway,
                claim_service=claim_service,
                path_selector=path_selector,
                handovers=handovers,
                guests=guests,
                tail=tail,
                consoles=Consoles(db, gateway, settings),
                manifests=manifests,
                stopping=stopping,
            )
        finally:
            stopping.set()
            _, late = await asyncio.wait(tasks, timeout=settings.shutdown_grace_seconds)
            for task in late:
                log.warning("stop.cancelled", task=task.get_name())
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


def _guest_service(settings: Settings, sealer: Sealer, closing: AsyncExitStack) -> GuestService:
    """With connections of its own: however many guests come back at once, all other requests find theirs free."""
    db = Database(settings.database_url.get_secret_value(), pool_size=_GUEST_CONNECTIONS)
    closing.push_async_callback(db.close)
    return GuestService(db, sealer, max_waiting=settings.max_waiting_guests)


async def _look(watch: InstallationWatch, claim_service: ClaimService) -> None:
    """Whatever can be done before the first request, so that it is answered at once."""
    try:
        await watch.begin()
        await claim_service.warm_up()
    except DatabaseUnavailable as error:
        log.warning("start.without_database", error=error.detail)


def _run_watch(watch: InstallationWatch, listener: Listener, health: PartHealth) -> _Part:
    written = Wake()
    listener.on(Topic.INSTALLATION, written)
    return lambda stop: run_loop(health, watch.step, every=_LOOK_SECONDS, wake=written, stop=stop)


def _note_end(done: "asyncio.Task[None]", stopping: asyncio.Event) -> None:
    """A side task that dies ends the process, so that whatever supervises it starts a whole one."""
    if not stopping.is_set():
        log.error("part.died", task=done.get_name(), error=repr(None if done.cancelled() else done.exception()))
        stopping.set()
