"""What a VM's change of state means for its place in the queue, its claim, and the failures of its pool.

Functions that take `tx` work inside the caller's transaction. They lock in one order: place in a queue, claim, pool, VM.
"""

import random
from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

import structlog

from app.config import Settings
from app.domain.failures import FailureRecord, judge_failure
from app.domain.states import ClaimState, VmState
from app.lifecycle.readiness import serve_waiting
from app.store import events
from app.store.claims import handovers
from app.store.claims import rows as claims
from app.store.database import Database, Tx
from app.store.notices import Topic, notify
from app.store.pools import rows as pool_rows
from app.store.snapshots import work as snapshot_work
from app.store.vms import observed
from app.store.vms import rows as vms
from app.store.vms.observed import ObservedVm
from app.telemetry import VM_ENDS

log = structlog.get_logger(__name__)


async def give_up(
    tx: Tx,
    vm: ObservedVm,
    target: VmState,
    *,
    reason: str,
    settings: Settings,
    replace_seconds: float | None = None,
    counts: bool = True,
) -> bool:
    """A VM becomes `failed` or `lost`. False if it is in another state by now: then nothing was changed.

    Its claim fails, or, within the replace window after the claim, waits at the front of the queue for another VM; with
    `replace_seconds`, within so many seconds after it. A VM that was never ready counts as a failure of its pool, unless `counts` is
    false: then the pool is not to blame.
    """
    window = settings.replace_window_seconds if replace_seconds is None else replace_seconds
    now = await observed.database_now(tx)
    requeued = False
    if vm.state is VmState.CLAIMED and vm.claim_id is not None and await claims.has_vm(tx, vm.claim_id, vm.id):
        since = vm.facts.claimed_at
        if await handovers.is_over(tx, vm.claim_id):
            # What was handed over is erased: another VM could not get it.
            why = f"its VM {vm.name} failed after it had taken the claim over: {reason}"
            await claims.end(tx, [vm.claim_id], ClaimState.FAILED, sources=[ClaimState.BOUND], reason=why)
        elif since is not None and (now - since).total_seconds() <= window:
            requeued = await claims.requeue(
                tx, vm.claim_id, vm_id=vm.id, reason=reason, pending_seconds=settings.pending_seconds
            )
        else:
            why = f"its VM {vm.name} failed: {reason}"
            await claims.end(tx, [vm.claim_id], ClaimState.FAILED, sources=[ClaimState.BOUND], reason=why)
    failure = counts and vm.state in {VmState.CREATING, VmState.BOOTING} and vm.ready_at is None
    if failure:
        # The pool is locked before the VM: whoever gives up several VMs of a pool has locked it already when the next VM comes.
        await pool_rows.lock_failures(tx, vm.pool_id)
    if not await vms.move(tx, [vm.id], target, sources=[vm.state], reason=reason):
        return False
    if failure:
        await _count_failure(tx, vm, now, reason=reason, settings=settings)
        if await snapshot_work.doubt(tx, [vm.id]):
            await notify(tx, Topic.SNAPSHOT)
    if requeued:
        await serve_waiting(tx, vm.pool_id)
    if target is VmState.FAILED:
        await notify(tx, Topic.REMOVE)
    await pool_rows.plan_soon(tx, vm.pool_id)
    VM_ENDS.labels(was=vm.state, became=target).inc()
    log.info("vm.given_up", vm=vm.name, state=target, was=vm.state, reason=reason, claim_replaced=requeued)
    return True


async def _count_failure(tx: Tx, vm: ObservedVm, now: datetime, *, reason: str, settings: Settings) -> None:
    """Counts a VM that was never ready as a failure of its pool: the pool backs off, and stalls after too many in a row."""
    consecutive, counted_at = await pool_rows.lock_failures(tx, vm.pool_id)
    verdict = judge_failure(
        FailureRecord(consecutive, counted_at),
        planned_at=vm.created_at,
        now=now,
        base_seconds=settings.backoff_base_seconds,
        cap_seconds=settings.backoff_cap_seconds,
        breaker=settings.breaker_failures,
        roll=random.random(),  # noqa: S311 - jitter, not a secret
    )
    if not verdict.counts:
        return
    await pool_rows.write_failure(tx, vm.pool_id, verdict, reason=reason)
    if verdict.stalled:
        await events.record(tx, "pool.stalled", pool_id=vm.pool_id, reason=reason, failures=verdict.consecutive)
        log.warning("pool.stalled", pool_id=str(vm.pool_id), reason=reason, failures=verdict.consecutive)


async def end_removed(tx: Tx, vm: ObservedVm) -> None:
    """The cluster no longer has a VM that was to be removed."""
    if vm.state is VmState.FAILED:
        await vms.release(tx, [vm.id], sources=[VmState.FAILED], reason="its object had left the cluster already")
    await vms.move(tx, [vm.id], VmState.DELETED, sources=[VmState.RELEASING])
    await pool_rows.plan_soon(tx, vm.pool_id)


async def give_up_stranded(db: Database, vm_ids: Iterable[UUID], *, reason: str, settings: Settings) -> None:
    """Gives up VMs whose disks were to be made from something that the cluster has lost, each in its own transaction.

    Otherwise their claims would wait until the boot timeout, though another path may be open to them. A VM that has a node by
    now has its disks, and goes on.
    """
    for vm_id in vm_ids:
        async with db.begin() as tx:
            vm = (await observed.by_ids(tx, [vm_id])).get(vm_id)
            if vm is None or vm.state not in {VmState.CREATING, VmState.BOOTING} or vm.facts.node is not None:
                continue
            await give_up(tx, vm, VmState.FAILED, reason=reason, settings=settings)
