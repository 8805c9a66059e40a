"""How a pool stands for one more claim: what it has, whether another VM will come, and when."""

from dataclasses import dataclass
from uuid import UUID

from app.domain.statistics import BootTimes, PoolCounts, WaitEstimate, estimate_wait
from app.store import path_times as paths
from app.store.database import Tx
from app.store.pools import rows as pool_rows
from app.store.pools import statistics
from app.store.rows import PoolRow
from app.store.vms.observed import database_now


@dataclass(frozen=True, slots=True)
class Outlook:
    """A pool as it stood a moment ago: good enough to say why nothing is warm, and whether anything will be."""

    pool: PoolRow
    counts: PoolCounts


@dataclass(frozen=True, slots=True)
class MeasuredBoots:
    """`of` says whose they are, in words; `of_shape`: they tell of the pool's own shape, and may so rule a deadline out."""

    times: BootTimes
    of: str
    of_shape: bool


async def look_at(tx: Tx, pool: PoolRow) -> Outlook:
    return Outlook(pool, await statistics.count(tx, pool.id))


async def estimate_in_pool(tx: Tx, pool_id: UUID, claim_id: UUID | None) -> WaitEstimate:
    """How long the claim waits in the pool's queue; None: one that would come behind all others."""
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
    )


async def measure_boots(tx: Tx, pool: PoolRow) -> MeasuredBoots:
    """Its own; where it has none, what its shape took by the same path wherever one was made, and then what all shapes did.

    A hidden pool's own are its shape's by that path, and it may be younger than those.
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
    """Why the pool makes no new VM for a claim, in words. Where only `max_vms` is in the way, who waits may outlast it."""
    if pool.deleting_at is not None:
        return "it is being deleted"
    if pool.stalled_at is not None:
        return f"it is stalled: {pool.last_failure}"
    if pool.paused:
        return "it is paused"
    if not pool.spec.auto_replenish:
        return "it does not refill by itself: call replenish"
    if pool.spec.max_vms is not None and claimed >= pool.spec.max_vms and wait_seconds <= 0:
        return f"all of its max_vms ({pool.spec.max_vms}) are claimed"
    return None
