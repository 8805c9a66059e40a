"""The client for threads and the one for asyncio, each of which every test here runs with."""

import pytest

from emberpool.client import AsyncClient, Client
from tests.support.clusters import dev_cluster
from tests.support.module_service import cluster, server
from tests.support.postgres import database_url, postgres, template_database

__all__ = ["cluster", "database_url", "dev_cluster", "postgres", "server", "template_database"]


@pytest.fixture(params=[Client, AsyncClient], ids=["sync", "async"])
def kind(request, monkeypatch) -> type[Client] | type[AsyncClient]:
    for name in ("EMBERPOOL_URL", "EMBERPOOL_SERVER", "EMBERPOOL_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return request.param
