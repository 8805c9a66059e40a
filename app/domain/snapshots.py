"""Snapshots of VMs: the states of their takes, and what to do next. Pure.

A take is one attempt at a snapshot: `planned -> booting -> stopping -> taking -> ready -> retiring -> retired`. `booting`: it
waits for a VM of the pool's template; `stopping`: that VM is being stopped; `taking`: the cluster takes the snapshot. A take of
an existing VM goes from `planned` to `taking`, and one whose VM is not stopped from `booting` to `taking`. A take that goes
wrong is `failing` until the cluster has nothing of it any more, then `failed`. A ready take is `failing` too if somebody
deleted its object.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from app.domain.snapshot_specs import SnapshotSpec
from app.domain.states import ClaimState
from app.domain.templates import VmSpec
from app.errors import IllegalTransition

SHUTDOWN_SECONDS = 180
"""How long a guest may take to shut down before its disks are taken; then KubeVirt ends it by force."""
STOP_SECONDS = 300
"""How long a stop may take in all: the guest's shutdown, and what the cluster does before and after it."""
_SPARE_SECONDS = 60
"""How long after the deadline that the cluster was given a take still waits for it."""
_RETRY_BASE_SECONDS = 30.0
_RETRY_CAP_SECONDS = 3600.0


class TakeState(StrEnum):
    PLANNED = "planned"
    BOOTING = "booting"
    STOPPING = "stopping"
    TAKING = "taking"
    READY = "ready"
    RETIRING = "retiring"
    RETIRED = "retired"
    FAILING = "failing"
    FAILED = "failed"


class SnapshotState(StrEnum):
    """`ready`: VMs can start from the snapshot, even if a newer take fails. `taking`: the first take is in progress. `stale`: the
    memory that it keeps cannot be restored any more.
    """

    TAKING = "taking"
    READY = "ready"
    STALE = "stale"
    FAILED = "failed"
    DELETING = "deleting"


_T = TakeState
TAKE_TRANSITIONS: dict[TakeState, frozenset[TakeState]] = {
    _T.PLANNED: frozenset({_T.BOOTING, _T.TAKING, _T.FAILING}),
    _T.BOOTING: frozenset({_T.STOPPING, _T.TAKING, _T.FAILING}),
    _T.STOPPING: frozenset({_T.TAKING, _T.FAILING}),
    _T.TAKING: frozenset({_T.READY, _T.FAILING}),
    _T.READY: frozenset({_T.RETIRING, _T.FAILING}),
    _T.RETIRING: frozenset({_T.RETIRED}),
    _T.RETIRED: frozenset(),
    _T.FAILING: frozenset({_T.FAILED}),
    _T.FAILED: frozenset(),
}
UNDER_WAY = frozenset({_T.PLANNED, _T.BOOTING, _T.STOPPING, _T.TAKING})
TAKE_ENDED = frozenset({_T.RETIRED, _T.FAILED})


def check_take_transition(old: TakeState, new: TakeState) -> None:
    """Raises IllegalTransition where the table does not allow it."""
    if new not in TAKE_TRANSITIONS[old]:
        raise IllegalTransition(f"a take of a snapshot cannot go from {old} to {new}")


@dataclass(frozen=True, slots=True)
class VolumeVerdict:
    """Whether a volume of a VM can be in a snapshot, and why not. The reason is KubeVirt's if it gave one.

    `written`: the guest may write to it, so that memory without it is worth nothing.
    """

    name: str
    enabled: bool
    reason: str | None = None
    written: bool = True


@dataclass(frozen=True, slots=True)
class SourceVm:
    """What a snapshot needs of a VM. `running`: it has an instance or may get one in a moment; `halted`: it is to have none.

    `shape` and `spec`: of the VMs that can start from its disks; None if we could not create such a VM. `volumes` is also empty while
    KubeVirt has not judged them.
    """

    name: str
    uid: str
    running: bool
    halted: bool
    deleting: bool
    volumes: tuple[VolumeVerdict, ...]
    shape: str | None
    spec: VmSpec | None = None


@dataclass(frozen=True, slots=True)
class KeptMemory:
    """The memory in a snapshot. `fingerprint`: what it can be restored with. `stale_reason`: why it cannot be any more."""

    bytes: int
    fingerprint: str
    stale_reason: str | None = None


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    """A VirtualMachineSnapshot as the cluster shows it. `take_id` is our label. `progress`: what it does or waits for."""

    name: str
    uid: str
    take_id: str | None
    ready: bool
    failed: bool
    deleting: bool
    error: str | None = None
    progress: str | None = None
    content: str | None = None
    included: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    hint: str | None = None
    """What KubeVirt says about volumes that it left out though they could be in it."""
    installation: str | None = None
    memory: KeptMemory | None = None


