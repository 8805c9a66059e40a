"""Selects the path of a claim that describes its VM, and says why, from what there is and what was measured.

Paths are preferred in the order of `StartPath`: a pool's next VM, kept memory, a snapshot's disks, a preload, cold. Enough measurements of the same
shape overrule that order. A claim waits for a pool's next VM where that comes sooner than a VM on the best other path.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import PlainSerializer, TypeAdapter

from app.domain.paths import StartPath
from app.domain.pools import StartFrom
from app.domain.statistics import BootTimes

ENOUGH = 5
"""How often each of two paths must have been measured for a shape before their medians overrule the order."""

NO_DATA = BootTimes()
_Rounded = Annotated[float, PlainSerializer(lambda seconds: round(seconds, 3))]
"""Seconds, which are stored in milliseconds."""


@dataclass(frozen=True, slots=True)
class PathOption:
    """One path for one shape. `source` names the pool, snapshot or preload; `why` says in words why it is not available.

    `own` was measured for this shape, `overall` for this path over all shapes; for a pool both are the time until its next
    VM, and `basis` says what that is based on. `on_its_way`: that VM is being made already. `waits_for_source`: the source
    is not ready, and the claim wants nothing else. `note` is added to the reason where the path is chosen. `generation` is
    that of the user's pool, which changes with each of its edits.
    """

    path: StartPath
    source: str | None = None
    available: bool = True
    why: str | None = None
    own: BootTimes = NO_DATA
    overall: BootTimes = NO_DATA
    basis: str | None = None
    on_its_way: bool = False
    waits_for_source: bool = False
    note: str | None = None
    generation: int | None = None


@dataclass(frozen=True, slots=True)
class PathEstimate:
    """Seconds until the VM is ready, and what that is based on, in words. None: nothing was measured."""

    p50: _Rounded | None
    p95: _Rounded | None
    count: int
    basis: str


@dataclass(frozen=True, slots=True)
class Considered:
    """`why`: why the path is not available or was not chosen; None: it was chosen."""

    path: StartPath
    source: str | None
    available: bool
    why: str | None
    estimate: PathEstimate


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen path, its source and the reason, and what was considered of each path, in the order of `StartPath`."""

    path: StartPath
    source: str | None
    reason: str
    considered: tuple[Considered, ...]
    waits_for_source: bool = False
    generation: int | None = None


@dataclass(frozen=True, slots=True)
class NoChoice:
    """No path can be chosen. `too_slow`: some are available, and each was measured to take longer than the deadline."""

    considered: tuple[Considered, ...]
    too_slow: bool = False

    @property
    def reason(self) -> str:
        """Why no path was chosen, path by path."""
        return "; ".join(f"{each.path}: {each.why}" for each in self.considered if each.why)


def choose(
    options: Sequence[PathOption], allowed: Collection[StartPath], deadline_seconds: float | None = None
) -> Choice | NoChoice:
    """Chooses one of the `options`, which hold at most one for each path, in the order of `StartPath`."""
    allowed_ones = [option for option in options if option.path in allowed]
    usable = [option for option in allowed_ones if option.available]
    fitting = [option for option in usable if not _is_too_slow(option, deadline_seconds)]
    chosen = _fastest(fitting)
    considered = tuple(
        Considered(
            path=option.path,
            source=option.source,
            available=option.available and option.path in allowed,
            why=_why_not(option, chosen, allowed, deadline_seconds),
            estimate=estimate(option),
        )
        for option in options
    )
    if chosen is None:
        return NoChoice(considered, too_slow=bool(usable))
    return Choice(
        chosen.path,
        chosen.source,
        _why(chosen, fitting),
        considered,
        chosen.waits_for_source,
        chosen.generation,
    )


def estimate(option: PathOption) -> PathEstimate:
    own, overall = option.own, option.overall
    if option.basis is not None:
        told = own if own.count else overall
        return PathEstimate(told.p50, told.p95, told.count, option.basis)
    if own.count:
        return PathEstimate(own.p50, own.p95, own.count, f"measured for this shape {_times(own.count)}")
    if overall.count:
        basis = f"measured for this path {_times(overall.count)}, over all shapes"
        return PathEstimate(overall.p50, overall.p95, overall.count, basis)
    return PathEstimate(None, None, 0, "no data")


