"""Ends what is over by time: leases of claims, waits of claims, boots of VMs, and VMs on dead nodes.

It also serves pending claims whose notice was lost.
"""

import structlog

from app.config import Settings
from app.domain.health import PAUSED
from app.domain.states import ClaimState, VmState
from app.lifecycle.placement import nodes_status
from app.lifecycle.readiness import serve_waiting
from app.reconcilers.vms.outcomes import give_up
from app.store.claims import rows as claims
from app.store.database import Database
from app.store.notices import Topic, notify
from app.store.pools import rows as pool_rows
from app.store.vms import observed
from app.store.vms import rows as vms

_BATCH = 200
_NODE_LAG_SECONDS = 60.0
"""A node that died is found not ready after some 50 s (Kubernetes 1.36, recorded)."""
log = structlog.get_logger(__name__)


class Reaper:
    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._settings = settings

    async def step(self) -> bool:
        """One pass over all of it. True if a batch was full."""
        full = await self._end_leases()
        full |= await self._end_waits()
        full |= await self._end_boots()
        full |= await self._end_on_dead_nodes()
        async with self._db.begin() as tx:
            waiting = await claims.pools_with_pending(tx)
        for pool_id in waiting:
            async with self._db.begin() as tx:
                await serve_waiting(tx, pool_id)
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

    async def _end_on_dead_nodes(self) -> bool:
        """Replaces claimed VMs whose node died within the replace window after their claim, and gives up those that boot on one.

        A VM on a dead node still counts as running. That it is not ready, and that its node is not, shows up to a minute later.
        """
        window = self._settings.replace_window_seconds
        async with self._db.begin() as tx:
            if (await nodes_status(tx)).stale_reason is not None:
                return False
            nodes = await observed.dead_nodes(tx)
            if not nodes:
                return False
            dead = await observed.on_dead_nodes(tx, nodes=nodes, window=window, lag=_NODE_LAG_SECONDS, limit=_BATCH)
            booting = await observed.booting_on_dead_nodes(tx, nodes=nodes, limit=_BATCH)
        for vm in booting:
            async with self._db.begin() as tx:
                reason = f"its node {vm.facts.node} died while it booted"
                await give_up(tx, vm, VmState.FAILED, reason=reason, settings=self._settings, counts=False)
        for vm in dead:
            async with self._db.begin() as tx:
                current = (await observed.by_ids(tx, [vm.id])).get(vm.id)
                if current is None or current.facts.unhealthy_since is None or current.facts.health == PAUSED:
                    continue
                since_claim = f"it was not ready since its claim or shortly after: {current.facts.health}"
                await give_up(
                    tx,
                    current,
                    VmState.FAILED,
                    reason=f"its node {current.facts.node} is dead, and {since_claim}",
                    settings=self._settings,
                    replace_seconds=window + 3 * _NODE_LAG_SECONDS,
                )
        return _BATCH in {len(dead), len(booting)}
