"""What a snapshot of a pool is made from, and how far the VM is that boots for it."""

from app.compute.gateway import Gateway
from app.compute.vms import VmTemplate
from app.domain.pools import PoolSpec, revision_of
from app.domain.snapshot_specs import SnapshotSpec
from app.domain.snapshots import SHUTDOWN_SECONDS, ClaimFacts, Origin
from app.domain.states import ClaimState
from app.lifecycle.on_demand_pools import on_demand_spec
from app.store.database import Tx
from app.store.pools import planning
from app.store.pools import rows as pool_rows
from app.store.preloads import sources as preloads
from app.store.rows import ClaimRow, PoolRow
from app.store.snapshots.rows import SnapshotRow


def made_from(gateway: Gateway, pool: PoolRow, snapshot: SnapshotSpec) -> tuple[VmTemplate, PoolSpec]:
    """The template and the pool spec of the VM that is booted for the snapshot.

    If the pool starts from this very snapshot, the VM starts cold, as the snapshot would never change otherwise. If the VM is
    stopped for the snapshot, its guest gets time to shut down; VMs of a pool may have none, as nobody reads what they wrote.
    """
    start = pool.spec.start_from
    spec = on_demand_spec(
        pool.spec.template,
        start_from=None if start is not None and start.snapshot == snapshot.name else start,
        placement=pool.spec.placement,
        warm_when=pool.spec.warm_when,
        guest=pool.spec.guest,
        boot_timeout_seconds=pool.spec.boot_timeout_seconds,
    )
    return gateway.reopen(pool.vm_spec, shutdown_seconds=SHUTDOWN_SECONDS if snapshot.stops else 0), spec


async def origin_of(tx: Tx, gateway: Gateway, row: SnapshotRow) -> Origin | None:
    """What the snapshot would be made from now; None if its source is a VM, or if its pool is gone."""
    if row.spec.source.pool is None:
        return None
    pool = await pool_rows.get(tx, row.spec.source.pool)
    if pool is None or pool.deleting_at is not None:
        return None
    template, spec = made_from(gateway, pool, row.spec)
    preload = spec.start_from.preload if spec.start_from is not None else None
    ready_at = await preloads.ready_at(tx, preload) if preload is not None else None
    return Origin(revision_of(template.fingerprint, spec), ready_at)


async def claim_facts(tx: Tx, claim: ClaimRow) -> ClaimFacts:
    """Our claim on the VM of a take, and the state of its on-demand pool while it waits."""
    stalled = trouble = None
    if claim.state is ClaimState.PENDING:
        pool = await pool_rows.get_by_id(tx, claim.pool_id)
        if pool is not None and pool.stalled_at is not None:
            stalled = f"{pool.consecutive_failures} failed in a row: {pool.last_failure}"
        elif pool is not None:
            failure = [f"the last one failed: {pool.last_failure}"] if pool.consecutive_failures else []
            trouble = "; ".join((*failure, *(await planning.last_plan(tx, pool.id)).notes))
    return ClaimFacts(claim.state, claim.reason, claim.vm_name, stalled, trouble or None)
