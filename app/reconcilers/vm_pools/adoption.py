"""VMs that a VirtualMachinePool made, given to the rows that wait for them. Works inside the caller's transaction."""

from collections.abc import Sequence
from uuid import UUID

from app.domain.observation import Observation
from app.ids import new_id
from app.store import vm_pools as backing
from app.store.database import Tx
from app.store.pools import rows as pool_rows
from app.store.preloads import rows as preload_rows
from app.store.vm_pools import MadeVm
from app.store.vms import rows as vms


async def find_rows(tx: Tx, seen: Sequence[Observation]) -> dict[UUID, Observation]:
    """The rows of VMs that carry no id of ours, by their UIDs; a VM that is new becomes one.

    It takes the place of the planned VM that waits longest. Where none is planned (somebody scaled in the cluster, or the
    controller was late) it becomes a row of its own, and the planner says whether there is a use for it.
    """
    known = await backing.ids_of_uids(tx, [obs.uid for obs in seen])
    rows = {known[obs.uid]: obs for obs in seen if obs.uid in known}
    new = [obs for obs in seen if obs.uid not in known and obs.owner is not None and not obs.deleting]
    if new:
        rows |= await _adopt(tx, new)
    return rows


async def note_detached(tx: Tx, seen: Sequence[Observation]) -> None:
    """VMs that somebody took from their VirtualMachinePool stay what they are, and are nobody's.

    For a transaction of its own: it locks VMs, and whoever ends claims locks those first.
    """
    await _wake(tx, await backing.set_free(tx, uids=[obs.uid for obs in seen]))


async def _adopt(tx: Tx, new: Sequence[Observation]) -> dict[UUID, Observation]:
    by_pool: dict[UUID, list[Observation]] = {}
    for obs in new:
        if obs.pool_id is not None:
            by_pool.setdefault(UUID(obs.pool_id), []).append(obs)
    pools = await backing.backed(tx, list(by_pool))
    rows: dict[UUID, Observation] = {}
    given: dict[UUID, MadeVm] = {}
    for pool_id, pool in sorted(pools.items()):
        found = sorted(by_pool[pool_id], key=lambda obs: obs.name)
        ids = await backing.free_rows(tx, pool_id, limit=len(found))
        extra = [(new_id(), obs.name) for obs in found[len(ids) :]]
        if extra:
            await vms.plan(tx, pool_id, vms=extra, revision=pool.revision, urgent=False)
        for vm_id, obs in zip([*ids, *(vm_id for vm_id, _ in extra)], found, strict=True):
            rows[vm_id] = obs
            # One that was there before the pool does not say what it was made from, and passes for the pool's own.
            given[vm_id] = MadeVm(obs.name, obs.uid, member=True, revision=obs.revision or pool.revision)
            if pool.source is not None:
                await preload_rows.note_use(tx, pool.source)
    await backing.give(tx, given)
    await _wake(tx, sorted(pools))
    return rows


async def _wake(tx: Tx, pool_ids: Sequence[UUID]) -> None:
    for pool_id in pool_ids:
        await pool_rows.plan_soon(tx, pool_id)
