"""On-demand pools: one for each shape and path, made when a claim first needs it and deleted when none has for a long time.

The VMs for claims that describe them, and for snapshots, are made as the VMs of pools are: an on-demand pool has size 0, and
one VM is planned for each claim in its queue.
"""

import hashlib
from datetime import datetime, timedelta

import structlog

from app.compute.vms import VmTemplate
from app.config import MAX_LEASE_SECONDS
from app.domain.guests import GuestSpec
from app.domain.observation import WarmWhen
from app.domain.path_selection import Choice
from app.domain.paths import StartPath
from app.domain.placement import Placement
from app.domain.pools import PoolSpec, StartFrom, revision_of
from app.errors import ChosenPathGone, NoPath
from app.ids import new_id
from app.lifecycle.start_sources import FROM_SNAPSHOT, NotYet, resolve_start
from app.store.database import Database, Tx
from app.store.pools import on_demand, statistics
from app.store.pools import rows as pool_rows
from app.store.rows import PoolRow

KIND = "on_demand"
IDLE_SECONDS = 6 * 3600.0
_RETIRE_AT_ONCE = 100
_AT_ONCE = 500
_HASH = 12
_FULL_RETRY_SECONDS = 30.0
log = structlog.get_logger(__name__)


def on_demand_spec(
    template: dict[str, object],
    *,
    warm_when: WarmWhen = WarmWhen.AGENT,
    start_from: StartFrom | None = None,
    placement: Placement | None = None,
    allow_unschedulable: bool = False,
    boot_timeout_seconds: int = 600,
    guest: GuestSpec | None = None,
) -> PoolSpec:
    """The spec of an on-demand pool: as many VMs as claims wait, all at once, on leases of any length."""
    return PoolSpec(
        size=0,
        template=template,
        start_from=start_from,
        placement=placement,
        guest=guest,
        allow_unschedulable=allow_unschedulable,
        warm_when=warm_when,
        max_concurrent_creates=_AT_ONCE,
        boot_timeout_seconds=boot_timeout_seconds,
        max_lease_seconds=MAX_LEASE_SECONDS,
    )


def on_demand_name(template: VmTemplate, spec: PoolSpec) -> str:
    """The same for the same VMs made in the same way. It has dots, which a user's pool name cannot have."""
    identity = [revision_of(template.fingerprint, spec), spec.warm_when, str(spec.boot_timeout_seconds)]
    if spec.allow_unschedulable:
        identity.append("allow_unschedulable")
    if spec.guest is not None:
        identity.append(spec.guest.model_dump_json())
    made_from = hashlib.sha256("\n".join(identity).encode()).hexdigest()
    return f"shape.{template.shape[:_HASH]}.{spec.path}.{made_from[:_HASH]}"


async def ensure_on_demand_pool(tx: Tx, template: VmTemplate, spec: PoolSpec) -> PoolRow:
    """The on-demand pool for this template and `spec.start_from`, made where there is none; it is locked until `tx` ends.

    A claim is put into it in the same `tx`: an empty one may be deleted after that.
    """
    name = on_demand_name(template, spec)
    found = await on_demand.lock(tx, name)
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
            log.info("on_demand_pool.created", pool=name, shape=template.shape, path=spec.path, source=spec.source)
        found = await on_demand.lock(tx, name)
    return found


def start_of(choice: Choice) -> StartFrom | None:
    """What the VMs of the choice's on-demand pool start from; None: from their template alone."""
    if choice.path in FROM_SNAPSHOT:
        return StartFrom(snapshot=choice.source)
    if choice.path is StartPath.PRELOAD:
        return StartFrom(preload=choice.source)
    return None


async def enter_pool(tx: Tx, choice: Choice, template: VmTemplate, spec: PoolSpec, *, max_pending: int) -> PoolRow:
    """The pool in whose queue a claim with this choice waits: the user's pool, or the on-demand pool of `spec`.

    What was chosen is checked again. Raises ChosenPathGone where it is gone, and NoPath where its queue is full. Forgets the failures of an on-demand
    pool, which has rested long enough if it was chosen again.
    """
    if choice.path is StartPath.POOL:
        pool = await pool_rows.get(tx, choice.source or "")
        if pool is None or pool.deleting_at is not None or pool.generation != choice.generation:
            raise _gone(f"pool {choice.source!r} was deleted or changed")
    else:
        start = await resolve_start(tx, choice.path, choice.source)
        if (start is None and choice.source is not None) or (isinstance(start, NotYet) and not choice.waits_for_source):
            raise _gone(f"{choice.path} {choice.source!r} is no longer ready")
        pool = await ensure_on_demand_pool(tx, template, spec)
        if pool.stalled_at is not None:
            await pool_rows.forgive(tx, [pool.id])
    waiting = (await statistics.count(tx, pool.id)).waiting
    if waiting >= max_pending:
        raise NoPath(
            f"{waiting} claims wait already for VMs of this shape, which is the limit", retry_after=_FULL_RETRY_SECONDS
        )
    return pool


def rests_until(pool: PoolRow, *, seconds: float) -> datetime | None:
    """When an on-demand pool whose VMs failed may be tried again; None: none failed. Users cannot resume such a pool."""
    if pool.stalled_at is not None:
        return pool.stalled_at + timedelta(seconds=seconds)
    return pool.backoff_until


async def retire_idle_pools(db: Database, *, idle_seconds: float = IDLE_SECONDS) -> bool:
    """Deletes on-demand pools that no claim has needed for `idle_seconds`; True where there may be more."""
    async with db.begin() as tx:
        gone = await on_demand.retire_idle(tx, seconds=idle_seconds, limit=_RETIRE_AT_ONCE)
    if gone:
        log.info("on_demand_pool.retired", count=len(gone))
    return len(gone) == _RETIRE_AT_ONCE


def _gone(what: str) -> ChosenPathGone:
    return ChosenPathGone(f"{what} at the same moment; try again", retry_after=1)
