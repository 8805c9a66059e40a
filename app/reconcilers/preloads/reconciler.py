"""Brings preloads about: looks at what the cluster has of each, decides, makes and removes, and writes down what it saw.

A row is taken under a lease. What is made has a name of the row's id and generation, and the row says so before the cluster
is asked; what is removed was given up in the row before. So a worker that dies anywhere leaves a row from which the next
goes on. Objects of no row at all are looked for from time to time, and removed.
"""

import random
import time
from datetime import datetime, timedelta

import structlog

from app.compute.gateway import Gateway
from app.compute.preloads import PreloadOrder
from app.config import Settings
from app.domain.failures import retry_delay
from app.domain.paths import StartPath
from app.domain.preload_lifecycle import (
    Facts,
    PreloadState,
    Rules,
    Seen,
    Status,
    Step,
    check_preload_transition,
    is_usable,
    next_step,
)
from app.errors import ClusterError, ClusterUnavailable
from app.ids import new_id
from app.reconcilers.runtime.loop import at_once
from app.reconcilers.vms.outcomes import FateRules
from app.reconcilers.vms.stranded import give_up_stranded
from app.store import events, leases
from app.store.database import Database, Tx
from app.store.notices import Topic, notify
from app.store.preloads import rows as preload_rows
from app.store.preloads.rows import PreloadRow
from app.store.vms import observed, work
from app.telemetry import CLUSTER_CALLS, ORPHANS

_BATCH = 8
_SLOW = 5.0  # so many times the pace of an import, where somebody else is waited for
_RESTING = frozenset({PreloadState.READY, PreloadState.FAILED, PreloadState.ABSENT})
_SWEEP = "preload-sweep"
_RETRY_CAP_SECONDS = 15.0
log = structlog.get_logger(__name__)


