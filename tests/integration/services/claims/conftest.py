"""Fixtures of the tests that hold the claim path to its guarantees."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from app.store.database import Database
from tests.support.claim_replicas import serve_api
from tests.support.service import Server


@pytest.fixture
async def make_replica(db: Database, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Server]]]:
    """Makes API replicas on the test's database, each with settings of its own, which serve until the test is over."""
    async with AsyncExitStack() as stack:

        async def make(**settings: Any) -> Server:
            return await stack.enter_async_context(serve_api(db.url, tmp_path, **settings))

        yield make


@pytest.fixture
async def replica(make_replica: Callable[..., Awaitable[Server]]) -> Server:
    return await make_replica()
