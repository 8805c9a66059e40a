"""Fixtures of the tests of claims that describe their VM."""

from contextlib import AsyncExitStack

import pytest

from tests.choosing.scene import Process
from tests.store.shared import db, shared_database_url
from tests.usecases.conftest import make_desk
from tests.workers.gateway import FakeGateway

__all__ = ["db", "make_desk", "shared_database_url"]


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
async def start(db, gateway):
    """Starts processes of the service, which are closed after the test."""
    async with AsyncExitStack() as stack:

        def start(**settings) -> Process:
            process = Process(db, gateway, **settings)
            stack.push_async_callback(process.close)
            return process

        yield start


@pytest.fixture
def process(start) -> Process:
    return start()
