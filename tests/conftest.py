"""Fixtures that more than one part of the tests uses."""

import os
import ssl

from hypothesis import HealthCheck, settings

from tests.support.hangs import (
    pytest_configure,
    pytest_runtest_call,
    pytest_runtest_makereport,
    pytest_runtest_setup,
    pytest_runtest_teardown,
    pytest_sessionfinish,
    pytest_timeout_set_timer,
)
from tests.support.xdist_scheduling import pytest_collection_modifyitems, pytest_xdist_make_scheduler

__all__ = [
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_runtest_call",
    "pytest_runtest_makereport",
    "pytest_runtest_setup",
    "pytest_runtest_teardown",
    "pytest_sessionfinish",
    "pytest_timeout_set_timer",
    "pytest_xdist_make_scheduler",
]

# An example takes as long as a busy machine needs for it: that is no failure of what is tested.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# Settings read these; what the developer's shell sets must not change what a test sees.
for _name in [name for name in os.environ if name.startswith("EMBERPOOL_") and not name.startswith("EMBERPOOL_TEST_")]:
    del os.environ[_name]


def _read_none(context: ssl.SSLContext, purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> None:
    """Reading the system's certificates costs each client of a test more than what it is made for; no test calls anybody who
    shows one of theirs. Those that a test makes are read as ever.
    """


ssl.SSLContext.load_default_certs = _read_none
