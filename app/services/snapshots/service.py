"""Creates, refreshes and deletes snapshots: first checks, then writes in one transaction. `reconcilers.snapshots` takes them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from app.compute.capabilities import Capability
from app.compute.gateway import Gateway
from app.domain.pools import revision_of
from app.domain.snapshot_specs import SnapshotSpec
from app.domain.snapshots import UNDER_WAY, VolumeVerdict, unkept_disks
from app.errors import (
    Conflict,
    FieldProblem,
    PoolBeingDeleted,
    SnapshotBeingDeleted,
    SnapshotInUse,
    SnapshotNotFound,
    SnapshotRefused,
    VmNotFound,
)
from app.ids import new_id
from app.lifecycle.on_demand_pools import KIND
from app.lifecycle.snapshot_origins import made_from
from app.services.pools.service import PreparedPool, no_such_pool
from app.services.writes import WriteOutcome, overtaken, prepare_and_commit
from app.store import events, migrations
from app.store.database import Database, Tx
from app.store.notices import Topic, notify
from app.store.pools import rows as pool_rows
from app.store.snapshots import rows as snapshot_rows
from app.store.snapshots.rows import SnapshotRow

MEMORY_MIGRATION = "0015"
"""Programs from before it cannot read what has to do with memory."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WrittenSnapshot:
    snapshot: SnapshotRow
    outcome: WriteOutcome


@dataclass(frozen=True, slots=True)
class PreparedSnapshot:
    """A snapshot that may be written. `before` is the snapshot that has this name already, with the same spec.

    `pool_revision` is the revision of the source pool whose disks were checked; None if the source is a VM.
    """

    spec: SnapshotSpec
    before: SnapshotRow | None = None
    pool_revision: str | None = None

    @property
    def outcome(self) -> WriteOutcome:
        return WriteOutcome.CREATED if self.before is None else WriteOutcome.UNCHANGED


async def prepare_snapshot(
    db: Database, gateway: Gateway, spec: SnapshotSpec, *, pool: PreparedPool | None = None
) -> PreparedSnapshot:
    """Checks the snapshot and its source without writing anything.

    `pool`: the source pool, where it is prepared and will be committed before the snapshot.
    Raises Conflict if another spec has the name, SnapshotBeingDeleted, VmNotFound, PoolNotFound, PoolBeingDeleted,
    SnapshotRefused if no disk of the source can be snapshotted, or its memory is asked for and cannot be kept, ClusterUnavailable.
    """
    async with db.begin() as tx:
        known = await _known(tx, spec)
    if known is not None:
        return PreparedSnapshot(spec, known)
    if spec.memory:
        await _require_memory(gateway)
    if spec.source.vm is not None:
        await _check_vm(gateway, spec.source.vm, spec)
    revision = None
    if pool is not None and pool.template is not None:
        if pool.spec.start_from is None:
            refuse_without_disks(f"pool {pool.name!r}", "source.pool", gateway.snapshots.judge(pool.template.spec))
        if spec.memory:
            refuse_unkept(f"pool {pool.name!r}", "source.pool", gateway.snapshots.judge_memory(pool.template.spec))
        revision = revision_of(pool.template.fingerprint, pool.spec)
    elif spec.source.pool is not None:
        revision = await _check_pool(db, gateway, spec.source.pool, spec)
    return PreparedSnapshot(spec, pool_revision=revision)


async def commit_snapshot(db: Database, prepared: PreparedSnapshot) -> WrittenSnapshot:
    """Writes what was prepared, and asks for the first take. Raises Overtaken if the name was taken or the pool changed."""
    spec = prepared.spec
    async with db.begin() as tx:
        if prepared.before is not None:
            known = await _known(tx, spec)
            if known is None or known.id != prepared.before.id:
                raise overtaken(f"snapshot {spec.name!r}")
            return WrittenSnapshot(known, WriteOutcome.UNCHANGED)
        if spec.source.pool is not None:
            pool = await pool_rows.get(tx, spec.source.pool)
            if pool is None or pool.deleting_at is not None or pool.revision != prepared.pool_revision:
                raise overtaken(f"pool {spec.source.pool!r}")
        snapshot_id = new_id()
        if not await snapshot_rows.insert(tx, snapshot_id=snapshot_id, spec=spec):
            raise overtaken(f"snapshot {spec.name!r}")
        if spec.memory:
            await migrations.require(tx, MEMORY_MIGRATION)
        await events.record(tx, "snapshot.created", snapshot=spec.name)
        await snapshot_rows.insert_take(tx, snapshot_id=snapshot_id, take_id=new_id())
        await notify(tx, Topic.SNAPSHOT)
        written = await snapshot_rows.get_by_id(tx, snapshot_id)
        assert written is not None  # noqa: S101 - this transaction has written it
    log.info("snapshot.created", snapshot=spec.name)
    return WrittenSnapshot(written, WriteOutcome.CREATED)