@dataclass(frozen=True, slots=True)
class TakeFacts:
    """What a decision needs of a take's row. `based_at`: what became ready later is not in it. `revision`: of its template.
    `stale_reason`: why its memory cannot be restored any more.
    """

    id: UUID
    number: int
    state: TakeState
    state_since: datetime
    revision: str | None = None
    based_at: datetime | None = None
    ended_at: datetime | None = None
    reason: str | None = None
    stale_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """What a VM of the pool would be made from now: the revision of its template, and when its preload became ready."""

    revision: str
    image_ready_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ClaimFacts:
    """Our claim on the VM that is booted for a take.

    `stalled`: why its pool creates no VM any more. `trouble`: what has kept its pool from creating one until now.
    """

    state: ClaimState
    reason: str | None
    vm_name: str | None
    stalled: str | None = None
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """`to` None: the take stays in its state and waits for what `reason` says."""

    to: TakeState | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class TakePlan:
    """`begin` a new take, `retire` ready ones, `cancel` those under way. `look_again_at`: the plan changes then by time alone."""

    begin: bool = False
    retire: tuple[UUID, ...] = ()
    cancel: tuple[UUID, ...] = ()
    look_again_at: datetime | None = None


def plan_takes(
    spec: SnapshotSpec, takes: Sequence[TakeFacts], origin: Origin | None, now: datetime, *, deleting: bool
) -> TakePlan:
    """Which takes begin and end. `origin` None: the snapshot is of a VM, or its pool is gone; then nothing refreshes it."""
    ready = sorted((take for take in takes if take.state is _T.READY), key=lambda take: -take.number)
    under_way = [take for take in takes if take.state in UNDER_WAY]
    failing = any(take.state is _T.FAILING for take in takes)
    if deleting:
        return TakePlan(retire=_ids(ready), cancel=_ids(under_way))
    retire = _ids(ready[spec.keep :])
    if under_way or failing or not spec.refresh or origin is None:
        return TakePlan(retire=retire)
    if ready and not _is_stale(ready[0], origin):
        return TakePlan(retire=retire)
    failed = _failed_since(takes, ready[0].number if ready else 0)
    if failed and failed[-1].revision == origin.revision and failed[-1].ended_at is not None:
        again_at = failed[-1].ended_at + timedelta(seconds=_retry_seconds(len(failed)))
        if again_at > now:
            return TakePlan(retire=retire, look_again_at=again_at)
    return TakePlan(begin=True, retire=retire)


def assess(takes: Sequence[TakeFacts], *, deleting: bool) -> tuple[SnapshotState, str | None]:
    """The state of the snapshot, and why it is not better."""
    latest = max(takes, key=lambda take: take.number, default=None)
    if deleting:
        return SnapshotState.DELETING, "its objects are being removed from the cluster"
    if latest is None:
        return SnapshotState.FAILED, "there is no take"
    serving = max((take for take in takes if take.state is _T.READY), key=lambda take: take.number, default=None)
    if serving is not None:
        if serving.stale_reason is not None:
            return SnapshotState.STALE, _in_stale_words(serving.stale_reason, latest)
        if latest.state in {_T.FAILING, _T.FAILED}:
            return SnapshotState.READY, f"the last refresh failed; VMs start from the one before: {latest.reason}"
        return SnapshotState.READY, None
    if latest.state in UNDER_WAY:
        return SnapshotState.TAKING, latest.reason
    return SnapshotState.FAILED, latest.reason


def after_claim(claim: ClaimFacts | None, *, stops: bool) -> Step:
    """What follows from the claim on the take's VM."""
    if claim is None:
        return Step(_T.FAILING, "the VM that was booted for it is not known any more")
    if claim.state is ClaimState.BOUND:
        return Step(_T.STOPPING if stops else _T.TAKING)
    if claim.state is not ClaimState.PENDING:
        return Step(_T.FAILING, f"no VM could be booted for it: {claim.reason}")
    if claim.stalled is not None:
        return Step(_T.FAILING, f"no VM could be booted for it: {claim.stalled}")
    return Step(
        None, f"a VM is being booted for it; {claim.trouble}" if claim.trouble else "a VM is being booted for it"
    )


def after_loss(claim: ClaimFacts | None, vm_name: str | None) -> Step | None:
    """What follows if the take no longer has its VM. None: it still has it."""
    if claim is not None and claim.state is ClaimState.BOUND and claim.vm_name == vm_name:
        return None
    why = claim.reason if claim is not None and claim.reason else "it is gone"
    return Step(_T.FAILING, f"the VM {vm_name} was lost before its disks were taken: {why}")


