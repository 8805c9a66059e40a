"""What becomes of a VM, and of all that hangs on it: its place in the queue, its claim, its pool's failures.

Each function works inside the caller's transaction. Locks are taken in one order: place in a queue, claim, pool, VM.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from app.config import Settings
from app.domain.failures import FailureRecord, judge_failure
from app.domain.states import ClaimState, VmState
from app.store import events
from app.store.claims import rows as claims
from app.store.database import Tx
from app.store.notices import Topic, notify, notify_settled
from app.store.pools import rows as pool_rows
from app.store.vms import rows as vms
from app.store.vms.observed import ObservedVm

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FateRules:
    """The settings that decide over dead VMs, in seconds where they are times."""

    replace_window: timedelta
    pending_seconds: float
    backoff_base_seconds: float
    backoff_cap_seconds: float
    breaker_failures: int

    @classmethod
    def of(cls, settings: Settings) -> "FateRules":
        return cls(
            replace_window=timedelta(seconds=settings.replace_window_seconds),
            pending_seconds=settings.pending_seconds,
            backoff_base_seconds=settings.backoff_base_seconds,
            backoff_cap_seconds=settings.backoff_cap_seconds,
            breaker_failures=settings.breaker_failures,
        )


async def make_ready(tx: Tx, booted: Sequence[ObservedVm]) -> list[UUID]:
    """Booting VMs that are warm enter the queue, and claims that wait for one are bound to them: no more, for they wait.

    Gives the pools that got one. The caller calls `follow_ready` for them after its commit.
    """
    ready = await vms.move(tx, [vm.id for vm in booted], VmState.READY, sources=[VmState.BOOTING])
    if not ready:
        return []
    pools = sorted({vm.pool_id for vm in booted if vm.id in set(ready)})
    for pool_id in pools:
        await notify_settled(tx, await claims.bind_pending(tx, pool_id))
    return pools


async def follow_ready(tx: Tx, pools: Sequence[UUID], booted: Sequence[ObservedVm]) -> None:
    """What VMs that became ready bring about after their commit: a second look for waiting claims, and a word to the planner.

    A claim that began to wait at the same moment is seen by one of the two looks. The failures of a pool are forgotten
    where a VM came up for the first time; one that only recovers says nothing of the next.
    """
    for pool_id in pools:
        await notify_settled(tx, await claims.bind_pending(tx, pool_id))
        await pool_rows.plan_soon(tx, pool_id)
    came_up = sorted({vm.pool_id for vm in booted if vm.pool_id in set(pools) and vm.ready_at is None})
    for pool_id in await pool_rows.forgive(tx, came_up):
        await events.record(tx, "pool.recovered", pool_id=pool_id)


async def serve_waiting(tx: Tx, pool_id: UUID) -> int:
    """Binds waiting claims of the pool to VMs that are ready, both in order; how many."""
    bound = await claims.bind_pending(tx, pool_id)
    if bound:
        await notify_settled(tx, bound)
        await pool_rows.plan_soon(tx, pool_id)
    return len(bound)


async def give_up(tx: Tx, vm: ObservedVm, target: VmState, *, reason: str, rules: FateRules, now: datetime) -> bool:
    """A VM has `failed` or is `lost`. False where it was in another state by now, and nothing was changed.

    A claim that holds it fails; within the replace window it gets another VM instead, from the front of the queue. A VM
    that never came up counts against its pool.
    """
    requeued = False
    if vm.state is VmState.CLAIMED and vm.claim_id is not None and await claims.has_vm(tx, vm.claim_id, vm.id):
        if vm.facts.claimed_at is not None and now - vm.facts.claimed_at <= rules.replace_window:
            requeued = await claims.requeue(
                tx, vm.claim_id, vm_id=vm.id, reason=reason, pending_seconds=rules.pending_seconds
            )
        else:
            why = f"its VM {vm.name} is gone: {reason}"
            await claims.end(tx, [vm.claim_id], ClaimState.FAILED, sources=[ClaimState.BOUND], reason=why)
    never_came_up = vm.state in {VmState.CREATING, VmState.BOOTING} and vm.ready_at is None
    if never_came_up:
        # Before the VM: who gives up many VMs of a pool holds its row already when it comes to one that another gives up too.
        await pool_rows.lock_failures(tx, vm.pool_id)
    if not await vms.move(tx, [vm.id], target, sources=[vm.state], reason=reason):
        return False
    if never_came_up:
        await count_failure(tx, vm.pool_id, planned_at=vm.created_at, reason=reason, rules=rules, now=now)
    if requeued:
        await serve_waiting(tx, vm.pool_id)
    if target is VmState.FAILED:
        await notify(tx, Topic.REMOVE)
    await pool_rows.plan_soon(tx, vm.pool_id)
    log.info("vm.given_up", vm=vm.name, state=target, was=vm.state, reason=reason, claim_replaced=requeued)
    return True


async def count_failure(
    tx: Tx, pool_id: UUID, *, planned_at: datetime, reason: str, rules: FateRules, now: datetime
) -> None:
    """Weighs a VM that never came up against its pool: a backoff, and the breaker after too many in a row."""
    consecutive, counted_at = await pool_rows.lock_failures(tx, pool_id)
    verdict = judge_failure(
        FailureRecord(consecutive, counted_at),
        planned_at=planned_at,
        now=now,
        base_seconds=rules.backoff_base_seconds,
        cap_seconds=rules.backoff_cap_seconds,
        breaker=rules.breaker_failures,
        roll=random.random(),  # noqa: S311 - jitter, not a secret
    )
    if not verdict.counts:
        return
    await pool_rows.write_failure(
        tx,
        pool_id,
        reason=reason,
        consecutive=verdict.consecutive,
        backoff_until=verdict.backoff_until,
        stalled=verdict.stalled,
    )
    if verdict.stalled:
        await events.record(tx, "pool.stalled", pool_id=pool_id, reason=reason, failures=verdict.consecutive)
        log.warning("pool.stalled", pool_id=str(pool_id), reason=reason, failures=verdict.consecutive)


async def let_go(tx: Tx, vm: ObservedVm) -> None:
    """The cluster has let go of a VM that we asked it to remove."""
    if vm.state is VmState.FAILED:
        await vms.release(tx, [vm.id], sources=[VmState.FAILED], reason="its object had gone by itself")
    await vms.move(tx, [vm.id], VmState.DELETED, sources=[VmState.RELEASING])
    await pool_rows.plan_soon(tx, vm.pool_id)
