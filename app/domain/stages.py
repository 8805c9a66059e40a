"""How long each stage of a VM's way to ready took."""

from collections.abc import Mapping
from datetime import datetime


def measure_stages(
    *, planned_at: datetime, asked_at: datetime | None, ready_at: datetime, phase_times: Mapping[str, datetime]
) -> dict[str, float | None]:
    """Seconds by stage: `queue` (planned until the cluster was asked), `schedule` (until a node had it), `start` (image, disks,
    and the domain), `boot` (the guest, until it is ready). None where the cluster gave no time for it.

    The cluster's times (KubeVirt's `phaseTransitionTimestamps`) have whole seconds and its own clock: a stage is never
    told below zero.
    """
    scheduled = phase_times.get("Scheduled")
    running = phase_times.get("Running")
    return {
        "queue": _between(planned_at, asked_at),
        "schedule": _between(asked_at, scheduled),
        "start": _between(scheduled, running),
        "boot": _between(running, ready_at),
    }


def _between(start: datetime | None, end: datetime | None) -> float | None:
    if start is None or end is None:
        return None
    return round(max(0.0, (end - start).total_seconds()), 3)
