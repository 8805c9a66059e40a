"""Takes snapshots, keeps those of pools current, and removes takes that are over."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import structlog
from typing_extensions import override

from app.compute.gateway import Gateway
from app.config import Settings
from app.domain.snapshots import TAKE_ENDED, UNDER_WAY, ClaimFacts, TakePlan, TakeState, plan_takes
from app.errors import Conflict
from app.ids import new_id
from app.lifecycle.snapshot_origins import claim_facts, origin_of
from app.reconcilers.runtime.leased_worker import LeasedWorker, LeaseLost, RetryLater
from app.reconcilers.snapshots.take import POLL_SECONDS, Situation, TakePhases, fail_take
from app.store.claims import rows as claims
from app.store.database import Database, Tx
from app.store.rows import ClaimRow
from app.store.snapshots import rows as snapshot_rows
from app.store.snapshots import work as snapshot_work
from app.store.snapshots.work import SnapshotWork
from app.store.vms.observed import database_now

_STEPS_AT_ONCE = 20
_IDLE_SECONDS = 3600.0
_REFRESH_SECONDS = 5.0
log = structlog.get_logger(__name__)


class SnapshotReconciler(LeasedWorker[SnapshotWork]):
    subject = call = "snapshot"
    leases = snapshot_work.LEASES

    def __init__(self, db: Database, gateway: Gateway, settings: Settings) -> None:
        super().__init__(db, gateway, settings)
        self._phases = TakePhases(db, gateway, settings, self.guarded)

    @override
    async def acquire(self, tx: Tx, limit: int) -> Sequence[SnapshotWork]:
        return await snapshot_work.acquire_due(
            tx, token=self.token, limit=limit, seconds=self._settings.work_lease_seconds
        )

    @override
    async def process(self, item: SnapshotWork) -> None:
        """Goes on with one snapshot as far as it can now."""
        pause = None
        try:
            for _ in range(_STEPS_AT_ONCE):
                pause = await self._advance(item)
                if pause is not None:
                    break
        except Conflict as error:
            raise RetryLater(error.detail) from error
        async with self._db.begin() as tx:
            await snapshot_work.finish(tx, item.id, token=self.token, seconds=pause or 0.0)

    @override
    async def retry_later(self, tx: Tx, item: SnapshotWork, retry: RetryLater, *, seconds: float) -> None:
        if not await self.leases.holds(tx, item.id, token=self.token):
            return
        for take in (await snapshot_rows.takes_of(tx, [item.id]))[item.id]:
            if take.state in UNDER_WAY:
                await snapshot_rows.note_take(tx, take.id, retry.reason)
        await snapshot_work.finish(tx, item.id, token=self.token, seconds=seconds, failed=True)

    @override
    @asynccontextmanager
    async def guarded(self, row_id: UUID) -> AsyncIterator[Tx]:
        """Each write renews the lease: a take may last longer than one."""
        async with self._db.begin() as tx:
            seconds = self._settings.work_lease_seconds
            if not await snapshot_work.renew(tx, row_id, token=self.token, seconds=seconds):
                raise LeaseLost
            yield tx

    async def _advance(self, item: SnapshotWork) -> float | None:
        """One step. None: something changed, and more may follow at once; otherwise the seconds until the next visit."""
        at = await self._read(item)
        if at is None:
            return _IDLE_SECONDS
        deleting = at.row.deleting_at is not None
        for take in at.takes:
            if take.state is TakeState.READY and not deleting and await self._phases.finds_stale(at, take):
                return None
        plan = plan_takes(at.row.spec, [take.facts for take in at.takes], at.origin, at.now, deleting=deleting)
        if plan.begin or plan.retire or plan.cancel:
            await self._apply(at, plan)
            return None
        pauses: list[float] = []
        for take in at.takes:
            if take.state is TakeState.READY or take.state in TAKE_ENDED:
                continue
            pause = await self._phases.advance(at, take)
            if pause is None:
                return None
            pauses.append(pause)
        if not pauses and deleting:
            async with self.guarded(item.id) as tx:
                await snapshot_rows.end_delete(tx, item.id)
            log.info("snapshot.deleted")
            return _IDLE_SECONDS
        if plan.look_again_at is not None:
            pauses.append(max(POLL_SECONDS[0], (plan.look_again_at - at.now).total_seconds()))
        pauses.append(_REFRESH_SECONDS if at.row.spec.refresh else _IDLE_SECONDS)
        return min(pauses)

    async def _read(self, item: SnapshotWork) -> Situation | None:
        async with self.guarded(item.id) as tx:
            row = await snapshot_rows.get_by_id(tx, item.id)
            if row is None:
                return None
            takes = tuple((await snapshot_rows.takes_of(tx, [item.id]))[item.id])
            bound: dict[UUID, ClaimRow] = {}
            facts: dict[UUID, ClaimFacts] = {}
            for take in takes:
                claim = await claims.get(tx, take.claim_id) if take.claim_id and take.state in UNDER_WAY else None
                if claim is not None:
                    bound[take.id] = claim
                    facts[take.id] = await claim_facts(tx, claim)
            return Situation(row, takes, await origin_of(tx, self._gateway, row), facts, bound, await database_now(tx))

    async def _apply(self, at: Situation, plan: TakePlan) -> None:
        by_id = {take.id: take for take in at.takes}
        async with self.guarded(at.row.id) as tx:
            for take_id in plan.retire:
                await snapshot_rows.move_take(tx, by_id[take_id], TakeState.RETIRING)
            for take_id in plan.cancel:
                await fail_take(tx, by_id[take_id], "the snapshot is being deleted")
            if plan.begin:
                await snapshot_rows.insert_take(tx, snapshot_id=at.row.id, take_id=new_id())