async def create_snapshot(db: Database, gateway: Gateway, spec: SnapshotSpec) -> WrittenSnapshot:
    """Creates the snapshot under its name; the same spec again changes nothing.

    Raises what `prepare_snapshot` and `commit_snapshot` raise.
    """
    return await prepare_and_commit(
        lambda: prepare_snapshot(db, gateway, spec), lambda prepared: commit_snapshot(db, prepared)
    )


async def refresh_snapshot(db: Database, name: str) -> SnapshotRow:
    """Takes a new snapshot now. If one is already in progress, it counts as the refresh. Raises SnapshotNotFound,
    SnapshotBeingDeleted.
    """
    async with db.begin() as tx:
        row = await _existing(tx, name)
        _refuse_deleting(row)
        takes = (await snapshot_rows.takes_of(tx, [row.id]))[row.id]
        if not any(take.state in UNDER_WAY for take in takes):
            await snapshot_rows.insert_take(tx, snapshot_id=row.id, take_id=new_id())
        await snapshot_rows.make_due(tx, row.id)
        await notify(tx, Topic.SNAPSHOT)
    log.info("snapshot.refresh", snapshot=name)
    return row


async def delete_snapshot(db: Database, gateway: Gateway, name: str, *, force: bool) -> SnapshotRow:
    """Starts to delete a snapshot: nothing starts from it any more, and its objects in the cluster are deleted. May be repeated.

    Raises SnapshotNotFound, and SnapshotInUse if pools start from it. With `force` those pools start cold from then on; SnapshotInUse
    is raised only if one cannot, because its template has no disk of its own.
    """
    async with db.begin() as tx:
        row = await _existing(tx, name)
        if row.deleting_at is None:
            users = await snapshot_rows.pools_using(tx, name)
            if users and not force:
                raise SnapshotInUse(
                    f"VMs of the pools {_quoted(list(users))} start from snapshot {name!r}; change their start_from, or delete "
                    "it with ?force=true, and they start cold from then on"
                )
            diskless = [pool for pool, spec in users.items() if not gateway.reopen(spec).has_own_disk]
            if diskless:
                raise SnapshotInUse(
                    f"the pools {_quoted(diskless)} have no disk other than that of snapshot {name!r}, so they could not start cold; "
                    "change or delete them first"
                )
            await snapshot_rows.begin_delete(tx, row.id)
            await events.record(tx, "snapshot.deleting", snapshot=name, force=force)
            await notify(tx, Topic.SNAPSHOT)
        deleting = await snapshot_rows.get_by_id(tx, row.id)
    log.info("snapshot.deleting", snapshot=name, force=force)
    return deleting if deleting is not None else row


def no_such_snapshot(name: str) -> SnapshotNotFound:
    return SnapshotNotFound(
        f"no snapshot is named {name!r}; GET /v1/snapshots lists them, POST /v1/snapshots takes one"
    )


def refuse_without_disks(what: str, field: str, volumes: Sequence[VolumeVerdict]) -> None:
    """Raises SnapshotRefused, with a reason for each volume, if none of the volumes can be in a snapshot."""
    if any(volume.enabled for volume in volumes):
        return
    reasons = "; ".join(f"{volume.name}: {volume.reason}" for volume in volumes) or "it has no volumes"
    message = f"nothing of {what} can be snapshotted: {reasons}"
    raise SnapshotRefused(
        f"{message}. Give it a disk on a storage class that has a VolumeSnapshotClass",
        problems=[FieldProblem(field, f"{volume.name}: {volume.reason}") for volume in volumes]
        or [FieldProblem(field, message)],
    )