class Preloads:
    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        self._db = db
        self._gateway = gateway
        self._settings = settings
        self._rules = Rules(stall_seconds=settings.preload_stall_seconds)
        self._fates = FateRules.of(settings)
        self._swept_at = -float("inf")
        self.token = new_id()

    async def step(self) -> bool:
        """Looks at one batch of preloads that are due; True where there may be more."""
        async with self._db.begin() as tx:
            taken = await preload_rows.take_due(
                tx, token=self.token, limit=_BATCH, seconds=self._settings.work_lease_seconds
            )
        await at_once(self._visit, taken)
        if time.monotonic() - self._swept_at >= self._settings.preload_idle_seconds:
            self._swept_at = time.monotonic()
            await self._collect()
            await self._sweep()
        return len(taken) == _BATCH

    async def hand_back(self) -> None:
        """What this worker still holds is free for another at once."""
        async with self._db.begin() as tx:
            await preload_rows.hand_back(tx, token=self.token)

    async def _visit(self, item: PreloadRow) -> None:
        with structlog.contextvars.bound_contextvars(preload=item.name):
            try:
                await self._advance(item)
            except ClusterUnavailable as error:
                CLUSTER_CALLS.labels(call="preload", outcome="unavailable").inc()
                await self._defer(item, f"the cluster is away: {error.detail}", error.retry_after)
            except ClusterError as error:
                CLUSTER_CALLS.labels(call="preload", outcome=error.code).inc()
                await self._defer(item, error.detail, None)
            else:
                CLUSTER_CALLS.labels(call="preload", outcome="ok").inc()

    async def _advance(self, item: PreloadRow) -> None:
        """Looks, decides, makes; writes; removes."""
        gateway = self._gateway.preloads
        seen = await gateway.look(item.id)
        present = await gateway.find_present(item.name) if _goes_by_what_stands_there(item, seen) else None
        async with self._db.begin() as tx:
            now = await observed.database_now(tx)
        facts = Facts(item.spec, item.generation, item.state, item.deleting_at is not None, item.status)
        step = next_step(facts, seen, present, self._rules, now)
        if step.make:
            step = await self._make(item, step)
        free = await self._unused(item, step, now)
        check_preload_transition(item.state, step.state)
        async with self._db.begin() as tx:
            if not await self._write(tx, item, step, waits=len(free) < len(step.superseded)):
                return  # it was written anew meanwhile: the next look is of what it says now
            written_at = await observed.database_now(tx)
        await self._follow_loss(item, step, seen, written_at)
        for each in (*step.remove, *free):
            await gateway.remove(each)

    async def _follow_loss(self, item: PreloadRow, step: Step, seen: tuple[Seen, ...], now: datetime) -> None:
        """VMs that were to clone a volume which has gone are given up, once the row tells those that follow another."""
        lost = item.status.serving
        if lost is None or step.status.serving is not None or item.deleting_at is not None:
            return
        if any(each.volume is not None and each.volume.claim == lost.volume.claim for each in seen):
            return  # it serves no longer, and is still there for those that clone it
        async with self._db.begin() as tx:
            stranded = await preload_rows.stranded(tx, item.name, before=now)
        reason = f"the volume of preload {item.name!r} was deleted in the cluster before this VM had its disks"
        await give_up_stranded(self._db, stranded, reason=reason, rules=self._fates)

    async def _make(self, item: PreloadRow, step: Step) -> Step:
        """A cluster that is away is not the preload's fault, and raised; what the cluster refuses is its failure."""
        order = PreloadOrder(item.id, item.name, item.generation, item.spec)
        try:
            await self._gateway.preloads.make(order)
        except ClusterUnavailable:
            raise
        except ClusterError as error:
            status = Status(serving=step.status.serving, on=step.status.on, failure=error.detail)
            return Step(PreloadState.FAILED, status, reason=error.detail, paces=True)
        log.info("preload.begun", generation=item.generation)
        return step

    async def _unused(self, item: PreloadRow, step: Step, now: datetime) -> tuple[Seen, ...]:
        """Of what was superseded, that which nobody clones any more.

        It is looked for only once the row says that another one serves, and a VM that was asked for until a little after that
        may still be about to clone it. The end of a preload waits no longer for clones than an import is waited for.
        """
        settings, ending = self._settings, item.deleting_at
        if not step.superseded or (ending is None and step.status.serving != item.status.serving):
            return ()
        if ending is not None and now - ending >= timedelta(seconds=settings.preload_stall_seconds):
            return step.superseded
        since = (ending or item.ready_at or now) + timedelta(seconds=settings.work_lease_seconds)
        async with self._db.begin() as tx:
            if await preload_rows.is_cloned(tx, item.name, since=since):
                return ()
        clones = self._gateway.preloads.clones
        return tuple([each for each in step.superseded if each.volume is None or not await clones(each.volume)])

    async def _write(self, tx: Tx, item: PreloadRow, step: Step, *, waits: bool) -> bool:
        attempts = item.attempts + 1 if step.paces else item.attempts
        usable = is_usable(item.spec, step.status)
        fresh = usable and _source(step.status) != _source(item.status)
        written = await preload_rows.write(
            tx,
            item.id,
            token=self.token,
            state=step.state,
            status=step.status,
            reason=step.reason,
            generation=item.generation + 1 if step.begin_anew else item.generation,
            attempts=0 if step.state is PreloadState.READY else attempts,
            usable=usable,
            fresh=fresh,
            seconds=self._pause(step, attempts, waits=waits or item.spec.schedule is not None),
        )
        if not written:
            log.info("preload.lease_lost")
            return False
        if fresh:
            await work.source_is_ready(tx, path=StartPath.PRELOAD, source=item.name)
            await notify(tx, Topic.CREATE)
        if step.state is not item.state:
            log.info("preload.moved", was=item.state, state=step.state, reason=step.reason)
            await events.record(
                tx, f"preload.{step.state}", preload=item.name, generation=item.generation, reason=step.reason
            )
        return True

    def _pause(self, step: Step, attempts: int, *, waits: bool) -> float:
        """Seconds until the next look. `waits`: somebody else is to do something: end a clone, or import by a schedule."""
        settings = self._settings
        poll, idle = settings.preload_poll_seconds, settings.preload_idle_seconds
        if step.paces:
            return retry_delay(
                attempts,
                base_seconds=settings.backoff_base_seconds,
                cap_seconds=settings.backoff_cap_seconds,
                roll=random.random(),  # noqa: S311 - jitter, not a secret
            )
        if step.state not in _RESTING:
            return poll
        return idle if step.state is PreloadState.READY and not waits else min(idle, poll * _SLOW)

    async def _defer(self, item: PreloadRow, why: str, retry_after: float | None) -> None:
        seconds = min(_RETRY_CAP_SECONDS, max(self._settings.preload_poll_seconds, retry_after or 0.0))
        log.info("preload.put_off", why=why, seconds=round(seconds, 1))
        async with self._db.begin() as tx:
            await preload_rows.defer(tx, item.id, token=self.token, seconds=seconds, why=why)

    async def _collect(self) -> None:
        """Begins the end of preloads that nothing used for long, and of those beyond how many may be kept unused."""
        settings = self._settings
        async with self._db.begin() as tx:
            found = {row.id: row for row in await preload_rows.expired(tx, keep_seconds=settings.preload_keep_seconds)}
            found |= {row.id: row for row in await preload_rows.in_excess(tx, most=settings.preload_max_unused)}
            for row in found.values():
                reason = "it was not used for long" if row.spec.ttl_seconds else "it was made by us, and is not used"
                if await preload_rows.begin_delete(tx, row.id, reason=reason):
                    await events.record(tx, "preload.deleting", preload=row.name, reason=reason)
                    log.info("preload.collected", preload=row.name, reason=reason)
            await preload_rows.prune(tx, seconds=settings.history_days * 86_400)

    async def _sweep(self) -> None:
        """Removes objects with our labels of which no row knows. One replica does it at a time.

        Rows come before objects, so that what is seen first and asked for afterwards has none for good.
        """
        async with self._db.begin() as tx:
            seconds = self._settings.preload_idle_seconds
            if not await leases.take(tx, _SWEEP, holder=str(self.token), token=self.token, seconds=seconds):
                return
        found = [each for each in await self._gateway.preloads.all() if not each.deleting]
        async with self._db.begin() as tx:
            live = await preload_rows.live(tx, [each.preload_id for each in found if each.preload_id is not None])
        for each in found:
            if each.preload_id not in live:
                log.warning("preload.orphan_removed", kind=each.kind, name=each.name)
                ORPHANS.inc()
                await self._gateway.preloads.remove(each)


def _goes_by_what_stands_there(item: PreloadRow, seen: tuple[Seen, ...]) -> bool:
    spec = item.spec
    if item.deleting_at is not None or spec.is_container or spec.schedule is not None or spec.policy == "Always":
        return False
    return not any(each.generation == item.generation for each in seen)


def _source(status: Status) -> object:
    """What tells one thing that VMs start from from the next."""
    on = status.on
    return status.serving.volume if status.serving else (on.generation if on is not None and on.pulled else None)