def after_stop(vm: SourceVm | None, uid: str | None, age: timedelta) -> Step:
    """What follows from the VM that is being stopped. `age`: since the stop began."""
    if vm is None or vm.uid != uid or vm.deleting:
        return Step(_T.FAILING, "the VM that was booted for it was removed while it was being stopped")
    if not vm.running:
        return Step(_T.TAKING)
    if age > timedelta(seconds=STOP_SECONDS):
        return Step(_T.FAILING, f"its VM did not stop within {STOP_SECONDS} s")
    return Step(None, "its VM is being stopped")


def after_status(
    status: SnapshotStatus | None, age: timedelta, *, timeout_seconds: float, memory: bool = False
) -> Step:
    """What follows from the VirtualMachineSnapshot. `age`: since it was asked for. `status` None: it is gone. `memory`: it was to keep
    the VM's memory.
    """
    if status is None or status.deleting:
        return Step(_T.FAILING, "its VirtualMachineSnapshot was deleted in the cluster")
    if status.failed:
        return Step(_T.FAILING, f"KubeVirt could not take it: {status.error or 'it did not say why'}")
    if status.ready and not status.included:
        return Step(_T.FAILING, "KubeVirt took it without a single volume")
    if status.ready and memory and status.memory is None:
        return Step(_T.FAILING, "the cluster took its disks and kept no memory, as KubeVirt does")
    if status.ready:
        return Step(_T.READY)
    if age > timedelta(seconds=timeout_seconds + _SPARE_SECONDS):
        waits = status.error or status.progress or "no reason was given"
        return Step(_T.FAILING, f"it was not ready {timeout_seconds:g} s after it was asked for: {waits}")
    return Step(None, status.error or status.progress or "its disks are being taken")


def not_disks(status: SnapshotStatus, disks: Collection[str]) -> tuple[VolumeVerdict, ...]:
    """What a finished snapshot contains beside its disks, by the names of these: no VM gets it."""
    why = "it is no disk of the VM but its state, such as that of a persistent TPM or EFI, which no VM starts with"
    return tuple(VolumeVerdict(name, enabled=False, reason=why) for name in status.included if name not in disks)


def left_out(status: SnapshotStatus, verdicts: Sequence[VolumeVerdict]) -> tuple[VolumeVerdict, ...]:
    """The volumes that a finished snapshot does not contain, each with the best reason that is known."""
    reasons = {verdict.name: verdict.reason for verdict in verdicts if not verdict.enabled}
    written = {verdict.name: verdict.written for verdict in verdicts}
    return tuple(
        VolumeVerdict(
            name,
            enabled=False,
            reason=reasons.get(name) or status.hint or "KubeVirt left it out",
            written=written.get(name, True),
        )
        for name in status.excluded
    )


def why_memory_is_lost(status: SnapshotStatus | None) -> str | None:
    """Why the memory of a snapshot that was ready cannot be restored any more; None: it can, or its whole object is gone."""
    if status is None or status.deleting or status.failed:
        return None
    return status.memory.stale_reason if status.memory is not None else "the cluster no longer keeps its memory"


def unkept_disks(volumes: Sequence[VolumeVerdict]) -> tuple[str, ...]:
    """Why the memory of a VM is worth nothing: the volumes that its guest writes to and that are not in the snapshot."""
    return tuple(f"{each.name}: {each.reason}" for each in volumes if not each.enabled and each.written)


def _in_stale_words(reason: str, latest: TakeFacts) -> str:
    told = f"its memory cannot be restored any more: {reason}"
    if latest.state in UNDER_WAY:
        return f"{told}; it is being taken again"
    if latest.state in {_T.FAILING, _T.FAILED}:
        return f"{told}; the last refresh failed: {latest.reason}"
    return f"{told}; POST .../refresh takes it again"


def _is_stale(take: TakeFacts, origin: Origin) -> bool:
    if take.stale_reason is not None or take.revision != origin.revision:
        return True
    return origin.image_ready_at is not None and take.based_at is not None and origin.image_ready_at > take.based_at


def _failed_since(takes: Sequence[TakeFacts], number: int) -> list[TakeFacts]:
    """Takes that failed after take `number`, the oldest first."""
    failed = [take for take in takes if take.number > number and take.state is _T.FAILED]
    return sorted(failed, key=lambda take: take.number)


def _retry_seconds(failures: int) -> float:
    return float(min(_RETRY_CAP_SECONDS, _RETRY_BASE_SECONDS * 2 ** min(failures - 1, 20)))


def _ids(takes: Sequence[TakeFacts]) -> tuple[UUID, ...]:
    return tuple(take.id for take in takes)
