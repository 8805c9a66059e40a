"""Fixtures of the tests that need Postgres or a dev cluster: a database, a cluster, and claim services that stand for processes."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from tests.support.claim_services import run_claim_service
from tests.support.clusters import dev_cluster
from tests.support.fake_gateway import FakeGateway
from tests.support.postgres import database_url, empty_database_url, postgres, template_database
from tests.support.shared_database import db, shared_database_url

__all__ = [
    "database_url",
    "db",
    "dev_cluster",
    "empty_database_url",
    "postgres",
    "shared_database_url",
    "template_database",
]


@pytest.fixture
async def make_claim_service(db) -> AsyncIterator[Callable[..., object]]:
    async with AsyncExitStack() as stack:

        async def make(**given):
            return await stack.enter_async_context(run_claim_service(db.url, **given))

        yield make


@pytest.fixture
async def claim_service(make_claim_service):
    return await make_claim_service()


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()
