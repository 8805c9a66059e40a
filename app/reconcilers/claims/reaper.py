"""Ends what is over by time: leases of claims, waits of claims, boots of VMs, and history.

It also serves pending claims whose notice was lost.
"""

import structlog

from app.config import Settings
from app.domain.states import ClaimState, VmState
from app.reconcilers.vms.outcomes import give_up, serve_waiting
from app.store import events
from app.store.claims import rows as claims
from app.store.database import Database
from app.store.notices import Topic, notify
from app.store.pools import rows as pool_rows
from app.store.vms import observed
from app.store.vms import rows as vms

_BATCH = 200
_PRUNE_BATCH = 5000
_DAY = 86_400.0
log = structlog.get_logger(__name__)


class Reaper:
    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._settings = settings
        self._history_seconds = settings.history_days * _DAY

    async def step(self) -> bool:
        """One pass over everything but history. True if a batch was full."""
        full = await self._end_leases()
        full |= await self._end_waits()
        full |= await self._end_boots()
        async with self._db.begin() as tx:
            waiting = await claims.pools_with_pending(tx)
        for pool_id in waiting:
            async with self._db.begin() as tx:
                await serve_waiting(tx, pool_id)
        return full

    async def prune(self) -> bool:
        """Deletes rows that ended longer ago than history is kept. True if a batch was full."""
        async with self._db.begin() as tx:
            pruned = {
                "events": await events.prune(tx, seconds=self._history_seconds, limit=_PRUNE_BATCH),
                "claims": await claims.prune(tx, seconds=self._history_seconds, limit=_PRUNE_BATCH),
                "vms": await vms.prune(tx, seconds=self._history_seconds, limit=_PRUNE_BATCH),
            }
        full = max(pruned.values()) == _PRUNE_BATCH
        async with self._db.begin() as tx:
            pruned["pools"] = await pool_rows.prune(tx, seconds=self._history_seconds)
        if any(pruned.values()):
            log.info("history.pruned", **pruned)
        return full

    async def _end_leases(self) -> bool:
        async with self._db.begin() as tx:
            over = await claims.expired_leases(tx, limit=_BATCH)
            ended = await claims.end(
                tx, over, ClaimState.EXPIRED, sources=[ClaimState.BOUND], reason="its lease expired"
            )
            released = [vm_id for _, _, vm_id in ended if vm_id is not None]
            await vms.release(tx, released, sources=[VmState.CLAIMED], reason="the lease of its claim expired")
            if released:
                await notify(tx, Topic.REMOVE)
                await pool_rows.plan_soon(tx, *(pool_id for _, pool_id, _ in ended))
        if ended:
            log.info("claims.expired", count=len(ended))
        return len(over) == _BATCH

    async def _end_waits(self) -> bool:
        async with self._db.begin() as tx:
            over = await claims.expired_places(tx, limit=_BATCH)
            why = "no VM became ready before its deadline, or before the time that a claim may wait was over"
            await pool_rows.plan_soon(tx, *await claims.fail_pending(tx, over, reason=why))
        return len(over) == _BATCH

    async def _end_boots(self) -> bool:
        async with self._db.begin() as tx:
            late = await observed.overdue(tx, limit=_BATCH)
        for vm in late:
            async with self._db.begin() as tx:
                if vm.ready_at is None:
                    reason = f"not ready {vm.boot_timeout_seconds:.0f} s after it was created"
                else:
                    reason = "no longer warm, and it did not recover"
                if vm.facts.health:
                    reason = f"{reason}: {vm.facts.health}"
                await give_up(tx, vm, VmState.FAILED, reason=reason, settings=self._settings)
        return len(late) == _BATCH
