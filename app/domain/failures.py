"""Backing off after failures, and the breaker that stops a pool which keeps failing."""

from dataclasses import dataclass
from datetime import datetime, timedelta

_JITTER_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """What a pool knows of its failures: how many in a row, and when the last one was counted."""

    consecutive: int
    counted_at: datetime | None


@dataclass(frozen=True, slots=True)
class FailureVerdict:
    """`counts`: it is one more in the row. Then the pool waits until `backoff_until`, and stops where it is `stalled`."""

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
    """Weighs one failed VM that was planned at `planned_at`; `roll` in [0, 1) is the jitter.

    Only a VM that was planned after the last counted failure counts: ten VMs that fail together, all planned before the
    pool could know, are one failure and not ten.
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
    """Seconds until a call that met an absent cluster is tried again: exponential, capped, with full jitter above half."""
    return float(min(cap_seconds, base_seconds * 2 ** min(max(attempts - 1, 0), 30)) * (0.5 + 0.5 * roll))
