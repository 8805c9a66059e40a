"""VMs that a VirtualMachinePool made, given to the rows that wait for them. Works inside the caller's transaction."""

from collections.abc import Sequence
from uuid import UUID

from app.domain.observation import Observation
from app.ids import new_id
from app.store import backing, vms
from app.store import pools as pool_rows
from app.store.backing import MadeVm
from app.store.database import Tx
from app.store.notices import Topic, notify


async def find_rows(tx: Tx, seen: Sequence[Observation]) -> dict[UUID, Observation]:
    """The rows of VMs that carry no id of ours, by their UIDs; a VM that is new becomes one.

    It takes the place of the planned VM that waits longest. Where none is planned (somebody scaled in the cluster, or the
    controller was late) it becomes a row of its own, and the planner says whether there is a use for it.
    """
    known = await backing.ids_of_uids(tx, [obs.uid for obs in seen])
    rows = {known[obs.uid]: obs for obs in seen if obs.uid in known}
    unowned = [obs.uid for obs in rows.values() if obs.owner is None]
    if unowned:
        await _wake(tx, await backing.set_free(tx, uids=unowned))
    new = [obs for obs in seen if obs.uid not in known and obs.owner is not None and not obs.deleting]
    if new:
        rows |= await _adopt(tx, new)
    return rows


async def _adopt(tx: Tx, new: Sequence[Observation]) -> dict[UUID, Observation]:
    by_pool: dict[UUID, list[Observation]] = {}
    for obs in new:
        if obs.pool_id is not None:
            by_pool.setdefault(UUID(obs.pool_id), []).append(obs)
    revisions = await backing.backed(tx, list(by_pool))
    rows: dict[UUID, Observation] = {}
    for pool_id in sorted(revisions):
        found = sorted(by_pool[pool_id], key=lambda obs: obs.name)
        ids = await backing.free_rows(tx, pool_id, limit=len(found))
        extra = [(new_id(), obs.name) for obs in found[len(ids) :]]
        if extra:
            await vms.plan(tx, pool_id, vms=extra, revision=revisions[pool_id], urgent=False)
        rows |= dict(zip([*ids, *(vm_id for vm_id, _ in extra)], found, strict=True))
    await backing.give(tx, {vm_id: _made(obs) for vm_id, obs in rows.items()}, revisions=revisions)
    if rows:
        await _wake(tx, sorted(revisions))
    return rows


async def _wake(tx: Tx, pool_ids: Sequence[UUID]) -> None:
    for pool_id in pool_ids:
        await pool_rows.make_due(tx, pool_id)
        await notify(tx, Topic.PLAN, pool_id)


def _made(obs: Observation) -> MadeVm:
    return MadeVm(
        pool_id=UUID(obs.pool_id or ""), name=obs.name, uid=obs.uid, member=obs.owner is not None, revision=obs.revision
    )
