"""Whether the machine is quiet enough to measure on: what others take of its cores while the bench itself rests."""

import os
import time

import psutil

_SAMPLE_SECONDS = 2.0
_QUIET = 0.15
"""Cores that others may take: what an idle system's services take now and then."""


def busy_cores() -> float:
    """How many cores are at work, on average over two seconds in which the caller does nothing. Time that a hypervisor gave to
    other guests counts, because it is missing here.
    """
    before, began = _idle_seconds(), time.monotonic()
    time.sleep(_SAMPLE_SECONDS)
    idle, seconds = _idle_seconds() - before, time.monotonic() - began
    return max(0.0, (os.cpu_count() or 1) - idle / seconds)


def why_busy(when: str) -> str | None:
    """In words, or None: the machine is quiet."""
    cores = busy_cores()
    return f"{when} other programs took {cores:.1f} of the machine's cores" if cores > _QUIET else None


def _idle_seconds() -> float:
    times = psutil.cpu_times()
    idle: float = times.idle + getattr(times, "iowait", 0.0)
    return idle
