"""Brings each preload and the cluster to what its spec says, and removes what is no longer used.

What is created has a name made of the row's id and generation, and the row says so before the cluster is asked. What is removed
was given up in the row before. So a worker that dies anywhere leaves a row from which the next one goes on.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from typing_extensions import override

from app.compute.gateway import Gateway
from app.compute.preloads import PreloadOrder
from app.config import Settings
from app.domain.ownership import Orphan
from app.domain.paths import StartPath
from app.domain.preload_lifecycle import (
    Facts,
    PreloadObject,
    PreloadState,
    Rules,
    Status,
    Step,
    check_preload_transition,
    is_usable,
    next_step,
)
from app.errors import ClusterError, ClusterUnavailable
from app.reconcilers.installation.orphans import Orphanage
from app.reconcilers.runtime.leased_worker import LeasedWorker, LeaseLost, RetryLater
from app.reconcilers.vms.outcomes import give_up_stranded
from app.store import events, installation, leases
from app.store.database import Database, Tx
from app.store.notices import Topic, notify
from app.store.preloads import rows as preload_rows
from app.store.preloads.rows import PreloadRow
from app.store.vms import observed, work
from app.telemetry import ORPHANS

_BATCH = 8
_SLOW = 5.0  # so many times the pace of an import, while the next move is somebody else's
_SETTLED = frozenset({PreloadState.READY, PreloadState.FAILED, PreloadState.ABSENT})
_SWEEP_LEASE = "preload-sweep"
_RETRY_CAP_SECONDS = 15.0
_DAY = 86_400.0
log = structlog.get_logger(__name__)


class PreloadReconciler(LeasedWorker[PreloadRow]):
    subject = call = "preload"
    leases = preload_rows.LEASES
    batch_size = _BATCH

    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        super().__init__(db, gateway, settings)
        self._cluster = gateway.preloads
        self._orphanage = Orphanage("preload", settings)
        self._rules = Rules(stall_seconds=settings.preload_stall_seconds)

    @override
    async def acquire(self, tx: Tx, limit: int) -> Sequence[PreloadRow]:
        return await preload_rows.acquire_due(
            tx, token=self.token, limit=limit, seconds=self._settings.work_lease_seconds
        )

    @override
    async def process(self, item: PreloadRow) -> None:
        """Observes, decides, creates, writes, removes: in this order."""
        objects = await self._cluster.look(item.id)
        existing = await self._cluster.find_present(item.name) if _may_use_existing(item, objects) else None
        async with self._db.begin() as tx:
            now = await observed.database_now(tx)
        facts = Facts(item.spec, item.generation, item.state, item.deleting_at is not None, item.status)
        step = next_step(facts, objects, existing, self._rules, now)
        if step.make:
            step = await self._create(item, step)
        unused = await self._find_unused(item, step, now)
        check_preload_transition(item.state, step.state)
        async with self._db.begin() as tx:
            await self._write(tx, item, step, waits=len(unused) < len(step.superseded))
            written_at = await observed.database_now(tx)
        await self._follow_loss(item, step, objects, written_at)
        for each in (*step.remove, *unused):
            await self._cluster.remove(each)

    @override
    async def retry_later(self, tx: Tx, item: PreloadRow, retry: RetryLater, *, seconds: float) -> None:
        await preload_rows.retry_later(tx, item.id, token=self.token, seconds=seconds, reason=retry.reason)

    @override
    def pause(self, item: PreloadRow, retry: RetryLater) -> float:
        return min(_RETRY_CAP_SECONDS, max(self._settings.preload_poll_seconds, retry.after or 0.0))

    async def sweep(self) -> bool:
        """Deletes preloads that nobody uses, and objects of ours that belong to no preload. Never asks to be run again at once.

        One replica at a time removes objects. Rows are written before their objects are created, so an object that is listed
        before its row is looked up, and has none, has none for good.
        """
        await self._delete_unused()
        async with self._db.begin() as tx:
            seconds = self._settings.preload_idle_seconds
            if not await leases.acquire(tx, _SWEEP_LEASE, holder=str(self.token), token=self.token, seconds=seconds):
                return False
        try:
            found = [each for each in await self._cluster.all() if not each.deleting]
        except ClusterUnavailable:
            raise
        except ClusterError as error:  # the right to list them is missing; a preload that needs it will say so
            log.warning("preload.sweep_refused", error=error.detail)
            return False
        async with self._db.begin() as tx:
            live = await preload_rows.live(tx, [each.preload_id for each in found if each.preload_id is not None])
            orphans = [Orphan(each.name, each.uid, each.installation) for each in found if each.preload_id not in live]
            identity = await installation.read_identity(tx)
            removable = await self._orphanage.sort(tx, identity, orphans, listed=len(found))
        removed = {each.uid for each in removable}
        for each in found:
            if each.uid in removed:
                log.warning("preload.orphan_removed", kind=each.kind, name=each.name)
                ORPHANS.inc()
                await self._cluster.remove(each)
        return False

    async def _create(self, item: PreloadRow, step: Step) -> Step:
        """If the cluster refuses the object, that is a failure of the preload. If it does not answer, the preload is retried."""
        try:
            await self._cluster.make(PreloadOrder(item.id, item.name, item.generation, item.spec))
        except ClusterUnavailable:
            raise
        except ClusterError as error:
            status = Status(serving=step.status.serving, on=step.status.on, failure=error.detail)
            return Step(PreloadState.FAILED, status, reason=error.detail, paces=True)
        log.info("preload.begun", generation=item.generation)
        return step

    async def _find_unused(self, item: PreloadRow, step: Step, now: datetime) -> tuple[PreloadObject, ...]:
        """Of the superseded objects, those that no VM clones any more.

        They are looked for only once the row says that another one serves: a VM that was asked for until shortly after that may
        still be about to clone the old one. A preload that is being deleted waits for its clones no longer than an import may
        stand still.
        """
        settings, deleting_at = self._settings, item.deleting_at
        if not step.superseded or (deleting_at is None and step.status.serving != item.status.serving):
            return ()
        if deleting_at is not None and now - deleting_at >= timedelta(seconds=settings.preload_stall_seconds):
            return step.superseded
        since = (deleting_at or item.ready_at or now) + timedelta(seconds=settings.work_lease_seconds)
        async with self._db.begin() as tx:
            if await preload_rows.is_cloned(tx, item.name, since=since):
                return ()
        clones = self._cluster.clones
        return tuple([each for each in step.superseded if each.volume is None or not await clones(each.volume)])

    async def _write(self, tx: Tx, item: PreloadRow, step: Step, *, waits: bool) -> None:
        """Raises LeaseLost if the row was edited meanwhile, too: the next visit sees what it says now."""
        attempts = item.attempts + 1 if step.paces else item.attempts
        usable = is_usable(item.spec, step.status)
        fresh = usable and _source(step.status) != _source(item.status)
        written = await preload_rows.write(
            tx,
            item.id,
            step,
            token=self.token,
            generation=item.generation + 1 if step.begin_anew else item.generation,
            attempts=0 if step.state is PreloadState.READY else attempts,
            usable=usable,
            fresh=fresh,
            seconds=self._next_visit(step, attempts, waits=waits or item.spec.schedule is not None),
        )
        if not written:
            raise LeaseLost
        if fresh:
            await work.source_is_ready(tx, paths=[StartPath.PRELOAD], source=item.name)
            await notify(tx, Topic.CREATE)
        if step.state is not item.state:
            log.info("preload.moved", was=item.state, state=step.state, reason=step.reason)
            await events.record(
                tx, f"preload.{step.state}", preload=item.name, generation=item.generation, reason=step.reason
            )

    def _next_visit(self, step: Step, attempts: int, *, waits: bool) -> float:
        """Seconds until the next visit. `waits`: the next move is somebody else's, who ends a clone or follows a schedule."""
        poll, idle = self._settings.preload_poll_seconds, self._settings.preload_idle_seconds
        if step.paces:
            return self.backoff(attempts)
        if step.state not in _SETTLED:
            return poll
        return idle if step.state is PreloadState.READY and not waits else min(idle, poll * _SLOW)

    async def _follow_loss(self, item: PreloadRow, step: Step, objects: Sequence[PreloadObject], now: datetime) -> None:
        """VMs that were to clone a volume which the cluster has lost are given up, once the row says so to those that follow."""
        lost = item.status.serving
        if lost is None or step.status.serving is not None or item.deleting_at is not None:
            return
        if any(each.volume is not None and each.volume.claim == lost.volume.claim for each in objects):
            return  # it serves no new VM, but those that clone it still have it
        async with self._db.begin() as tx:
            stranded = await preload_rows.stranded(tx, item.name, before=now)
        reason = f"the volume of preload {item.name!r} was deleted in the cluster before this VM had its disks"
        await give_up_stranded(self._db, stranded, reason=reason, settings=self._settings)

    async def _delete_unused(self) -> None:
        settings = self._settings
        async with self._db.begin() as tx:
            found = {row.id: row for row in await preload_rows.expired(tx, keep_seconds=settings.preload_keep_seconds)}
            found |= {row.id: row for row in await preload_rows.in_excess(tx, most=settings.preload_max_unused)}
            for row in found.values():
                reason = (
                    "it was not used for its ttl_seconds"
                    if row.spec.ttl_seconds
                    else "it was made by `remember` and is not used"
                )
                if await preload_rows.begin_delete(tx, row.id, reason=reason):
                    await events.record(tx, "preload.deleting", preload=row.name, reason=reason)
                    log.info("preload.unused_deleted", preload=row.name, reason=reason)
            await preload_rows.prune(tx, seconds=settings.history_days * _DAY)


def _may_use_existing(item: PreloadRow, objects: Sequence[PreloadObject]) -> bool:
    """Whether the preload may take a volume of its own name that is in the namespace already, and has imported none yet."""
    spec = item.spec
    if item.deleting_at is not None or spec.is_container or spec.schedule is not None or spec.policy == "Always":
        return False
    return not any(each.generation == item.generation for each in objects)


def _source(status: Status) -> object:
    """Two values are equal if VMs start from the same thing."""
    on = status.on
    return status.serving.volume if status.serving else (on.generation if on is not None and on.pulled else None)
