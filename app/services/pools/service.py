"""Writes pools: first checks them with the cluster, without a transaction, then writes them in one transaction."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import structlog

from app.compute.capabilities import Capability
from app.compute.gateway import Gateway
from app.compute.vm_pools import VmPoolOrder
from app.compute.vms import VmTemplate
from app.domain.pools import PoolSpec, revision_of
from app.domain.states import ClaimState, VmState
from app.domain.vm_pools import Backing
from app.errors import FieldProblem, InvalidRequest, PoolBeingDeleted, PoolNotFound, TemplateRefused
from app.ids import new_id, vm_pool_name
from app.lifecycle.placement import require_fit
from app.lifecycle.pool_templates import expand_pool, refuse_unreachable
from app.lifecycle.start_sources import refuse_lossy_start, refuse_other_memory, require_source, require_use
from app.services.writes import IfMatch, WriteOutcome, overtaken, prepare_and_commit
from app.store import events, vm_pools
from app.store.claims import rows as claim_rows
from app.store.database import Database, Tx
from app.store.notices import Topic, notify, notify_settled
from app.store.pools import rows as pool_rows
from app.store.pools import statistics
from app.store.rows import PoolRow
from app.store.vms import rows as vms

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WrittenPool:
    pool: PoolRow
    outcome: WriteOutcome


@dataclass(frozen=True, slots=True)
class PreparedPool:
    """A pool that may be written. `before` is the pool as it was found; `template` is None where nothing changes."""

    name: str
    spec: PoolSpec
    before: PoolRow | None
    template: VmTemplate | None

    @property
    def outcome(self) -> WriteOutcome:
        if self.template is None:
            return WriteOutcome.UNCHANGED
        return WriteOutcome.CREATED if self.before is None else WriteOutcome.CHANGED


async def prepare_pool(
    db: Database, gateway: Gateway, name: str, spec: PoolSpec, *, if_match: IfMatch | None = None
) -> PreparedPool:
    """Checks the pool without writing anything. The same spec again changes nothing, unless it now expands to another template:
    then the settings, or the version of the service, have changed since.

    A template that is new to the pool is checked by a server-side dry run. If the pool asks for more of the nodes than before, all
    its VMs must fit on the nodes as last observed, with nothing else there; claimed VMs do not count, as they leave the pool.
    Raises TemplateRefused, Unschedulable, PoolBeingDeleted, PreconditionFailed, ClusterUnavailable, and InvalidRequest if
    `backing` would change or is not possible on this cluster.
    """
    async with db.begin() as tx:
        before = await pool_rows.get(tx, name)
    _refuse_deleting(before)
    if if_match is not None:
        if_match.check(f"the generation of pool {name!r}", str(before.generation) if before is not None else None)
    return await _prepare(db, gateway, name, spec, before)


async def _prepare(db: Database, gateway: Gateway, name: str, spec: PoolSpec, before: PoolRow | None) -> PreparedPool:
    _refuse_other_backing(before, spec)
    await refuse_unreachable(gateway, spec.guest)
    template = expand_pool(gateway, spec)
    _refuse_single(template, spec)
    refuse_lossy_start(spec.start_from, template)
    revision = revision_of(template.fingerprint, spec)
    if before is not None and before.spec == spec and before.revision == revision:
        return PreparedPool(name, spec, before, None)
    async with db.begin() as tx:
        await refuse_other_memory(tx, gateway, spec.start_from, template)
    if before is None or before.revision != revision:
        await gateway.check(template)
        if spec.backing is Backing.VIRTUAL_MACHINE_POOL:
            await _check_vm_pool(gateway, name, template, revision)
    if not spec.allow_unschedulable and _asks_for_more(before, spec, revision):
        async with db.begin() as tx:
            await require_fit(tx, gateway.demand(template.spec), max(1, spec.size))
    return PreparedPool(name, spec, before, template)


async def commit_pool(db: Database, prepared: PreparedPool) -> WrittenPool:
    """Writes what was prepared. Raises Overtaken, and InvalidRequest if what the pool's VMs start from does not exist."""
    name, spec, before, template = prepared.name, prepared.spec, prepared.before, prepared.template
    async with db.begin() as tx:
        pool = await pool_rows.get(tx, name, lock=True)
        _refuse_deleting(pool)
        if _version(pool) != _version(before):
            raise overtaken(f"pool {name!r}")
        if template is None:
            assert pool is not None  # noqa: S101 - only a pool that exists can be unchanged
            return WrittenPool(pool, WriteOutcome.UNCHANGED)
        revision = revision_of(template.fingerprint, spec)
        if pool is None or pool.spec.start_from != spec.start_from:
            await require_source(tx, spec.start_from, template)
        elif pool.revision != revision:
            await require_use(tx, spec.start_from, template)
        if pool is None:
            written = await insert_pool(tx, prepared, template)
            if spec.backing is Backing.VIRTUAL_MACHINE_POOL:
                await vm_pools.insert(tx, written.id, name=vm_pool_name(name, written.id, 1))
        else:
            await pool_rows.replace(
                tx, pool.id, spec=spec, vm_spec=template.spec, revision=revision, shape=template.shape
            )
            written = await _again(tx, pool)
        await events.record(tx, f"pool.{prepared.outcome}", pool_id=written.id, size=spec.size, revision=revision[:12])
        await wake(tx, written.id)
    log.info("pool.written", pool=name, outcome=prepared.outcome, size=spec.size)
    return WrittenPool(written, prepared.outcome)


