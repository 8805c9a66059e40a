"""What time alone brings about: leases that end, boots that take too long, claims that waited too long, old history.

It is also the polling behind the hints: waiting claims that a lost notice forgot are served here.
"""

import time

import structlog

from app.config import Settings
from app.domain.states import ClaimState, VmState
from app.reconcilers.vms.outcomes import FateRules, give_up, serve_waiting
from app.store import events
from app.store.claims import rows as claims
from app.store.database import Database
from app.store.notices import Topic, notify, notify_settled
from app.store.pools import rows as pool_rows
from app.store.vms import observed
from app.store.vms import rows as vms
from app.telemetry import VM_ENDS

_BATCH = 200
_PRUNE_EVERY_SECONDS = 60.0
_PRUNE_BATCH = 5000
_DAY = 86_400.0
log = structlog.get_logger(__name__)


class Reap:
    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._rules = FateRules.of(settings)
        self._history_seconds = settings.history_days * _DAY
        self._pruned_at = time.monotonic()

    async def step(self) -> bool:
        """One pass over everything; True where a batch was full."""
        full = await self._end_leases()
        full |= await self._end_waits()
        full |= await self._end_boots()
        await self._serve_waiting()
        if time.monotonic() - self._pruned_at >= _PRUNE_EVERY_SECONDS:
            self._pruned_at = time.monotonic()
            await self._prune()
        return full

    async def _end_leases(self) -> bool:
        async with self._db.begin() as tx:
            over = await claims.expired_leases(tx, limit=_BATCH)
            ended = await claims.end(
                tx, over, ClaimState.EXPIRED, sources=[ClaimState.BOUND], reason="its lease ended and was not renewed"
            )
            held = [vm_id for _, _, vm_id in ended if vm_id is not None]
            await vms.release(tx, held, sources=[VmState.CLAIMED], reason="its claim's lease ended")
            if held:
                await notify(tx, Topic.REMOVE)
                for pool_id in sorted({pool_id for _, pool_id, _ in ended}):
                    await pool_rows.plan_soon(tx, pool_id)
        if ended:
            log.info("claims.expired", count=len(ended))
        return len(over) == _BATCH

    async def _end_waits(self) -> bool:
        async with self._db.begin() as tx:
            over = await claims.expired_places(tx, limit=_BATCH)
            why = "no VM became ready by its deadline, or in the time that a claim may wait"
            ended = await claims.end(tx, over, ClaimState.FAILED, sources=[ClaimState.PENDING], reason=why)
            await notify_settled(tx, [claim_id for claim_id, _, _ in ended])
            for pool_id in sorted({pool_id for _, pool_id, _ in ended}):
                await pool_rows.plan_soon(tx, pool_id)
        return len(over) == _BATCH

    async def _end_boots(self) -> bool:
        async with self._db.begin() as tx:
            late = await observed.overdue(tx, limit=_BATCH)
        for vm in late:
            async with self._db.begin() as tx:
                now = await observed.database_now(tx)
                if vm.ready_at is None:
                    reason = f"not ready {vm.boot_timeout_seconds:.0f} s after it was created"
                else:
                    reason = "no longer warm, and it did not recover"
                if vm.facts.health:
                    reason = f"{reason}: {vm.facts.health}"
                if await give_up(tx, vm, VmState.FAILED, reason=reason, rules=self._rules, now=now):
                    VM_ENDS.labels(was=vm.state, became=VmState.FAILED).inc()
        return len(late) == _BATCH

    async def _serve_waiting(self) -> None:
        async with self._db.begin() as tx:
            waiting = await claims.pools_with_pending(tx)
        for pool_id in waiting:
            async with self._db.begin() as tx:
                await serve_waiting(tx, pool_id)

    async def _prune(self) -> None:
        async with self._db.begin() as tx:
            gone = {
                "events": await events.prune(tx, seconds=self._history_seconds, limit=_PRUNE_BATCH),
                "claims": await claims.prune(tx, seconds=self._history_seconds, limit=_PRUNE_BATCH),
                "vms": await vms.prune(tx, seconds=self._history_seconds, limit=_PRUNE_BATCH),
            }
        async with self._db.begin() as tx:
            gone["pools"] = await pool_rows.prune(tx, seconds=self._history_seconds)
        if any(gone.values()):
            log.info("history.pruned", **gone)
