"""Imports a VirtualMachinePool that somebody else created: it becomes a pool, and its running VMs become the pool's."""

from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from app.compute.gateway import Gateway
from app.compute.vm_pools import FoundVmPool
from app.domain.observation import WarmWhen
from app.domain.pools import PoolSpec
from app.domain.sentences import describe_invalid
from app.domain.vm_pools import Backing
from app.errors import ClusterNotFound, Conflict, FieldProblem, InvalidRequest, list_problems
from app.services.pools.service import insert_pool, prepare_pool, wake
from app.store import events, vm_pools
from app.store.database import Database
from app.store.rows import PoolRow

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Import:
    """What importing a VirtualMachinePool changes, in sentences, and which VMs become the pool's. `pool` is None in a dry run."""

    vm_pool: str
    name: str
    spec: PoolSpec
    changes: tuple[str, ...]
    vms: tuple[str, ...]
    pool: PoolRow | None


async def import_vm_pool(
    db: Database,
    gateway: Gateway,
    *,
    vm_pool: str,
    name: str,
    warm_when: WarmWhen,
    allow_unschedulable: bool = False,
    dry_run: bool,
) -> Import:
    """Creates pool `name` from the VirtualMachinePool's template, with its replicas as size. No VM is restarted or removed.

    With `dry_run` nothing is written anywhere.
    Raises ClusterNotFound, Conflict where it belongs to a pool or is being deleted or the name is taken, InvalidRequest where
    it cannot be a pool, and what `prepare_pool` raises.
    """
    found = await gateway.vm_pools.find(vm_pool)
    if found is None:
        raise ClusterNotFound(f"There is no VirtualMachinePool {vm_pool}; kubectl get vmpool lists them.")
    if found.status.deleting:
        raise Conflict(f"VirtualMachinePool {vm_pool} is being deleted; nothing was changed")
    if found.status.ours:
        raise Conflict(f"VirtualMachinePool {vm_pool} belongs to a pool already; GET /v1/pools lists them")
    spec = _spec_of(found, warm_when, allow_unschedulable=allow_unschedulable)
    prepared = await prepare_pool(db, gateway, name, spec)
    template = prepared.template
    if prepared.before is not None or template is None:
        raise Conflict(
            f"there is a pool {name!r} already; choose another name for what VirtualMachinePool {vm_pool} becomes"
        )
    pool: PoolRow | None = None
    if not dry_run:
        async with db.begin() as tx:
            pool = await insert_pool(tx, prepared, template)
            status = found.status
            await vm_pools.insert(tx, pool.id, name=status.name, uid=status.uid, replicas=status.replicas, adopted=True)
            await events.record(
                tx, "pool.created", pool_id=pool.id, size=spec.size, revision=pool.revision[:12], imported=vm_pool
            )
            await wake(tx, pool.id)
        log.info("pool.imported", pool=name, vm_pool=vm_pool, vms=len(found.members))
    return Import(vm_pool, name, spec, tell_changes(found, name), found.members, pool)


def tell_changes(found: FoundVmPool, pool: str) -> tuple[str, ...]:
    """What changes in the cluster, one sentence each."""
    told = [
        f"{strategy} becomes unmanaged: the cluster creates VMs, and no longer changes or deletes them"
        for strategy in found.managed
    ]
    if found.heals:
        told.append(
            "autohealing is removed: it acts on every VM of the namespace, and the service checks health itself"
        )
    told.append(
        "the VirtualMachinePool, its template, its VMs and their running instances get the labels of this service"
    )
    told.append("it gets a finalizer, so that its VMs can be detached before it is deleted")
    told.append("its template is replaced by the pool's, from which new VMs are made; running VMs stay as they are")
    if found.status.paused:
        told.append("it is paused and stays paused until somebody resumes it in the cluster")
    if found.members:
        told.append(f"{len(found.members)} running VMs become warm VMs of pool {pool!r}; none is restarted or removed")
    return tuple(told)


def _spec_of(found: FoundVmPool, warm_when: WarmWhen, *, allow_unschedulable: bool) -> PoolSpec:
    given = {
        "size": found.status.replicas,
        "template": found.template,
        "backing": Backing.VIRTUAL_MACHINE_POOL,
        "warm_when": warm_when,
        "allow_unschedulable": allow_unschedulable,
    }
    try:
        return PoolSpec.model_validate(given)
    except ValidationError as error:
        problems = [
            FieldProblem(".".join(str(part) for part in each["loc"]), describe_invalid(each)) for each in error.errors()
        ]
        raise InvalidRequest(
            f"VirtualMachinePool {found.status.name} cannot be a pool: {list_problems(problems)}", problems=problems
        ) from error
