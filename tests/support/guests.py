"""Guests for tests: the simulated ones of the dev cluster, which need a port to call, and one that does as a test says."""

import asyncio
import base64
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import uvicorn

from app.api.claims.fast_path.protocol import protocol
from app.devcluster import DevCluster
from app.devcluster.apiserver.registry import SECRETS
from tests.support.service import Server, client_of, serve

KEY: Final = base64.b64encode(bytes(range(32))).decode()
NOWHERE: Final = "http://127.0.0.1:9"
"""Simulated guests cannot reach it, so that a test plays the guests."""


@asynccontextmanager
async def serve_guests(database_url: str, cluster: DevCluster, folder: Path, **settings: Any) -> AsyncIterator[Server]:
    """The service with a port at which the cluster's own guests reach it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        given = {"guest_url": url, "handover_key": KEY, **settings}
        async with serve(database_url, cluster, folder, **given) as server:
            config = uvicorn.Config(
                server.app,
                http=protocol(server.app),
                lifespan="off",
                log_config=None,
                timeout_graceful_shutdown=1,
                ws="none",
            )
            http = uvicorn.Server(config)
            serving = asyncio.create_task(http._serve([listening]))
            try:
                yield server
            finally:
                http.should_exit = True
                server.services.guests.waiting.close()  # else it waits for the guests, which wait for it
                await serving


def identity_of(cluster: DevCluster, vm: str, namespace: str = "default") -> dict[str, str] | None:
    """The files of a VM's identity; None where it has none."""
    found = cluster.store.get(SECRETS, namespace, vm)
    return {name: base64.b64decode(value).decode() for name, value in found.obj["data"].items()} if found else None


class Guest:
    """The guest of one VM, in one boot."""

    def __init__(self, server: Server, disk: dict[str, str], *, boot_id: str | None = None) -> None:
        self.boot_id = boot_id or str(uuid.uuid4())
        self.disk = disk
        self.known: dict[str, str] = {}
        self._client = client_of(server.app)

    @classmethod
    def of(cls, server: Server, cluster: DevCluster, vm: str, **given: Any) -> "Guest":
        disk = identity_of(cluster, vm)
        assert disk is not None, f"{vm} has no identity"
        return cls(server, disk, **given)

    async def hello(self, **more: Any) -> httpx.Response:
        body = {"boot_id": self.boot_id, "vm": self.disk["vm"], **more}
        return await self._client.post("/guest/v1/hello", json=body, headers=self._heads)

    async def look(self, **query: str) -> httpx.Response:
        """Waits for as long as the service lets it."""
        query = {"boot_id": self.boot_id, **self.known, **query}
        return await self._client.get("/guest/v1/claim", params=query, headers=self._heads, timeout=90)

    async def fetch(self) -> dict[str, Any]:
        """The claim that it is told of, from then on known to it."""
        answer = await self.look()
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        self.known = {"known": told["claim"]}
        return told

    async def report(self, claim: str, *, exit_code: int = 0, output: bytes = b"") -> httpx.Response:
        query = {"claim": claim, "exit_code": str(exit_code)}
        heads = {**self._heads, "Content-Type": "text/plain"}
        return await self._client.post("/guest/v1/handed-over", params=query, content=output, headers=heads)

    async def released(self, claim: str) -> httpx.Response:
        return await self._client.post("/guest/v1/released", params={"claim": claim}, headers=self._heads)

    @property
    def _heads(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.disk['token']}"}
