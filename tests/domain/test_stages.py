"""The stages of a boot, from times of two clocks."""

from datetime import UTC, datetime, timedelta

from app.domain.stages import measure_stages

START = datetime(2026, 3, 1, tzinfo=UTC)


def at(seconds):
    return START + timedelta(seconds=seconds)


def test_each_stage_from_where_the_one_before_ended():
    stages = measure_stages(
        planned_at=at(0), asked_at=at(1.25), ready_at=at(40), phase_times={"Scheduled": at(3), "Running": at(13)}
    )
    assert stages == {"queue": 1.25, "schedule": 1.75, "start": 10.0, "boot": 27.0}


def test_what_the_cluster_gave_no_time_for_is_none():
    stages = measure_stages(planned_at=at(0), asked_at=None, ready_at=at(9), phase_times={"Running": at(4)})
    assert stages == {"queue": None, "schedule": None, "start": None, "boot": 5.0}


def test_a_clock_that_is_behind_gives_no_negative_time():
    """The cluster's times are cut to whole seconds: what we asked for at 1.9 was scheduled at 1."""
    stages = measure_stages(
        planned_at=at(0), asked_at=at(1.9), ready_at=at(2.2), phase_times={"Scheduled": at(1), "Running": at(3)}
    )
    assert stages == {"queue": 1.9, "schedule": 0.0, "start": 2.0, "boot": 0.0}
