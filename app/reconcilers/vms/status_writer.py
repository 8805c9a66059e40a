"""Writes what the cluster shows of VMs to their rows: changes, the end of objects, and whole lists, which also show what is
missing and what nobody knows.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from app.compute.gateway import Gateway
from app.compute.vms import Gone, Listed
from app.config import Settings
from app.domain.health import NO_HELLO_YET, HealthRules, Judgement, Verdict, health_problem, judge, why_restarted
from app.domain.observation import Observation
from app.domain.ownership import Identity
from app.domain.stages import BootMarks, measure_stages
from app.domain.states import VmState
from app.lifecycle.readiness import follow_ready, make_ready
from app.reconcilers.vm_pools.adoption import find_rows, note_detached
from app.reconcilers.vms.disk_failures import DiskFailures
from app.reconcilers.vms.orphans import VmOrphans, vm_id_of
from app.reconcilers.vms.outcomes import end_removed, give_up
from app.store import installation
from app.store.claims import restarts
from app.store.database import Database, Tx
from app.store.vms import observed
from app.store.vms import rows as vms
from app.store.vms.observed import ObservedVm, VmStatus
from app.telemetry import BOOT_SECONDS

_CHUNK = 200
_LIST_CHUNK = 500
_CLOCK_ALLOWANCE = timedelta(seconds=30)
"""How far this process's clock may be off the database's. A VM that is newer than that may be missing from a list."""
_SHOWN = frozenset({Verdict.READY, Verdict.NOTED, Verdict.UNREADY})
log = structlog.get_logger(__name__)

Fence = Callable[[Tx], Awaitable[None]]
"""Raises if this process may no longer write what it observes. Otherwise nobody else may until the transaction ends."""

OnBoot = Callable[[Mapping[UUID, BootMarks]], None]
"""Is called with VMs that booted, by id."""


class StatusWriter:
    """`fence` is called first in every transaction. Without it two informers at once could undo each other's writes: the slower
    one writes that a VM has no instance yet, after the other saw it boot and a client claimed it.
    """

    def __init__(
        self,
        db: Database,
        gateway: Gateway,
        settings: Settings,
        *,
        fence: Fence | None = None,
        on_boot: OnBoot | None = None,
        disk_failures: DiskFailures | None = None,
    ) -> None:
        self._db = db
        self._fence = fence
        self._on_boot = on_boot
        self._disk_failures = disk_failures
        self._gateway = gateway
        self._settings = settings
        self._rules = HealthRules(
            unready_grace=timedelta(seconds=settings.unready_grace_seconds),
            replace_window=timedelta(seconds=settings.replace_window_seconds),
        )
        self._orphans = VmOrphans(gateway, settings, self._begin)
        self._identity: Identity | None = None

    async def apply_changes(self, observations: Sequence[Observation]) -> None:
        """Writes a batch of VMs in one transaction. Of several observations of a VM the last one counts."""
        if not observations:
            return
        identity = await self._own_identity()
        latest = {obs.uid: obs for obs in observations if not identity.is_foreign(obs.installation)}.values()
        by_id = {vm_id: obs for obs in latest if (vm_id := vm_id_of(obs)) is not None}
        made = [obs for obs in latest if vm_id_of(obs) is None]
        if not by_id and not made:
            return
        async with self._begin() as tx:
            if made:
                by_id |= await find_rows(tx, made)
            by_id = self._explain(by_id)
            if await self._doubts(tx, by_id):
                return
            now = await observed.database_now(tx)
            booted, pools, unheard = await self._apply(tx, by_id, now)
        if unheard:  # a guest that said hello meanwhile looked before this was written: see `GuestService`
            async with self._begin() as tx:
                more, of_them, _ = await self._apply(tx, {vm_id: by_id[vm_id] for vm_id in unheard}, now)
            booted, pools = [*booted, *more], [*pools, *of_them]
        if detached := [obs for obs in made if obs.owner is None]:
            async with self._begin() as tx:
                await note_detached(tx, detached)
        if booted:
            async with self._begin() as tx:
                await follow_ready(tx, pools, booted)
                await self._write_boots(tx, [vm for vm in booted if vm.ready_at is None], by_id, now)

    async def apply_gone(self, *gone: Gone) -> None:
        """Objects have left the cluster. Those that we removed are written in one transaction, each other one in its own."""
        if not gone:
            return
        async with self._begin() as tx:
            ended = await observed.of_objects(tx, {each.uid: each.name for each in gone})
            expected = [vm for vm in ended if vm.state in {VmState.RELEASING, VmState.FAILED}]
            # Pools in one order, so that nobody deadlocks.
            for vm in sorted(expected, key=lambda vm: (vm.pool_id, vm.id)):
                await end_removed(tx, vm)
        for vm in [vm for vm in ended if vm not in expected]:
            async with self._begin() as tx:
                for current in (await observed.by_ids(tx, [vm.id])).values():
                    await self._end(tx, current, reason="its object was removed from the cluster by somebody else")

    async def write_list(self, listed: Listed, newer: Container[str] = frozenset()) -> AsyncGenerator[None, None]:
        """Everything that was in the cluster at `began_at`: VMs in the list, VMs missing from it, and objects that no row knows.

        Yields after each step. VMs whose names are in `newer` when their turn comes are left out: something newer was written of
        them. Of most VMs nothing is to be written, and one statement finds those of which there is.
        """
        self._identity = None
        identity = await self._own_identity()
        objects: dict[str, str] = {}
        strange, unsigned = [], []
        for start in range(0, len(listed.observations), _LIST_CHUNK):
            everybodys = tuple(listed.observations[start : start + _LIST_CHUNK])
            chunk = [obs for obs in everybodys if not identity.is_foreign(obs.installation)]
            strange += [obs for obs in everybodys if identity.is_foreign(obs.installation)]
            unsigned += [obs for obs in chunk if identity.is_unsigned(obs.installation)]
            objects |= {obs.uid: obs.name for obs in chunk}
            news = await self._unsettled([obs for obs in chunk if obs.name not in newer])
            strange += news
            yield
            for part in range(0, len(news), _CHUNK):
                await self.apply_changes([obs for obs in news[part : part + _CHUNK] if obs.name not in newer])
                yield
        await self._end_missing(objects, listed.began_at)
        yield
        await self._orphans.remove(identity, strange, began_at=listed.began_at, listed=len(listed.observations))
        await self._orphans.sign(unsigned)

    async def _own_identity(self) -> Identity:
        """As of the last list."""
        if self._identity is None:
            async with self._db.begin() as tx:
                self._identity = await installation.read_identity(tx)
        return self._identity

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[Tx]:
        async with self._db.begin() as tx:
            if self._fence is not None:
                await self._fence(tx)
            yield tx

    async def _apply(
        self, tx: Tx, by_id: dict[UUID, Observation], now: datetime
    ) -> tuple[list[ObservedVm], list[UUID], list[UUID]]:
        """The VMs that became ready, their pools, and those that run and only lack a hello.

        The number of statements does not grow with the number of VMs, except for VMs that fail: others wait for these rows.
        """
        found = [vm for vm in (await observed.by_ids(tx, by_id)).values() if vm.name == by_id[vm.id].name]
        judged = [(vm, self._judge(vm, by_id[vm.id], now)) for vm in found]
        created = [vm for vm, judgement in judged if judgement.verdict is Verdict.CREATED]
        if created:
            booting = await self._begin_boots(tx, created, by_id)
            judged = [each for each in judged if each[1].verdict is not Verdict.CREATED]
            judged += [(vm, self._judge(vm, by_id[vm.id], now)) for vm in booting]
        # Claims before VMs, in the order of their ids: whoever ends claims locks them in the same order, so nobody deadlocks.
        for vm, judgement in sorted(
            judged, key=lambda one: (one[0].claim_id is not None, one[0].claim_id or one[0].id)
        ):
            await self._act(tx, vm, by_id[vm.id], judgement, now)
            if judgement.verdict is Verdict.NOTED and vm.state is VmState.CLAIMED:
                await _note_restart(tx, vm, by_id[vm.id])
        await observed.write(
            tx, [_status(vm.id, by_id[vm.id], verdict) for vm, verdict in judged if verdict.verdict in _SHOWN]
        )
        booted = [vm for vm, judgement in judged if judgement.verdict is Verdict.READY]
        unheard = [vm.id for vm, judgement in judged if judgement.reason == NO_HELLO_YET]
        return booted, await make_ready(tx, booted), unheard

    async def _doubts(self, tx: Tx, by_id: dict[UUID, Observation]) -> bool:
        """Whether VMs that nobody has claimed, as far as the rows know, carry claims that the database has lost. Then nothing more is
        done until an operator has decided: the database may have lost others with them.
        """
        carried = {vm_id: UUID(obs.claim_id) for vm_id, obs in by_id.items() if obs.claim_id is not None}
        lost = await observed.lost_claims(tx, carried)
        if not lost:
            return False
        reason = f"VMs carry claims that the database has lost: {', '.join(sorted(lost))}. It lost transactions, or was restored from a backup"
        await installation.wait(tx, reason, {})
        log.error("installation.waits", reason=reason)
        return True

    def _explain(self, by_id: dict[UUID, Observation]) -> dict[UUID, Observation]:
        """The observations with what is known of the VMs' disks."""
        if self._disk_failures is None:
            return by_id
        self._disk_failures.note(by_id)
        return {vm_id: self._disk_failures.explain(obs) for vm_id, obs in by_id.items()}

    def _judge(self, vm: ObservedVm, obs: Observation, now: datetime) -> Judgement:
        return judge(vm.facts, obs, vm.warm_when, self._rules, now)

    async def _begin_boots(
        self, tx: Tx, created: Sequence[ObservedVm], by_id: dict[UUID, Observation]
    ) -> list[ObservedVm]:
        """VMs that the watch shows before our create was answered are booting from here on. Returns them as they are then.

        Also VMs whose create is retried because its answer was lost: there may be no later event to say that such a VM is ready.
        """
        planned = [vm.id for vm in created if vm.state is VmState.PLANNED]
        await vms.move(tx, planned, VmState.CREATING, sources=[VmState.PLANNED])
        moved: list[UUID] = []
        for seconds in sorted({vm.boot_timeout_seconds for vm in created}):
            ids = [vm.id for vm in created if vm.boot_timeout_seconds == seconds]
            moved += await vms.move(tx, ids, VmState.BOOTING, sources=[VmState.CREATING], deadline_seconds=seconds)
        verdict = Judgement(Verdict.CREATED)
        await observed.write(tx, [_status(vm_id, by_id[vm_id], verdict) for vm_id in moved])
        # If a VM was not moved, our create was answered after its row was read: it boots, and this may be the last event that
        # shows it warm.
        return list((await observed.by_ids(tx, [vm.id for vm in created])).values())

    async def _write_boots(
        self, tx: Tx, booted: Sequence[ObservedVm], by_id: dict[UUID, Observation], now: datetime
    ) -> None:
        """Writes how long each stage of a first boot took, as far as VM and instance show it."""
        marks = {
            vm.id: BootMarks.of(by_id[vm.id], planned_at=vm.created_at, asked_at=vm.asked_at, ready_at=now)
            for vm in booted
        }
        await observed.write_stages(tx, {vm_id: measure_stages(of_vm) for vm_id, of_vm in marks.items()})
        if self._on_boot is not None:
            self._on_boot(marks)
        for vm in booted:
            if vm.asked_at is not None:
                BOOT_SECONDS.observe((now - vm.asked_at).total_seconds())

    async def _act(self, tx: Tx, vm: ObservedVm, obs: Observation, judgement: Judgement, now: datetime) -> None:
        if await self._carry_out(tx, vm, judgement):
            return
        # Its state changed since its row was read, for example by a claim: the same observation means something else now.
        current = (await observed.by_ids(tx, [vm.id])).get(vm.id)
        if current is not None and current.state is not vm.state:
            await self._carry_out(tx, current, self._judge(current, obs, now))

    async def _carry_out(self, tx: Tx, vm: ObservedVm, judgement: Judgement) -> bool:
        """False if the VM is in another state by now: then nothing was changed."""
        reason = judgement.reason or "the cluster gave no reason"
        if judgement.verdict in {Verdict.FAILED, Verdict.DEAD}:
            return await give_up(tx, vm, VmState.FAILED, reason=reason, settings=self._settings)
        if judgement.verdict is not Verdict.UNREADY:
            return True
        grace, ready = self._settings.unready_grace_seconds, [VmState.READY]
        if not await vms.move(tx, [vm.id], VmState.BOOTING, sources=ready, reason=reason, deadline_seconds=grace):
            return False
        log.info("vm.unready", vm=vm.name, reason=reason)
        return True

    async def _end(self, tx: Tx, vm: ObservedVm, *, reason: str) -> None:
        """The VM's object is gone. If the row changed since it was read, its new state counts."""
        if not await self._end_as_read(tx, vm, reason=reason):
            current = (await observed.by_ids(tx, [vm.id])).get(vm.id)
            if current is not None and current.state is not vm.state:
                await self._end_as_read(tx, current, reason=reason)

    async def _end_as_read(self, tx: Tx, vm: ObservedVm, *, reason: str) -> bool:
        if vm.state in {VmState.RELEASING, VmState.FAILED}:
            await end_removed(tx, vm)
        elif vm.state in {VmState.BOOTING, VmState.READY, VmState.CLAIMED}:
            return await give_up(tx, vm, VmState.LOST, reason=reason, settings=self._settings)
        return True

    async def _unsettled(self, observations: Sequence[Observation]) -> list[Observation]:
        """Without those that are well and of which the rows say so."""
        well = {
            vm_id: obs for obs in observations if health_problem(obs) is None and (vm_id := vm_id_of(obs)) is not None
        }
        async with self._begin() as tx:
            unsettled = await observed.unsettled(tx, well)
        settled = {obs.uid for vm_id, obs in well.items() if vm_id not in unsettled}
        return [obs for obs in observations if obs.uid not in settled]

    async def _end_missing(self, objects: Mapping[str, str], began_at: datetime) -> None:
        """`objects`: UID and name of all that are in the list."""
        before = began_at - _CLOCK_ALLOWANCE
        async with self._begin() as tx:
            gone = await observed.missing(tx, objects=objects, before=before, limit=_CHUNK * 10)
        for vm in gone:
            async with self._begin() as tx:
                await self._end(tx, vm, reason="its object is not in the cluster")


async def _note_restart(tx: Tx, vm: ObservedVm, obs: Observation) -> None:
    """Of a claimed VM, before its row is written."""
    reason = why_restarted(vm.facts, obs)
    if reason is not None:
        await restarts.note_lost(tx, vm, reason=reason)
    if health_problem(obs) is None and (reason is not None or vm.facts.health is not None):
        await restarts.note_back(tx, vm, node=obs.node, addresses=obs.addresses)


def _status(vm_id: UUID, obs: Observation, judgement: Judgement) -> VmStatus:
    health = judgement.reason
    if judgement.verdict is Verdict.CREATED:
        health = health_problem(obs) if obs.failure is not None else None
    return VmStatus(vm_id, obs.uid, obs.vmi_uid, obs.node, obs.addresses, health)
