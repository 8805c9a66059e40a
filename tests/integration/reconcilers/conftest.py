"""Fixtures of the workers' tests: a database, a cluster in memory, and settings that wait for nothing long."""

import pytest

from app.config import Settings


@pytest.fixture
def settings(db) -> Settings:
    return Settings(
        database_url=db.url,
        plan_seconds=0.1,
        reap_seconds=0.1,
        relist_seconds=5,
        creates_per_second=1000,
        backoff_base_seconds=0.05,
        backoff_cap_seconds=0.2,
        breaker_failures=3,
        watch_lease_seconds=2,
    )
