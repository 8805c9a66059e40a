"""Backoff and breaker, with a clock and dice of the test's own."""

from datetime import UTC, datetime, timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import given

from app.domain.failures import FailureRecord, judge_failure, retry_delay

NOW = datetime(2026, 3, 1, tzinfo=UTC)
CALM = FailureRecord(consecutive=0, counted_at=None)


def judge(record, *, planned_at=NOW, now=NOW, roll=0.5, breaker=3):
    return judge_failure(
        record, planned_at=planned_at, now=now, base_seconds=2, cap_seconds=60, breaker=breaker, roll=roll
    )


def test_the_first_failure_counts_and_waits_about_the_base():
    verdict = judge(CALM)
    assert verdict.counts
    assert verdict.consecutive == 1
    assert verdict.backoff_until == NOW + timedelta(seconds=2)
    assert not verdict.stalled


def test_ten_that_fail_together_are_one_failure():
    """All ten were planned before the pool knew of the first."""
    record, counted = CALM, 0
    for number in range(10):
        now = NOW + timedelta(seconds=30 + number)
        verdict = judge(record, planned_at=NOW + timedelta(milliseconds=number), now=now)
        if verdict.counts:
            counted += 1
            record = FailureRecord(verdict.consecutive, now)
        assert not verdict.stalled
    assert counted == 1
    assert record.consecutive == 1


def test_one_planned_at_the_moment_of_the_count_was_planned_too_early():
    assert not judge(FailureRecord(1, NOW), planned_at=NOW, now=NOW + timedelta(seconds=1)).counts


def test_failures_one_after_the_other_double_the_wait_and_open_the_breaker():
    record, now, waits, stalled = CALM, NOW, [], []
    for _ in range(4):
        now += timedelta(seconds=100)
        verdict = judge(record, planned_at=now - timedelta(seconds=1), now=now)
        waits.append((verdict.backoff_until - now).total_seconds())
        stalled.append(verdict.stalled)
        record = FailureRecord(verdict.consecutive, now)
    assert waits == [2, 4, 8, 16]
    assert stalled == [False, False, True, True]


@pytest.mark.parametrize(("roll", "seconds"), [(0.0, 1.5), (0.5, 2.0), (1.0, 2.5)])
def test_jitter_is_a_quarter_both_ways(roll, seconds):
    assert judge(CALM, roll=roll).backoff_until == NOW + timedelta(seconds=seconds)


@given(before=st.integers(0, 10_000), roll=st.floats(0, 1, exclude_max=True))
def test_the_wait_is_never_above_the_cap_nor_nothing(before, roll):
    verdict = judge(FailureRecord(before, NOW - timedelta(days=1)), roll=roll)
    assert verdict.backoff_until is not None
    assert timedelta(0) < verdict.backoff_until - NOW <= timedelta(seconds=60)


@given(attempts=st.integers(-1, 10_000), roll=st.floats(0, 1, exclude_max=True))
def test_a_retry_waits_between_half_and_all_of_its_share(attempts, roll):
    share = min(60.0, 2.0 * 2 ** min(max(attempts - 1, 0), 30))
    delay = retry_delay(attempts, base_seconds=2, cap_seconds=60, roll=roll)
    assert share / 2 <= delay <= share
