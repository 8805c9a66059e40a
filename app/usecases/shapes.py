"""Hidden pools: each stands for one way of making one VM, so that a claim which names no pool waits in a queue all the same.

Such a pool has no size: planning makes one VM for each claim that waits in it. Its name has dots, which no user's may have.
"""

import hashlib

from app.cluster.gateway import VmTemplate
from app.config import MAX_LEASE_SECONDS
from app.domain.observation import WarmWhen
from app.domain.pools import PoolSpec, StartFrom
from app.errors import Conflict
from app.ids import new_id
from app.store import pools as pool_rows
from app.store.database import Tx
from app.store.rows import PoolRow
from app.usecases.pools import revision_of

KIND = "shape"
_CREATES_AT_ONCE = 500
_SHAPE_CHARS = 10
_DIGEST_CHARS = 10


def shape_spec(
    template: dict[str, object],
    *,
    start_from: StartFrom | None = None,
    warm_when: WarmWhen = WarmWhen.AGENT,
    boot_timeout_seconds: int = 600,
) -> PoolSpec:
    """What a hidden pool is asked to be: nothing but how its VMs are made, and no limit of its own."""
    return PoolSpec(
        size=0,
        template=template,
        start_from=start_from,
        warm_when=warm_when,
        boot_timeout_seconds=boot_timeout_seconds,
        max_concurrent_creates=_CREATES_AT_ONCE,
        max_lease_seconds=MAX_LEASE_SECONDS,
    )


async def ensure_shape_pool(tx: Tx, template: VmTemplate, spec: PoolSpec) -> PoolRow:
    """The hidden pool of that template and start, made where there is none; its row is locked until `tx` ends.

    One that was to be retired stays. Whoever ends such a pool must lock its row first and look for waiting claims after that,
    so that it never ends one that a claim is just put into.
    """
    name = _name(template, spec)
    # Two may find none at the same moment: who comes second then finds the first one's.
    for _ in range(2):
        pool = await pool_rows.get(tx, name, lock=True)
        if pool is not None:
            await pool_rows.revive(tx, pool.id)
            return pool
        pool_id = new_id()
        made = await pool_rows.insert(
            tx,
            pool_id=pool_id,
            name=name,
            spec=spec,
            vm_spec=template.spec,
            revision=revision_of(template.fingerprint, spec),
            shape=template.shape,
            kind=KIND,
        )
        if made:
            pool = await pool_rows.get_by_id(tx, pool_id)
            if pool is not None:
                return pool
    raise Conflict("the pool for VMs of this shape is being written by somebody else; try again")


def _name(template: VmTemplate, spec: PoolSpec) -> str:
    """The same for the same VMs, however often they are asked for."""
    identity = (template.fingerprint, spec.warm_when, spec.path, spec.source or "", str(spec.boot_timeout_seconds))
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()
    return f"shape.{template.shape[:_SHAPE_CHARS]}.{spec.path}.{digest[:_DIGEST_CHARS]}"
