"""A pool's phase, and how long a claim would wait in its queue, from measured times."""

from dataclasses import dataclass
from datetime import datetime

from app.domain.states import PoolPhase

_GUESS_SECONDS = 60.0
"""Assumed for a cold boot while none was measured on this cluster: the upper end of the usual 30 to 60 s."""


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
class PoolFlags:
    """`capacity_problem`: why the nodes of the cluster could never take as many VMs of it as its size, in words."""

    deleting: bool = False
    paused: bool = False
    stalled_because: str | None = None
    auto_replenish: bool = True
    last_failure: str | None = None
    capacity_problem: str | None = None


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
    waits_for = "; ".join((*notes, *([f"last failure: {flags.last_failure}"] if flags.last_failure else ())))
    if counts.ready < min_available:
        reason = f"{counts.ready} ready, below min_available {min_available}"
        return PoolHealth(PoolPhase.DEGRADED, f"{reason}; {waits_for}" if waits_for else reason)
    if counts.ready >= size:
        return PoolHealth(PoolPhase.READY, None)
    if not flags.auto_replenish and counts.in_flight == 0:
        return PoolHealth(PoolPhase.DRAINED, "auto_replenish is off: call replenish to refill it")
    return PoolHealth(PoolPhase.FILLING, waits_for or None)


def estimate_wait(
    *,
    place: int,
    boots: BootTimes,
    in_flight_since: tuple[datetime, ...],
    now: datetime,
    can_grow: bool,
    batch: int,
    of: str = "the pool's",
) -> WaitEstimate:
    """How long the claim at `place` in a pool's queue waits; 1 is the next to be served.

    `in_flight_since` says when each VM on its way was requested, oldest first. A claim behind those waits for further boots,
    `batch` at a time, if the pool `can_grow`. `of` says in words whose boots were measured.
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
        age = (now - in_flight_since[place - 1]).total_seconds()
        return WaitEstimate(max(typical - age, 0.05 * typical), f"{basis}; {on_their_way}")
    if not can_grow:
        return WaitEstimate(None, f"{on_their_way}, and {before}")
    rounds = 1 + (place - len(in_flight_since) - 1) // max(1, batch)
    return WaitEstimate(typical * (rounds + (1 if in_flight_since else 0)), f"{basis}; {before}")


def count_of(number: int, thing: str) -> str:
    """`1 VM`, `2 VMs`, `no VM`."""
    return f"no {thing}" if number == 0 else f"{number} {thing}" if number == 1 else f"{number} {thing}s"
