"""Creates in the cluster the VMs that rows plan.

The name of a VM is in its row before the cluster is asked. The worker after one that died therefore asks for the same name,
and "already exists" is success.

A cluster that is away, hangs, or forbids creates puts them off: that is written for the pool and for all pools, no further create of
the pool is begun for a while, and no VM has failed. The next success ends it.

How many creates are under way at once follows from what the cluster answers (`domain.pacing`), and each that ends makes room for
the next.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import suppress

from typing_extensions import override

from app.compute.gateway import Gateway
from app.config import Settings
from app.domain.observation import Observation
from app.domain.pacing import CreatePacer, Pushback
from app.domain.paths import FromSnapshot, Start, StartPath
from app.domain.states import VmState
from app.domain.templates import Exclusive
from app.errors import ClusterError, ClusterForbidden, ClusterRefused, ClusterUnavailable, DatabaseUnavailable
from app.lifecycle.start_sources import NotYet, memory_problems, other_memory, resolve_start
from app.reconcilers.guests.identities import IdentityMaker
from app.reconcilers.runtime.leased_worker import LeasedWorker, RetryLater
from app.reconcilers.runtime.loop import Wake
from app.reconcilers.vms.outcomes import give_up
from app.store.database import Database, Tx
from app.store.notices import Topic, notify
from app.store.pools import put_off
from app.store.pools import rows as pool_rows
from app.store.preloads import rows as preload_rows
from app.store.snapshots import rows as snapshot_rows
from app.store.vms import observed, work
from app.store.vms import rows as vms
from app.store.vms.work import CreateWork

_IN_USE_SECONDS = 2.0
_HANGS_SECONDS = 3.0
"""A create takes 22 ms at p50, and 129 ms with eight at a time (Kubernetes 1.36 with KubeVirt v1.9.0, measured)."""
_MOST_SECONDS = 15.0  # between two attempts


class SourceNotReady(RetryLater):
    """The cluster was not asked for the VM: its snapshot or preload is not ready."""


class InUse(SourceNotReady):
    """Something that exists once is in use by another VM."""


class VmCreator(LeasedWorker[CreateWork]):
    """`wake` is called when a create ends, so that the loop begins another."""

    subject = "vm"
    call = "create"
    leases = work.LEASES
    retry_cap_seconds = math.inf

    def __init__(self, db: Database, gateway: Gateway, settings: Settings, wake: Wake | None = None) -> None:
        super().__init__(db, gateway, settings)
        self._wake = wake or Wake()
        self._identities = IdentityMaker(gateway, settings)
        self._pacer = CreatePacer(start=settings.provision_concurrency, limit=settings.create_concurrency)
        self._under_way: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    async def begin(self) -> bool:
        """Begins as many creates as the cluster takes now, and does not wait for them. True: as many as that were due.

        Raises what a create that was begun before ended with.
        """
        self._raise_failure()
        room = self._pacer.room(len(self._under_way), time.monotonic())
        if room == 0:
            return False
        async with self._db.once() as tx:
            if not await work.any_create(tx):
                return False
        async with self._db.begin() as tx:
            items = await self.acquire(tx, room)
        for item in items:
            task = asyncio.create_task(self._visit(item), name=f"create-{item.name}")
            self._under_way.add(task)
            task.add_done_callback(self._note_end)
        return len(items) == room

    @override
    async def step(self) -> bool:
        """Begins what may be begun, and waits until nothing is under way."""
        more = await self.begin()
        await self._finish()
        self._raise_failure()
        return more

    @override
    async def release(self) -> None:
        """Waits for what is under way: its answers are coming."""
        await self._finish()
        await super().release()

    def cancel(self) -> None:
        """What is under way ends without an answer."""
        for task in self._under_way:
            task.cancel()

    async def _finish(self) -> None:
        try:
            if self._under_way:
                await asyncio.wait(self._under_way)
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = failure
        self._wake()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    @override
    async def acquire(self, tx: Tx, limit: int) -> Sequence[CreateWork]:
        settings = self._settings
        return await work.acquire_creates(
            tx, token=self.token, limit=limit, seconds=settings.work_lease_seconds, rate=settings.creates_per_second
        )

    @override
    async def process(self, item: CreateWork) -> None:
        template = self._gateway.reopen(item.vm_spec)
        async with self._db.begin() as tx:
            start = await resolve_start(tx, item.path, item.source, asked_at=item.asked_at)
            if not isinstance(start, NotYet):
                kept = [each for each in template.exclusives if not _is_replaced(each, start)]
                await _take_exclusives(tx, item, kept)
            if start is None and item.source is not None:
                await work.start_cold(tx, item.id, token=self.token)
            if isinstance(start, FromSnapshot) and (path := _path_of(start)) is not item.path:
                await work.write_path(tx, item.id, path, token=self.token)
        if isinstance(start, NotYet):
            raise SourceNotReady(start.reason)
        if isinstance(start, FromSnapshot) and (problems := memory_problems(self._gateway, template, start)):
            raise ClusterRefused(other_memory(start.name, problems), problems=problems)
        if template.has_identity_disk:
            await self._identities.make(item, self.guarded)
        made = await self._create(item, start)
        async with self._db.begin() as tx:
            if item.source is not None:
                await (preload_rows if item.path is StartPath.PRELOAD else snapshot_rows).note_use(tx, item.source)
            # If the informer saw the VM first, the row is booting already and no longer ours: nothing is left to write.
            if await self.leases.holds(tx, item.id, token=self.token):
                await work.write_uid(tx, item.id, made.uid)
                await vms.move(
                    tx,
                    [item.id],
                    VmState.BOOTING,
                    sources=[VmState.CREATING],
                    deadline_seconds=item.boot_timeout_seconds,
                )
            if (ended := await put_off.end(tx, item.pool_id)) is not None:
                await pool_rows.plan_soon(tx, item.pool_id, *ended)
                await notify(tx, Topic.CREATE)

    async def _create(self, item: CreateWork, start: Start) -> Observation:
        """One that hangs is told before it fails."""
        making = asyncio.ensure_future(
            self._gateway.create_vm(name=item.name, pool=item.pool, vm_id=str(item.id), spec=item.vm_spec, start=start)
        )
        begun_at = time.monotonic()
        try:
            await asyncio.wait({making}, timeout=_HANGS_SECONDS)
            if not making.done():
                await self._tell_hanging(item, begun_at)
            made = await making
        except ClusterUnavailable as error:
            self._pacer.pushed_back(Pushback(begun_at, error.retry_after), time.monotonic())
            raise
        finally:
            making.cancel()
        self._pacer.succeeded(time.monotonic() - begun_at, under_way=len(self._under_way))
        return made

    async def _tell_hanging(self, item: CreateWork, begun_at: float) -> None:
        self._pacer.pushed_back(Pushback(begun_at), time.monotonic())
        with suppress(DatabaseUnavailable):
            async with self._db.begin() as tx:
                await self._put_off(tx, item, f"the cluster has not answered a create for {_HANGS_SECONDS:g} s")

    async def _put_off(self, tx: Tx, item: CreateWork, reason: str, *, after: float | None = None) -> None:
        most = min(_MOST_SECONDS, self._settings.backoff_cap_seconds)
        least = max(after or 0.0, self.backoff(1))
        await put_off.write(tx, item.pool_id, reason=reason, least_seconds=least, most_seconds=max(least, most))

    @override
    def pause(self, item: CreateWork, retry: RetryLater) -> float:
        return _IN_USE_SECONDS if isinstance(retry, InUse) else super().pause(item, retry)

    @override
    async def retry_later(self, tx: Tx, item: CreateWork, retry: RetryLater, *, seconds: float) -> None:
        if isinstance(retry, SourceNotReady):
            await work.retry_create(
                tx, item.id, token=self.token, seconds=seconds, reason=retry.reason, unasked=item.first
            )
            return
        await self._put_off(tx, item, retry.reason, after=retry.after)
        await work.retry_create(tx, item.id, token=self.token, seconds=0, reason=put_off.health_of(retry.reason))

    @override
    async def refused(self, item: CreateWork, error: ClusterError) -> None:
        """The VM has failed, unless it only lacks a right or a quota."""
        if isinstance(error, ClusterForbidden):
            raise RetryLater(error.detail) from error
        async with self.guarded(item.id) as tx:
            vm = (await observed.by_ids(tx, [item.id])).get(item.id)
            if vm is not None:
                await give_up(tx, vm, VmState.FAILED, reason=error.detail, settings=self._settings)


async def _take_exclusives(tx: Tx, item: CreateWork, exclusives: Sequence[Exclusive]) -> None:
    """Gives the VM what it writes to although it exists once. Raises SourceNotReady and InUse, with nothing written."""
    for each in sorted(exclusives, key=lambda each: each.key):
        if not item.on_demand:
            raise SourceNotReady(f"a pool makes no VM of this template: {each.message}")
        if (holder := await work.take_exclusive(tx, item.id, each.key)) is not None:
            raise InUse(f"{each.key} exists once and is in use by VM {holder}")


def _path_of(start: FromSnapshot) -> StartPath:
    return StartPath.MEMORY if start.memory is not None else StartPath.SNAPSHOT


def _is_replaced(each: Exclusive, start: Start) -> bool:
    """Whether the VM has a copy instead, from the snapshot that it starts from."""
    return isinstance(start, FromSnapshot) and any(disk.volume == each.volume for disk in start.disks)
