"""The stages of a boot, from times of two clocks."""

from datetime import UTC, datetime, timedelta

from app.domain.observation import Observation, PodTimes
from app.domain.stages import BootMarks, measure_stages

START = datetime(2026, 3, 1, tzinfo=UTC)


def at(seconds):
    return START + timedelta(seconds=seconds)


def marks(**given):
    return BootMarks(**{"planned_at": at(0), "asked_at": at(1.25), "ready_at": at(40.5), **given})


WHOLE = {
    "vm_made_at": at(1),
    "vmi_made_at": at(3),
    "scheduled_at": at(14),
    "running_at": at(16),
    "agent_at": at(38),
}


def test_each_stage_from_where_the_one_before_ended():
    stages = measure_stages(marks(**WHOLE), PodTimes(scheduled_at=at(4), started_at=at(14)))
    assert stages == {
        "queue": 1.25,
        "disk": 2.0,
        "schedule": 1.0,
        "image": 10.0,
        "start": 2.0,
        "boot": 22.0,
        "agent": 2.5,
    }
    assert list(stages) == ["queue", "disk", "schedule", "image", "start", "boot", "agent"]


def test_without_its_pod_nobody_knows_when_a_node_was_found_and_the_images_were_there():
    stages = measure_stages(marks(**WHOLE))
    assert (stages["schedule"], stages["image"]) == (None, None)
    assert (stages["disk"], stages["start"], stages["boot"]) == (2.0, 2.0, 22.0)


def test_a_pod_that_runs_no_more_tells_when_a_node_was_found():
    stages = measure_stages(marks(**WHOLE), PodTimes(scheduled_at=at(4), started_at=None))
    assert (stages["schedule"], stages["image"], stages["start"]) == (1.0, None, 2.0)


def test_a_guest_without_an_agent_has_booted_when_it_is_ready():
    stages = measure_stages(marks(**{**WHOLE, "agent_at": None}))
    assert (stages["boot"], stages["agent"]) == (24.5, None)


def test_what_the_cluster_gave_no_time_for_is_none():
    stages = measure_stages(marks(asked_at=None, running_at=at(4)))
    assert stages == {
        "queue": None,
        "disk": None,
        "schedule": None,
        "image": None,
        "start": None,
        "boot": 36.5,
        "agent": None,
    }


def test_a_clock_that_is_behind_gives_no_negative_time():
    """The cluster's times are cut to whole seconds: an agent that spoke at 2.9 spoke at 2."""
    stages = measure_stages(
        marks(ready_at=at(2.2), vm_made_at=at(2), vmi_made_at=at(1), running_at=at(3), agent_at=at(2))
    )
    assert (stages["disk"], stages["boot"], stages["agent"]) == (0.0, 0.0, 0.2)


def test_marks_are_read_from_what_was_seen():
    seen = Observation(
        name="vm",
        namespace="default",
        uid="u",
        created_at=at(1),
        vmi_created_at=at(3),
        agent_at=at(38),
        scheduled_at=at(14),
        running_at=at(16),
    )
    assert BootMarks.of(seen, planned_at=at(0), asked_at=at(1.25), ready_at=at(40.5)) == marks(**WHOLE)


def test_between_two_clocks_no_stage_is_longer_than_the_whole():
    """Asked for at 2.6 and ready at 2.9, with an agent that spoke at 2.8, which the cluster calls 2."""
    stages = measure_stages(marks(asked_at=at(2.6), ready_at=at(2.9), running_at=at(2), agent_at=at(2)))
    assert (stages["boot"], stages["agent"]) == (0.0, 0.3)
    silent = measure_stages(marks(asked_at=at(2.6), ready_at=at(2.9), running_at=at(2)))
    assert (silent["boot"], silent["agent"]) == (0.3, None)
