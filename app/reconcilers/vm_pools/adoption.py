"""Assigns the VMs that VirtualMachinePools made to rows. Works inside the caller's transaction."""

from collections.abc import Sequence
from uuid import UUID

from app.domain.observation import Observation
from app.ids import new_id
from app.store import vm_pools
from app.store.database import Tx
from app.store.pools import rows as pool_rows
from app.store.preloads import rows as preload_rows
from app.store.vm_pools import MadeVm
from app.store.vms import rows as vms


async def find_rows(tx: Tx, observations: Sequence[Observation]) -> dict[UUID, Observation]:
    """The rows of VMs that carry no id of ours, found by UID. A new VM is assigned to the planned row that has waited longest.

    If none is planned (somebody scaled in the cluster, or the controller was late) the VM gets a new row, and the planner
    decides whether it is of use.
    """
    known = await vm_pools.ids_of_uids(tx, [obs.uid for obs in observations])
    rows = {known[obs.uid]: obs for obs in observations if obs.uid in known}
    new = [obs for obs in observations if obs.uid not in known and obs.owner is not None and not obs.deleting]
    if new:
        rows |= await _adopt(tx, new)
    return rows


async def note_detached(tx: Tx, observations: Sequence[Observation]) -> None:
    """Somebody detached VMs from their VirtualMachinePool: they stay in their state, without an owner.

    Call it in a transaction of its own: it locks VMs, and whoever ends claims locks the claims first.
    """
    await pool_rows.plan_soon(tx, *await vm_pools.mark_detached(tx, uids=[obs.uid for obs in observations]))


async def _adopt(tx: Tx, new: Sequence[Observation]) -> dict[UUID, Observation]:
    by_pool: dict[UUID, list[Observation]] = {}
    for obs in new:
        if obs.pool_id is not None:
            by_pool.setdefault(UUID(obs.pool_id), []).append(obs)
    pools = await vm_pools.pools_of(tx, list(by_pool))
    rows: dict[UUID, Observation] = {}
    objects: dict[UUID, MadeVm] = {}
    for pool_id, pool in sorted(pools.items()):
        found = sorted(by_pool[pool_id], key=lambda obs: obs.name)
        ids = await vm_pools.unassigned(tx, pool_id, limit=len(found))
        extra = [(new_id(), obs.name) for obs in found[len(ids) :]]
        if extra:
            await vms.plan(tx, [vms.PlannedVm(vm_id, pool_id, name, pool.revision) for vm_id, name in extra])
        for vm_id, obs in zip([*ids, *(vm_id for vm_id, _ in extra)], found, strict=True):
            rows[vm_id] = obs
            # A VM that existed before the pool does not say what it was made from, and counts as made from the pool's template.
            objects[vm_id] = MadeVm(obs.name, obs.uid, member=True, revision=obs.revision or pool.revision)
            if pool.source is not None:
                await preload_rows.note_use(tx, pool.source)
    await vm_pools.assign(tx, objects)
    await pool_rows.plan_soon(tx, *pools)
    return rows
