"""Hidden pools: one for each shape and way to start it, made when a claim first needs it and gone when none has for long.

The VMs that a claim without a pool, or a snapshot, needs are made by what makes those of pools: a hidden pool is of no
size, and one VM is planned for each claim in its queue.
"""

import hashlib
from datetime import datetime, timedelta

import structlog

from app.cluster.gateway import VmTemplate
from app.cluster.shapes import shape_of
from app.config import MAX_LEASE_SECONDS
from app.domain.observation import WarmWhen
from app.domain.pools import PoolSpec, StartFrom
from app.ids import new_id
from app.store import pools as pool_rows
from app.store import shapes
from app.store.database import Database, Tx
from app.store.rows import PoolRow
from app.usecases.pools import revision_of

KIND = "shape"
IDLE_SECONDS = 6 * 3600.0
_RETIRE_AT_ONCE = 100
_AT_ONCE = 500
_HASH = 12
log = structlog.get_logger(__name__)


def shape_spec(
    template: dict[str, object],
    *,
    warm_when: WarmWhen = WarmWhen.AGENT,
    start_from: StartFrom | None = None,
    boot_timeout_seconds: int = 600,
) -> PoolSpec:
    """What a hidden pool is asked to be: as many VMs as claims wait, at once, on leases of any length."""
    return PoolSpec(
        size=0,
        template=template,
        start_from=start_from,
        warm_when=warm_when,
        max_concurrent_creates=_AT_ONCE,
        boot_timeout_seconds=boot_timeout_seconds,
        max_lease_seconds=MAX_LEASE_SECONDS,
    )


def hidden_name(template: VmTemplate, spec: PoolSpec) -> str:
    """The same for the same VMs made in the same way. With dots, so that it is no name that a user can give."""
    identity = (revision_of(template.fingerprint, spec), spec.warm_when, str(spec.boot_timeout_seconds))
    made_from = hashlib.sha256("\n".join(identity).encode()).hexdigest()
    return f"shape.{template.shape[:_HASH]}.{spec.path}.{made_from[:_HASH]}"


async def ensure_shape_pool(tx: Tx, template: VmTemplate, spec: PoolSpec) -> PoolRow:
    """The hidden pool for this template and `spec.start_from`, made where there is none; it stays until `tx` ends.

    Whoever puts a claim into it does so in `tx`: one that nothing hangs on may be gone after it.
    """
    name = hidden_name(template, spec)
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


async def fill_shapes(db: Database) -> int:
    """Gives pools that were written before there were shapes theirs; how many."""
    async with db.begin() as tx:
        unshaped = await shapes.unshaped(tx)
        for pool in unshaped:
            await shapes.write_shape(tx, pool, shape_of(pool.vm_spec))
    return len(unshaped)
