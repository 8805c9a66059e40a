"""Hidden pools: one for each shape and way to start it, made when a claim first needs it and gone when none has for long.

The VMs that a claim without a pool, or a snapshot, needs are made by what makes those of pools: a hidden pool is of no
size, and one VM is planned for each claim in its queue.
"""

import hashlib
from datetime import datetime, timedelta

import structlog

from app.compute.vms import VmTemplate
from app.config import MAX_LEASE_SECONDS
from app.domain.observation import WarmWhen
from app.domain.path_selection import Choice
from app.domain.paths import StartPath
from app.domain.placement import Placement
from app.domain.pools import PoolSpec, StartFrom, revision_of
from app.errors import NoPath
from app.ids import new_id
from app.store.database import Database, Tx
from app.store.pools import on_demand as shapes
from app.store.pools import rows as pool_rows
from app.store.pools import statistics
from app.store.rows import PoolRow

KIND = "on_demand"
IDLE_SECONDS = 6 * 3600.0
_RETIRE_AT_ONCE = 100
_AT_ONCE = 500
_HASH = 12
_FULL_RETRY_SECONDS = 30.0
log = structlog.get_logger(__name__)


def shape_spec(
    template: dict[str, object],
    *,
    warm_when: WarmWhen = WarmWhen.AGENT,
    start_from: StartFrom | None = None,
    placement: Placement | None = None,
    boot_timeout_seconds: int = 600,
) -> PoolSpec:
    """What a hidden pool is asked to be: as many VMs as claims wait, at once, on leases of any length."""
    return PoolSpec(
        size=0,
        template=template,
        start_from=start_from,
        placement=placement,
        warm_when=warm_when,
        max_concurrent_creates=_AT_ONCE,
        boot_timeout_seconds=boot_timeout_seconds,
        max_lease_seconds=MAX_LEASE_SECONDS,
    )


def on_demand_name(template: VmTemplate, spec: PoolSpec) -> str:
    """The same for the same VMs made in the same way. With dots, so that it is no name that a user can give."""
    identity = (revision_of(template.fingerprint, spec), spec.warm_when, str(spec.boot_timeout_seconds))
    made_from = hashlib.sha256("\n".join(identity).encode()).hexdigest()
    return f"shape.{template.shape[:_HASH]}.{spec.path}.{made_from[:_HASH]}"


async def ensure_on_demand_pool(tx: Tx, template: VmTemplate, spec: PoolSpec) -> PoolRow:
    """The hidden pool for this template and `spec.start_from`, made where there is none; it stays until `tx` ends.

    Whoever puts a claim into it does so in `tx`: one that nothing hangs on may be gone after it.
    """
    name = on_demand_name(template, spec)
    found = await shapes.hidden(tx, name)
    while found is None:
        made = await pool_rows.insert(
            tx,
            pool_id=new_id(),
            name=name,
            spec=spec,
            vm_spec=template.spec,
            revision=revision_of(template.fingerprint, spec),
            shape=template.shape,
            kind=KIND,
        )
        if made:
            log.info("shape.pool_made", pool=name, shape=template.shape, path=spec.path, source=spec.source)
        found = await shapes.hidden(tx, name)
    return found


def start_of(choice: Choice) -> StartFrom | None:
    """What the VMs of the choice's hidden pool start from; None: from their template alone."""
    if choice.path is StartPath.SNAPSHOT:
        return StartFrom(snapshot=choice.source)
    if choice.path is StartPath.PRELOAD:
        return StartFrom(preload=choice.source)
    return None


async def enter_pool(tx: Tx, choice: Choice, template: VmTemplate, spec: PoolSpec, *, max_pending: int) -> PoolRow:
    """The pool in whose queue the choice's claim waits: the user's that was chosen, or the hidden one of that `spec`.

    Failures of a hidden pool that rested long enough to be chosen again are forgotten. Raises NoPath where its queue is full,
    or the user's pool has gone.
    """
    if choice.path is StartPath.POOL:
        found = await pool_rows.get(tx, choice.source or "")
        if found is None or found.deleting_at is not None:
            raise NoPath(f"pool {choice.source!r} was deleted at the same moment; try again", retry_after=1)
        return found
    pool = await ensure_on_demand_pool(tx, template, spec)
    if pool.stalled_at is not None:
        await pool_rows.forgive(tx, [pool.id])
    waiting = (await statistics.count(tx, pool.id)).waiting
    if waiting >= max_pending:
        raise NoPath(
            f"{waiting} claims wait already for VMs of this shape, as many as may", retry_after=_FULL_RETRY_SECONDS
        )
    return pool


def rests_until(pool: PoolRow, *, seconds: float) -> datetime | None:
    """When a hidden pool whose VMs failed may be tried again; None: it did not fail. Nobody can resume it but time."""
    if pool.stalled_at is not None:
        return pool.stalled_at + timedelta(seconds=seconds)
    return pool.backoff_until


async def retire_idle_pools(db: Database, *, idle_seconds: float = IDLE_SECONDS) -> bool:
    """Drops hidden pools that nobody has needed for so long; True where there may be more."""
    async with db.begin() as tx:
        gone = await shapes.retire_idle(tx, seconds=idle_seconds, limit=_RETIRE_AT_ONCE)
    if gone:
        log.info("shape.pools_retired", count=len(gone))
    return len(gone) == _RETIRE_AT_ONCE