def refuse_unkept(what: str, field: str, reasons: Sequence[str]) -> None:
    """Raises SnapshotRefused, with the reasons, if the memory of such a VM cannot be kept."""
    if reasons:
        message = f"the memory of {what} cannot be kept: {'; '.join(reasons)}"
        advice = "Put every disk that the guest writes to on a storage class that has a VolumeSnapshotClass, and leave such devices out"
        raise SnapshotRefused(f"{message}. {advice}, or leave memory out", problems=[FieldProblem(field, message)])


async def _require_memory(gateway: Gateway) -> None:
    if (why := await gateway.unavailable(Capability.MEMORY)) is not None:
        raise SnapshotRefused(f"memory: {why}. Nothing was changed", problems=[FieldProblem("memory", why)])


async def _known(tx: Tx, spec: SnapshotSpec) -> SnapshotRow | None:
    """The snapshot with this name, if there is one. Raises Conflict if its spec differs."""
    row = await snapshot_rows.get(tx, spec.name)
    if row is None:
        return None
    _refuse_deleting(row)
    was, asked = row.spec.model_dump(mode="json"), spec.model_dump(mode="json")
    problems = [
        FieldProblem(key, f"the snapshot has {_in_words(was[key])}, the request has {_in_words(asked[key])}")
        for key in asked
        if was[key] != asked[key]
    ]
    if problems:
        differs = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
        raise Conflict(
            f"snapshot {spec.name!r} exists with another spec: {differs}. Choose another name, or delete that snapshot first",
            problems=problems,
        )
    return row


async def _check_vm(gateway: Gateway, name: str, spec: SnapshotSpec) -> None:
    vm = await gateway.snapshots.source(name)
    if vm is None or vm.deleting:
        gone = "is being deleted" if vm is not None else "does not exist in the namespace"
        raise VmNotFound(f"source.vm: VM {name!r} {gone}; name a VM that exists")
    refuse_without_disks(f"VM {name!r}", "source.vm", vm.volumes)
    if not spec.memory:
        return
    if not vm.running:
        message = f"VM {name!r} does not run, so it has no memory to keep; start it, or leave memory out"
        raise SnapshotRefused(f"source.vm: {message}", problems=[FieldProblem("source.vm", message)])
    reasons = gateway.snapshots.judge_memory(vm.spec) if vm.spec is not None else ["the service makes no VM like it"]
    refuse_unkept(f"VM {name!r}", "source.vm", reasons or unkept_disks(vm.volumes))


async def _check_pool(db: Database, gateway: Gateway, name: str, snapshot: SnapshotSpec) -> str:
    """The revision of the pool that was checked."""
    async with db.begin() as tx:
        pool = await pool_rows.get(tx, name)
    if pool is None or pool.kind == KIND:
        raise no_such_pool(name)
    if pool.deleting_at is not None:
        raise PoolBeingDeleted(f"pool {name!r} is being deleted; take a snapshot of another pool")
    template, spec = made_from(gateway, pool, snapshot)
    if spec.start_from is None:  # otherwise it gets a disk from what it starts from
        verdicts = gateway.snapshots.judge(template.spec)
        refuse_without_disks(f"pool {name!r}", "source.pool", verdicts)
    if snapshot.memory:
        refuse_unkept(f"pool {name!r}", "source.pool", gateway.snapshots.judge_memory(template.spec))
    return pool.revision


async def _existing(tx: Tx, name: str) -> SnapshotRow:
    row = await snapshot_rows.get(tx, name, lock=True)
    if row is None:
        raise no_such_snapshot(name)
    return row


def _refuse_deleting(row: SnapshotRow) -> None:
    if row.deleting_at is not None:
        raise SnapshotBeingDeleted(
            f"snapshot {row.name!r} is being deleted; its name is free once its objects are gone from the cluster"
        )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _in_words(value: object) -> str:
    """As JSON, without what is not set."""
    given = {key: each for key, each in value.items() if each is not None} if isinstance(value, dict) else value
    return json.dumps(given)
