"""API processes that share nothing but their database: in this process, called without a network, or as processes of their own.

No cluster is behind them, and no worker beside them: what becomes ready or is released is the test's doing, so that every
VM can be counted.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from app.config import Role, Settings
from app.server import run_app
from tests.support.service import Server, client_of

_NOBODY = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "nobody",
    "contexts": [{"name": "nobody", "context": {"cluster": "nobody", "user": "nobody"}}],
    "clusters": [{"name": "nobody", "cluster": {"server": "http://127.0.0.1:9"}}],
    "users": [{"name": "nobody", "user": {}}],
}


def write_kubeconfig(folder: Path) -> Path:
    """Of a cluster that does not answer: an API process asks it nothing to hand out VMs."""
    path = folder / "kubeconfig"
    path.write_text(json.dumps(_NOBODY), encoding="utf-8")
    return path


@asynccontextmanager
async def serve_api(database_url: str, folder: Path, **settings: Any) -> AsyncIterator[Server]:
    """One replica in this process, with all that runs beside its requests."""
    given = Settings(database_url=database_url, kubeconfig=write_kubeconfig(folder), role=Role.API, **settings)
    async with run_app(given, stopping=asyncio.Event()) as (app, services), client_of(app) as client:
        yield Server(app, services, client)