async def put_pool(
    db: Database, gateway: Gateway, name: str, spec: PoolSpec, *, if_match: IfMatch | None = None
) -> WrittenPool:
    """Creates the pool, or changes it to `spec`; the same spec again changes nothing.

    Raises what `prepare_pool` and `commit_pool` raise.
    """
    return await prepare_and_commit(
        lambda: prepare_pool(db, gateway, name, spec, if_match=if_match), lambda prepared: commit_pool(db, prepared)
    )


async def edit_pool(
    db: Database,
    gateway: Gateway,
    name: str,
    change: Callable[[PoolSpec], PoolSpec],
    *,
    if_match: IfMatch | None = None,
) -> WrittenPool:
    """Changes a pool to what `change` makes of its spec. If another request changes the pool meanwhile, `change` is applied again
    to what that one wrote, so that neither is lost.

    Raises PoolNotFound, and what `change`, `prepare_pool` and `commit_pool` raise.
    """

    async def prepare() -> PreparedPool:
        async with db.begin() as tx:
            before = await _existing(tx, name, lock=False)
        _refuse_deleting(before)
        if if_match is not None:
            if_match.check(f"the generation of pool {name!r}", str(before.generation))
        return await _prepare(db, gateway, name, change(before.spec), before)

    return await prepare_and_commit(prepare, lambda prepared: commit_pool(db, prepared))


async def delete_pool(db: Database, name: str, *, force: bool) -> PoolRow:
    """Starts to delete a pool: unclaimed VMs are deleted, waiting claims fail, claimed VMs stay until they are released.

    With `force` the claimed VMs are released now. It may be called again, also to add `force`. Raises PoolNotFound.
    """
    async with db.begin() as tx:
        pool = await _existing(tx, name, lock=True)
        if await pool_rows.begin_delete(tx, pool.id):
            await events.record(tx, "pool.deleting", pool_id=pool.id, force=force)
        waiting = await claim_rows.pending_of_pool(tx, pool.id)
        reason = f"pool {name!r} was deleted"
        await claim_rows.end(tx, waiting, ClaimState.FAILED, sources=[ClaimState.PENDING], reason=reason)
        if force:
            bound = await claim_rows.bound_of_pool(tx, pool.id)
            ended = await claim_rows.end(
                tx, bound, ClaimState.RELEASED, sources=[ClaimState.BOUND], reason=f"{reason} by force"
            )
            held = [vm_id for _, _, vm_id in ended if vm_id is not None]
            await vms.release(tx, held, sources=[VmState.CLAIMED], reason=f"{reason} by force")
            await notify(tx, Topic.REMOVE)
        await notify_settled(tx, waiting)
        await wake(tx, pool.id)
        deleted = await pool_rows.get_by_id(tx, pool.id)
    log.info("pool.deleting", pool=name, force=force)
    return deleted if deleted is not None else pool


async def replenish_pool(db: Database, name: str) -> PoolRow:
    """Fills the pool up to its size once, even if it has no auto_replenish."""
    async with db.begin() as tx:
        pool = await _existing(tx, name, lock=True)
        _refuse_deleting(pool)
        await pool_rows.replenish(tx, pool.id)
        await events.record(tx, "pool.replenish", pool_id=pool.id)
        await wake(tx, pool.id)
        return await _again(tx, pool)


async def rotate_pool(db: Database, name: str, *, restart: bool) -> WrittenPool:
    """Replaces every unclaimed VM that exists, a few at a time and without going below the floor. Raises PoolNotFound.

    While VMs of an earlier rotation remain, nothing is changed: a client that repeats its request rotates once. With `restart`
    the VMs that were made since then are replaced too.
    """
    async with db.begin() as tx:
        pool = await _existing(tx, name, lock=True)
        _refuse_deleting(pool)
        if not restart and (await statistics.outdated(tx, [pool.id]))[pool.id].rotated:
            return WrittenPool(pool, WriteOutcome.UNCHANGED)
        await pool_rows.rotate(tx, pool.id)
        remaining = (await statistics.outdated(tx, [pool.id]))[pool.id].count
        await events.record(tx, "pool.rotating", pool_id=pool.id, vms=remaining)
        await wake(tx, pool.id)
        rotating = await _again(tx, pool)
    log.info("pool.rotating", pool=name, vms=remaining)
    return WrittenPool(rotating, WriteOutcome.CHANGED)


async def pause_pool(db: Database, name: str) -> PoolRow:
    """Until the pool is resumed no VM is created or removed for it. Its warm VMs can still be claimed."""
    async with db.begin() as tx:
        pool = await _existing(tx, name, lock=True)
        _refuse_deleting(pool)
        if await pool_rows.set_paused(tx, pool.id, paused=True):
            await events.record(tx, "pool.paused", pool_id=pool.id)
            await wake(tx, pool.id)
        return await _again(tx, pool)