@dataclass(frozen=True, slots=True)
class Tried:
    """A path that failed and that the claim was moved away from, and why."""

    path: StartPath
    source: str | None
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Record:
    """A choice as a claim keeps it. `tried` lists the paths that failed before, oldest first.

    `start_from`: what the client wants the VM to start from, and from nothing else.
    """

    path: StartPath
    source: str | None
    reason: str
    at: datetime
    considered: tuple[Considered, ...] = ()
    deadline_at: datetime | None = None
    tried: tuple[Tried, ...] = ()
    start_from: StartFrom | None = None

    @classmethod
    def of(
        cls, choice: Choice, *, now: datetime, deadline_seconds: float | None, start_from: StartFrom | None
    ) -> "Record":
        deadline_at = now + timedelta(seconds=deadline_seconds) if deadline_seconds is not None else None
        first = cls(choice.path, choice.source, choice.reason, now, deadline_at=deadline_at, start_from=start_from)
        return first.followed_by(choice, now)

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> "Record":
        """From `as_json`, without what was considered, which is no longer true."""
        return _JSON.validate_python({**stored, "considered": ()})

    def gave_up(self, reason: str, now: datetime) -> "Record":
        """The path that was chosen has failed."""
        return replace(self, tried=(*self.tried, Tried(self.path, self.source, reason, now)))

    def followed_by(self, choice: Choice, now: datetime) -> "Record":
        return replace(
            self, path=choice.path, source=choice.source, reason=choice.reason, at=now, considered=choice.considered
        )

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = _JSON.dump_python(self, mode="json")
        return found


_JSON = TypeAdapter(Record)


def _is_too_slow(option: PathOption, deadline_seconds: float | None) -> bool:
    """Only measurements of this shape can say so."""
    p95 = option.own.p95 if option.own.count else None
    return deadline_seconds is not None and p95 is not None and p95 > deadline_seconds


def _fastest(fitting: Sequence[PathOption]) -> PathOption | None:
    others = [option for option in fitting if option.path is not StartPath.POOL]
    best = others[0] if others else None
    for other in others[1:]:
        if best is not None and _is_measured_faster(other, best):
            best = other
    pool = next((option for option in fitting if option.path is StartPath.POOL), None)
    return pool if pool is not None and (best is None or _comes_sooner(pool, best)) else best


def _is_measured_faster(one: PathOption, other: PathOption) -> bool:
    if min(one.own.count, other.own.count) < ENOUGH or one.own.p50 is None or other.own.p50 is None:
        return False
    return one.own.p50 < other.own.p50


def _comes_sooner(pool: PathOption, other: PathOption) -> bool:
    """Where one of the two was never measured, a VM that is being made already counts as sooner than one that is not."""
    mine, its = estimate(pool).p50, estimate(other).p50
    if mine is not None and its is not None:
        return mine <= its
    return pool.on_its_way and (mine is not None or other.path is StartPath.COLD)


def _why(chosen: PathOption, fitting: Sequence[PathOption]) -> str:
    told = estimate(chosen)
    about = (
        f" (about {_say(told.p50)}, {told.basis})" if told.p50 is not None else " (no data yet on how long that takes)"
    )
    if chosen.path is StartPath.POOL:
        return f"pool {chosen.source!r} has this shape and its next VM comes soonest{about}"
    what = {
        StartPath.MEMORY: f"from the memory of snapshot {chosen.source!r}",
        StartPath.SNAPSHOT: f"from the disks of snapshot {chosen.source!r}",
        StartPath.PRELOAD: f"from preload {chosen.source!r}",
        StartPath.COLD: "cold, from its template alone",
    }[chosen.path]
    ahead = [
        other for other in fitting if other.path is not StartPath.POOL and _place(other.path) < _place(chosen.path)
    ]
    why = "measured to be the fastest" if ahead else "the first path available"
    noted = f" ({chosen.note})" if chosen.note else ""
    return f"{what}{noted}: {why}{about}"


def _why_not(
    option: PathOption, chosen: PathOption | None, allowed: Collection[StartPath], deadline_seconds: float | None
) -> str | None:
    if option is chosen:
        return None
    if option.path not in allowed:
        return "not among the paths that the claim allows"
    if not option.available:
        return option.why or "not available"
    if _is_too_slow(option, deadline_seconds):
        return f"its measured p95 of {_say(option.own.p95)} is beyond the deadline of {_say(deadline_seconds)}"
    if chosen is None or _place(option.path) > _place(chosen.path):
        return f"not needed: {chosen.path} comes before it" if chosen is not None else "not available"
    mine, its = estimate(option), estimate(chosen)
    if mine.p50 is not None and its.p50 is not None:
        return f"slower: {_say(mine.p50)} ({mine.basis}) against {_say(its.p50)} ({its.basis})"
    return f"no VM of it is being made yet, and {chosen.path} starts at once"


def _place(path: StartPath) -> int:
    return list(StartPath).index(path)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _say(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else f"{seconds:.1f} s"
