"""A pool's phase, and how long a claim would wait in its queue, from measured times."""

from dataclasses import dataclass
from datetime import datetime

from typing_extensions import override

from app.domain.states import PoolPhase

_GUESS_SECONDS = 60.0
"""Assumed for a cold boot while none was measured on this cluster: the upper end of the usual 30 to 60 s."""
_OVERDUE = 2
"""A boot that takes this many times as long as 95 of 100 did is overdue."""
_DRAINED = "auto_replenish is off: call replenish to refill it"


@dataclass(frozen=True, slots=True)
class BootTimes:
    """Seconds until a VM is ready, over the last `count` measurements. None: never measured."""

    count: int = 0
    p50: float | None = None
    p95: float | None = None


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """VMs of one pool by state; `waiting` counts the claims in its queue."""

    planned: int = 0
    creating: int = 0
    booting: int = 0
    ready: int = 0
    claimed: int = 0
    releasing: int = 0
    failed: int = 0
    waiting: int = 0

    @property
    def in_flight(self) -> int:
        return self.planned + self.creating + self.booting


@dataclass(frozen=True, slots=True)
class Ailment:
    """What most of a pool's VMs on their way suffer from: `count` of `total`, and one of them tells it in words."""

    count: int
    total: int
    text: str

    @property
    def is_of_all(self) -> bool:
        return self.count == self.total

    @override
    def __str__(self) -> str:
        return f"{self.count} of {count_of(self.total, 'VM')}: {self.text}"


@dataclass(frozen=True, slots=True)
class PoolFlags:
    """What is known of a pool beside its counts, in words.

    `capacity_problem`: why the nodes of the cluster could never take as many VMs of it as its size. `never`: why its settings
    never let it have a VM. `held`: why VMs that are to be replaced are not. `ailing`: what its VMs on their way suffer from.
    `put_off`: why the cluster takes no creates.
    """

    deleting: bool = False
    paused: bool = False
    stalled_because: str | None = None
    auto_replenish: bool = True
    last_failure: str | None = None
    capacity_problem: str | None = None
    never: str | None = None
    held: str | None = None
    ailing: Ailment | None = None
    put_off: str | None = None


@dataclass(frozen=True, slots=True)
class PoolHealth:
    phase: PoolPhase
    reason: str | None


@dataclass(frozen=True, slots=True)
class WaitEstimate:
    """`seconds` until a VM is ready for one more claim, and what that is based on, in words. None: none will come by itself."""

    seconds: float | None
    basis: str


def assess(
    counts: PoolCounts, *, size: int, min_available: int, flags: PoolFlags, notes: tuple[str, ...] = ()
) -> PoolHealth:
    """The pool's phase, the worst that applies, and the reason, in words for an operator."""
    if flags.deleting:
        return PoolHealth(PoolPhase.DELETING, f"{counts.claimed} claimed VMs are kept until they are released")
    if flags.stalled_because is not None:
        return PoolHealth(PoolPhase.STALLED, flags.stalled_because)
    if flags.paused:
        return PoolHealth(PoolPhase.PAUSED, "paused: nothing is created or removed until resume")
    if flags.capacity_problem is not None:
        return PoolHealth(PoolPhase.DEGRADED, flags.capacity_problem)
    reason = why_waiting(flags, notes)
    # A pool is not filling if none of the VMs on their way gets on.
    stuck = (flags.put_off is not None and not counts.booting) or (flags.ailing is not None and flags.ailing.is_of_all)
    if counts.ready < min_available:
        below = f"{counts.ready} ready, below min_available {min_available}"
        drained = None if flags.auto_replenish or counts.in_flight else _DRAINED
        return PoolHealth(PoolPhase.DEGRADED, "; ".join(filter(None, (below, drained, reason))))
    if counts.ready >= size:
        # Neither a note nor a failure of the past is a reason: a full pool waits for nothing, unless VMs are to be replaced.
        waits = flags.held is not None or flags.ailing is not None
        return PoolHealth(PoolPhase.READY, flags.never or (why_waiting(flags) if waits else None))
    if not flags.auto_replenish and counts.in_flight == 0:
        return PoolHealth(PoolPhase.DRAINED, _DRAINED)
    return PoolHealth(PoolPhase.DEGRADED if stuck else PoolPhase.FILLING, reason)


def why_stalled(failures: int | None, last_failure: str | None) -> str | None:
    """`failures` in a row; None: the pool is not stalled."""
    return f"{failures} failures in a row: {last_failure}" if failures is not None else None


def why_waiting(flags: PoolFlags, notes: tuple[str, ...] = ()) -> str | None:
    """What keeps VMs of the pool from being ready, in words; None: nothing that is known. Each cause is told once."""
    parts = [part for part in (flags.stalled_because, flags.put_off, flags.held) if part]
    parts += [note for note in notes if note not in (flags.held or "")]
    if flags.ailing is not None and not any(flags.ailing.text in part for part in parts):
        parts.append(str(flags.ailing))
    if flags.last_failure and flags.stalled_because is None:
        parts.append(f"last failure: {flags.last_failure}")
    return "; ".join(parts) or None


def estimate_wait(
    *,
    place: int,
    boots: BootTimes,
    in_flight_since: tuple[datetime, ...],
    now: datetime,
    can_grow: bool,
    batch: int,
    rests_until: datetime | None = None,
    of: str = "the pool's",
) -> WaitEstimate:
    """How long the claim at `place` in a pool's queue waits; 1 is the next to be served.

    `in_flight_since` says when each VM on its way was requested. One that is overdue may never come: it is expected
    when one after it would be ready. A claim behind those waits for further boots, `batch` at a time, if the pool
    `can_grow`; it begins none before `rests_until`. `of` says in words whose boots were measured.
    """
    typical = boots.p50 if boots.p50 is not None else _GUESS_SECONDS
    basis = (
        f"the median of {of} last {count_of(boots.count, 'boot')}, {typical:.1f} s"
        if boots.p50 is not None
        else f"no boot was measured on this cluster yet: a guess of {_GUESS_SECONDS:.0f} s for one"
    )
    on_their_way = f"{count_of(len(in_flight_since), 'VM')} on {'its' if len(in_flight_since) == 1 else 'their'} way"
    before = f"{count_of(place - 1, 'claim')} before this one"
    if place <= len(in_flight_since):
        expected = sorted(_expect((now - since).total_seconds(), typical, boots.p95) for since in in_flight_since)
        seconds, overdue = expected[place - 1]
        return WaitEstimate(seconds, f"{basis}; {on_their_way}{', overdue' if overdue else ''}")
    if not can_grow:
        return WaitEstimate(None, f"{on_their_way}, and {before}")
    rounds = 1 + (place - len(in_flight_since) - 1) // max(1, batch)
    seconds = typical * (rounds + (1 if in_flight_since else 0))
    if rests_until is not None and rests_until > now:
        seconds += (rests_until - now).total_seconds()
        before = f"{before}; after a failure, none is made before {rests_until.isoformat(timespec='seconds')}"
    return WaitEstimate(seconds, f"{basis}; {before}")


def _expect(age: float, typical: float, longest: float | None) -> tuple[float, bool]:
    """How many seconds a boot of that age still takes, and whether it is overdue."""
    if longest is not None and age > _OVERDUE * max(longest, typical):
        return 2 * typical, True
    return max(typical - age, 0.05 * typical), False


def count_of(number: int, thing: str) -> str:
    """`1 VM`, `2 VMs`, `no VM`."""
    return f"no {thing}" if number == 0 else f"{number} {thing}" if number == 1 else f"{number} {thing}s"
