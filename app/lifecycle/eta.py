"""Whether and when a pool has a VM for one more claim."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from app.domain.pools import why_never_a_vm
from app.domain.states import ClaimState
from app.domain.statistics import BootTimes, PoolCounts, WaitEstimate, estimate_wait
from app.store import path_times as paths
from app.store.database import Tx
from app.store.pools import rows as pool_rows
from app.store.pools import statistics
from app.store.rows import ClaimRow, PoolRow
from app.store.vms.observed import database_now


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool and its counts, read a moment ago: enough to say why no VM is ready, and whether one will be."""

    pool: PoolRow
    counts: PoolCounts


@dataclass(frozen=True, slots=True)
class MeasuredBoots:
    """`of` says in words whose boots these are. `of_shape`: they were measured for the pool's own shape, so a deadline may be
    refused because of them.
    """

    times: BootTimes
    of: str
    of_shape: bool


async def read_status(tx: Tx, pool: PoolRow) -> PoolStatus:
    return PoolStatus(pool, await statistics.count(tx, pool.id))


async def estimate_in_pool(tx: Tx, pool_id: UUID, claim_id: UUID | None) -> WaitEstimate:
    """How long the claim waits in the pool's queue. `claim_id` None: a claim that joins it now."""
    pool = await pool_rows.get_by_id(tx, pool_id)
    if pool is None:
        return WaitEstimate(None, "its pool is gone")
    measured = await measure_boots(tx, pool)
    counts = await statistics.count(tx, pool_id)
    since = await statistics.in_flight_since(tx, pool_id)
    place = await statistics.place_in_queue(tx, pool_id, claim_id)
    return estimate_wait(
        place=place,
        boots=measured.times,
        of=measured.of,
        in_flight_since=since,
        now=await database_now(tx),
        can_grow=why_none_will_come(pool, counts.claimed, 0) is None,
        batch=pool.spec.max_concurrent_creates,
        rests_until=pool.backoff_until,
    )


async def tell_why_pending(tx: Tx, claims: Sequence[ClaimRow]) -> list[ClaimRow]:
    """The same claims. The reason of one that is pending also says what keeps the VMs that it waits for from being ready now."""
    pending = sorted({claim.pool_id for claim in claims if claim.state is ClaimState.PENDING})
    why = await statistics.why_waiting_for(tx, pending)
    return [
        replace(claim, reason="; ".join(filter(None, (claim.reason, why[claim.pool_id]))))
        if claim.state is ClaimState.PENDING and claim.pool_id in why
        else claim
        for claim in claims
    ]


async def measure_boots(tx: Tx, pool: PoolRow) -> MeasuredBoots:
    """The pool's own boot times; where it has none, those of its shape on the same path in any pool, then those of all shapes.

    An on-demand pool takes those of its shape: it may be younger than they are.
    """
    if pool.kind == "pool":
        own = (await statistics.of_pools(tx, [pool.id]))[pool.id].boots
        if own.count:
            return MeasuredBoots(own, "the pool's", of_shape=True)
    if pool.shape is not None:
        of_shape = (await paths.starts_of_shape(tx, pool.shape)).of(pool.path)
        if of_shape.count:
            return MeasuredBoots(of_shape, "this shape's", of_shape=True)
    return MeasuredBoots((await paths.starts_overall(tx)).of(pool.path), f"all {pool.path} starts'", of_shape=False)


def why_none_will_come(pool: PoolRow, claimed: int, wait_seconds: float) -> str | None:
    """Why the pool makes no new VM for a claim, in words. `max_vms` is no reason for a claim that can wait for a release."""
    if pool.deleting_at is not None:
        return "it is being deleted"
    if pool.stalled_at is not None:
        return f"it is stalled: {pool.last_failure}"
    if pool.paused:
        return "it is paused"
    if not pool.spec.auto_replenish:
        return why_never_a_vm(pool.spec) or "auto_replenish is off: call replenish"
    if pool.spec.max_vms is not None and claimed >= pool.spec.max_vms and wait_seconds <= 0:
        return f"all of its max_vms ({pool.spec.max_vms}) are claimed"
    return None
