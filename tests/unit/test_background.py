"""Whether a part works, as readiness tells it."""

import pytest

from app import background
from app.background import PartHealth
from app.errors import ClusterUnavailable, DatabaseUnavailable


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(background, "time", clock)
    return clock


def attempt(health, error=None):
    with health.attempt():
        if error is not None:
            raise error


def test_it_fails_from_the_first_error_until_the_first_success(clock):
    health = PartHealth("claims")
    attempt(health)
    assert (health.reason, health.failing_seconds) == (None, 0)
    attempt(health, DatabaseUnavailable("it does not answer"))
    clock.now += 3
    attempt(health, ClusterUnavailable("it does not answer either"))
    clock.now += 4
    assert (health.reason, health.failing_seconds) == ("it does not answer either", 7)
    attempt(health)
    assert (health.reason, health.failing_seconds) == (None, 0)


def test_a_bug_is_raised():
    with pytest.raises(ZeroDivisionError):
        attempt(PartHealth("claims"), ZeroDivisionError())
