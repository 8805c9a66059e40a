"""The service for a test: its application in this process, on a real database and a dev cluster, called over HTTP."""

import asyncio
import copy
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import uvicorn
from starlette.types import ASGIApp

from app.api.claims.fast_path.protocol import protocol
from app.api.dependencies import Services
from app.api.edge import Edge
from app.config import Settings
from app.devcluster import DevCluster
from app.server import run_app
from tests.support.patience import PATIENCE

JSON: Final = {"Content-Type": "application/json"}
TEMPLATE: Final = {"image": "registry.local/disk:1", "memory": "64Mi"}
QUICK: Final = {
    "plan_seconds": 0.2,
    "reap_seconds": 0.2,
    "relist_seconds": 1,
    "cluster_timeout_seconds": 2,
    "backoff_base_seconds": 0.05,
    "backoff_cap_seconds": 0.2,
    "shutdown_grace_seconds": 5,
}


class Server:
    """`client` calls the application without a network in between."""

    def __init__(self, app: Edge, services: Services, client: httpx.AsyncClient) -> None:
        self.app = app
        self.services = services
        self.client = client

    async def put(self, name: str, **spec: Any) -> httpx.Response:
        return await self.client.put(f"/v1/pools/{name}", json={"size": 1, "template": TEMPLATE, **spec})

    async def fill(self, name: str, **spec: Any) -> dict[str, Any]:
        """A pool of this spec, once it has as many ready VMs as its size."""
        written = await self.put(name, **spec)
        assert written.status_code in {200, 201}, written.text

        async def full() -> dict[str, Any] | None:
            pool = await self.pool(name)
            return pool if pool["status"]["counts"]["ready"] >= pool["spec"]["size"] else None

        return await until(full)

    async def pool(self, name: str) -> dict[str, Any]:
        answer = await self.client.get(f"/v1/pools/{name}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def claim(self, pool: str, *, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/claim", json={"pool": pool, **body}, headers=headers)

    async def claim_one(self, pool: str, **body: Any) -> dict[str, Any]:
        answer = await self.claim(pool, **body)
        assert answer.status_code == 201, answer.text
        return answer.json()


@asynccontextmanager
async def serve(database_url: str, cluster: DevCluster, folder: Path, **settings: Any) -> AsyncIterator[Server]:
    """The whole service with its workers, whose every timer is short."""
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(cluster.kubeconfig_text(), encoding="utf-8")
    given = Settings(**{**QUICK, "database_url": database_url, "kubeconfig": kubeconfig, **settings})
    async with run_app(given, stopping=asyncio.Event()) as (app, services), client_of(app) as client:
        yield Server(app, services, client)


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    """What the application raises after its answer is the server's affair: a test sees the answer, as a client does."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://emberpool", headers=JSON)


@asynccontextmanager
async def listen(app: Edge) -> AsyncIterator[httpx.AsyncClient]:
    """The application behind a real server, for what only a connection shows: streams, and clients that leave."""
    async with bind(app) as (_, port), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=JSON) as client:
        yield client


@asynccontextmanager
async def bind(app: Edge, *, port: int = 0, **settings: Any) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    """The application behind a real server that speaks as the service does, and its port. `settings`: those of its connections."""
    app = copy.copy(app)
    app.settings = app.settings.model_copy(update=settings)
    listening = socket.create_server(("127.0.0.1", port))
    # As uvloop does. asyncio does it only for sockets that name TCP as their protocol: else each answer takes 40 ms longer.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        app, http=protocol(app), lifespan="off", log_config=None, timeout_graceful_shutdown=1, ws="none"
    )
    server = uvicorn.Server(config)
    # Its own way to catch signals would take them from the test runner.
    serving = asyncio.create_task(server._serve([listening]))
    try:
        yield server, listening.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def until(holds: Callable[[], Awaitable[Any]], *, seconds: float = PATIENCE) -> Any:
    """Waits until `holds()` gives something true, and gives that. Most of what is waited for is known to the database alone."""
    deadline = time.monotonic() + seconds
    pause = 0.02
    while not (found := await holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s; seen last: {found!r}")
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, 0.08)  # what is waited for needs the processor too
    return found


@dataclass(frozen=True, slots=True)
class Refused:
    """What a test expects of a problem."""

    status: int
    code: str
    field: str | None = None
    says: str = ""


def check(answer: httpx.Response, expected: Refused) -> dict[str, Any]:
    """Holds an answer to RFC 9457 and to what was expected; gives the problem."""
    assert answer.status_code == expected.status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["code"] == expected.code
    assert problem["type"] == f"urn:emberpool:problem:{expected.code}"
    assert problem["status"] == expected.status
    assert problem["title"]
    assert problem["instance"] == answer.request.url.path
    assert expected.says in problem["detail"]
    if expected.field is not None:
        assert expected.field in [each["field"] for each in problem["errors"]], problem
    return problem


async def stored(server: Server) -> tuple[list[tuple[str, int]], list[str]]:
    """Everything that a bad request could have left behind."""
    pools = (await server.client.get("/v1/pools", params={"limit": 500})).json()["items"]
    claims = (await server.client.get("/v1/claims", params={"limit": 500})).json()["items"]
    return [(pool["name"], pool["generation"]) for pool in pools], [claim["id"] for claim in claims]


class Gate:
    """A way to the database that a test can close: connections through it break, and new ones are refused."""

    def __init__(self, folder: Path, target: Path) -> None:
        self._path = folder / ".s.PGSQL.5432"
        self._target = target / ".s.PGSQL.5432"
        self._folder = folder
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    def url(self, through: str) -> str:
        """A database's URL, by way of the gate."""
        return through.partition("?")[0] + f"?host={self._folder}"

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._pass, self._path)

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        self._path.unlink(missing_ok=True)
        for writer in list(self._writers):
            writer.transport.abort()
        self._server = None

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_unix_connection(self._target)
        self._writers |= {writer, there}
        try:
            await asyncio.wait(
                [asyncio.create_task(_pump(reader, there)), asyncio.create_task(_pump(there_reader, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            self._writers -= {writer, there}
            writer.transport.abort()
            there.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        return


async def figures(server: Server) -> dict[str, float]:
    """What `/metrics` tells, by name and labels."""
    answer = await server.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = [line.rpartition(" ") for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}
