"""The backoff after failures, and the breaker that stops a pool whose VMs keep failing. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta

_JITTER_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """The failures of a pool: how many in a row, and when the last one was counted."""

    consecutive: int
    counted_at: datetime | None


@dataclass(frozen=True, slots=True)
class FailureVerdict:
    """`counts`: it is one more failure in a row. The pool then creates nothing until `backoff_until`, or at all if `stalled`."""

    counts: bool
    consecutive: int
    backoff_until: datetime | None
    stalled: bool


def judge_failure(
    record: FailureRecord,
    *,
    planned_at: datetime,
    now: datetime,
    base_seconds: float,
    cap_seconds: float,
    breaker: int,
    roll: float,
) -> FailureVerdict:
    """Whether a failed VM counts, and what follows. `roll` in [0, 1) is the jitter.

    A VM counts only if it was planned after the last counted failure: ten VMs that were planned together and fail together
    are one failure, not ten.
    """
    if record.counted_at is not None and planned_at <= record.counted_at:
        return FailureVerdict(counts=False, consecutive=record.consecutive, backoff_until=None, stalled=False)
    consecutive = record.consecutive + 1
    seconds = min(cap_seconds, base_seconds * 2 ** min(consecutive - 1, 30))
    seconds *= 1 - _JITTER_SHARE + 2 * _JITTER_SHARE * roll
    return FailureVerdict(
        counts=True,
        consecutive=consecutive,
        backoff_until=now + timedelta(seconds=min(seconds, cap_seconds)),
        stalled=consecutive >= breaker,
    )


def retry_delay(attempts: int, *, base_seconds: float, cap_seconds: float, roll: float) -> float:
    """Seconds until a failed call is tried again: exponential and capped. `roll` in [0, 1) chooses between half of it and all."""
    return float(min(cap_seconds, base_seconds * 2 ** min(max(attempts - 1, 0), 30)) * (0.5 + 0.5 * roll))
