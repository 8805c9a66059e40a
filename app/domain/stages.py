"""How long each stage of a VM's boot took. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from app.domain.observation import Observation, PodTimes

STAGES = ("queue", "disk", "schedule", "image", "start", "boot", "agent")
"""In the order in which they happen."""


@dataclass(frozen=True, slots=True)
class BootMarks:
    """The moments of one boot. None: the cluster gave no time for it.

    `planned_at`, `asked_at` and `ready_at` are ours, to the microsecond. The others are by the cluster's clock, in whole
    seconds: when the VirtualMachine and its instance were created, when the instance was `Scheduled` and `Running` (KubeVirt's
    `phaseTransitionTimestamps`), and when the guest agent connected.
    """

    planned_at: datetime
    asked_at: datetime | None
    ready_at: datetime
    vm_made_at: datetime | None = None
    vmi_made_at: datetime | None = None
    scheduled_at: datetime | None = None
    running_at: datetime | None = None
    agent_at: datetime | None = None

    @classmethod
    def of(
        cls, obs: Observation, *, planned_at: datetime, asked_at: datetime | None, ready_at: datetime
    ) -> "BootMarks":
        return cls(
            planned_at=planned_at,
            asked_at=asked_at,
            ready_at=ready_at,
            vm_made_at=obs.created_at,
            vmi_made_at=obs.vmi_created_at,
            scheduled_at=obs.scheduled_at,
            running_at=obs.running_at,
            agent_at=obs.agent_at,
        )


def measure_stages(marks: BootMarks, pod: PodTimes | None = None) -> dict[str, float | None]:
    """Seconds by stage, in their order. None if a time is missing; without a pod `schedule` and `image` are.

    `queue`: planned until the cluster was asked. `disk`: until the instance was created, which waits for its DataVolumes.
    `schedule`: until a node was found. `image`: until the pod's containers ran, which waits for images. `start`: until the
    domain ran. `boot`: until the guest agent connected, or the VM was ready without one. `agent`: from then until it was
    ready. Clocks differ, and the cluster's is cut to seconds: so a stage is never below zero, and a stage between the two
    clocks is never longer than the whole boot.
    """
    started_at = pod.started_at if pod is not None else None
    whole = _between(marks.asked_at or marks.planned_at, marks.ready_at)
    return {
        "queue": _between(marks.planned_at, marks.asked_at),
        "disk": _between(marks.vm_made_at, marks.vmi_made_at),
        "schedule": _between(marks.vmi_made_at, pod.scheduled_at if pod is not None else None),
        "image": _between(pod.scheduled_at if pod is not None else None, started_at),
        "start": _between(started_at or marks.scheduled_at, marks.running_at),
        "boot": _between(marks.running_at, marks.agent_at)
        if marks.agent_at is not None
        else _within(whole, _between(marks.running_at, marks.ready_at)),
        "agent": _within(whole, _between(marks.agent_at, marks.ready_at)),
    }


def in_order(stored: Mapping[str, float | None]) -> dict[str, float | None]:
    """Sorts stages that the database returns in any order."""
    return {stage: stored.get(stage) for stage in STAGES}


def _between(start: datetime | None, end: datetime | None) -> float | None:
    if start is None or end is None:
        return None
    return round(max(0.0, (end - start).total_seconds()), 3)


def _within(whole: float | None, seconds: float | None) -> float | None:
    return min(whole, seconds) if whole is not None and seconds is not None else seconds