async def resume_pool(db: Database, name: str) -> PoolRow:
    """Ends a pause, closes the breaker and clears the backoff."""
    async with db.begin() as tx:
        pool = await _existing(tx, name, lock=True)
        _refuse_deleting(pool)
        resumed = await pool_rows.set_paused(tx, pool.id, paused=False)
        forgiven = await pool_rows.forgive(tx, [pool.id])
        if resumed or forgiven:
            await events.record(tx, "pool.resumed", pool_id=pool.id)
            await wake(tx, pool.id)
        return await _again(tx, pool)


def no_such_pool(name: str) -> PoolNotFound:
    return PoolNotFound(f"no pool is named {name!r}; GET /v1/pools lists them, PUT /v1/pools/{name} creates it")


def _version(pool: PoolRow | None) -> tuple[UUID, int] | None:
    """Changes with every change of the pool's spec."""
    return (pool.id, pool.generation) if pool is not None else None


async def insert_pool(tx: Tx, prepared: PreparedPool, template: VmTemplate) -> PoolRow:
    """Raises Overtaken where the name is taken by now."""
    pool_id = new_id()
    spec = prepared.spec
    if not await pool_rows.insert(
        tx,
        pool_id=pool_id,
        name=prepared.name,
        spec=spec,
        vm_spec=template.spec,
        revision=revision_of(template.fingerprint, spec),
        shape=template.shape,
    ):
        raise overtaken(f"pool {prepared.name!r}")
    inserted = await pool_rows.get_by_id(tx, pool_id)
    if inserted is None:
        raise AssertionError("this transaction inserted the pool")
    return inserted


async def _existing(tx: Tx, name: str, *, lock: bool) -> PoolRow:
    pool = await pool_rows.get(tx, name, lock=lock)
    if pool is None:
        raise no_such_pool(name)
    return pool


async def _again(tx: Tx, pool: PoolRow) -> PoolRow:
    found = await pool_rows.get_by_id(tx, pool.id)
    return found if found is not None else pool


def _refuse_deleting(pool: PoolRow | None) -> None:
    if pool is not None and pool.deleting_at is not None:
        raise PoolBeingDeleted(
            f"pool {pool.name!r} is being deleted; its name is free once its last VM is gone. "
            f"DELETE /v1/pools/{pool.name}?force=true releases its claims now"
        )


def _refuse_other_backing(pool: PoolRow | None, spec: PoolSpec) -> None:
    """The backing decides who creates a VM and who deletes it, so a pool keeps its backing."""
    if pool is None or pool.spec.backing is spec.backing:
        return
    message = f"cannot be changed (it is {pool.spec.backing}); create another pool and delete this one"
    raise InvalidRequest(f"backing {message}. Nothing was changed", problems=[FieldProblem("backing", message)])


def why_single(template: VmTemplate, spec: PoolSpec) -> tuple[FieldProblem, ...]:
    """Why the VMs of such a pool would not be interchangeable: they would share what exists once, or be the same machine twice.

    A snapshot replaces the volumes that are in it. A pool that never has two VMs may give its VM an identity.
    """
    copied = spec.start_from is not None and spec.start_from.snapshot is not None
    shared = tuple(
        FieldProblem(each.field, each.message) for each in template.exclusives if each.volume is None or not copied
    )
    alone = spec.max_vms is not None and spec.max_vms <= 1
    return shared if alone else (*shared, *(_in_pool(each) for each in template.identity))


def _in_pool(identity: FieldProblem) -> FieldProblem:
    return FieldProblem(
        identity.field,
        f"{identity.message}, and the VMs of a pool are several: leave it out, or set max_vms to 1, so that there is never a second one",
    )


def _refuse_single(template: VmTemplate, spec: PoolSpec) -> None:
    problems = why_single(template, spec)
    if problems:
        told = "; ".join(f"{each.field}: {each.message}" for each in problems)
        raise TemplateRefused(f"The VMs of a pool must be interchangeable. {told}", problems=problems)


def _asks_for_more(before: PoolRow | None, spec: PoolSpec, revision: str) -> bool:
    """Whether the pool needs more of the nodes. A pool that no longer fits may be changed otherwise, and made smaller."""
    if before is None or before.revision != revision or before.spec.allow_unschedulable:
        return True
    return spec.size > before.spec.size


async def _check_vm_pool(gateway: Gateway, name: str, template: VmTemplate, revision: str) -> None:
    pool_id = new_id()
    if (why := await gateway.unavailable(Capability.VM_POOLS)) is not None:
        message = f"this cluster cannot create a VirtualMachinePool: {why}"
        raise InvalidRequest(f"backing: {message}", problems=[FieldProblem("backing", message)])
    await gateway.vm_pools.check(VmPoolOrder(vm_pool_name(name, pool_id, 1), name, pool_id, template.spec, revision))


async def wake(tx: Tx, pool_id: UUID) -> None:
    """Has the pool planned, and tells whoever keeps it in memory."""
    await pool_rows.plan_soon(tx, pool_id)
    await notify(tx, Topic.POOL, pool_id)
