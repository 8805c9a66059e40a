"""The HTTP application, and serving it."""

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from importlib import metadata

import structlog
import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from typing_extensions import override

from app.api import document, health, problems
from app.api.claims import batch
from app.api.claims import routes as claims
from app.api.claims.fast_path import protocol as claim_protocol
from app.api.claims.fast_path import route as claim_route
from app.api.claims.fast_path.route import ClaimRoute
from app.api.dependencies import Services
from app.api.edge import Edge
from app.api.events import routes as events
from app.api.manifests import routes as manifests
from app.api.nodes import placement_routes as placements
from app.api.nodes import routes as nodes
from app.api.paths import routes as paths
from app.api.pools import import_routes as imports
from app.api.pools import routes as pools
from app.api.preloads import routes as preloads
from app.api.snapshots import routes as snapshots
from app.api.vms import routes as vms
from app.bootstrap import run_services
from app.concurrency import first_of
from app.config import Role, Settings
from app.errors import EmberpoolError

log = structlog.get_logger(__name__)


class CannotListen(EmberpoolError):
    code = "cannot-listen"
    title = "The service cannot listen"


_DESCRIPTION = """
1. `PUT /v1/pools/{name}` says which VMs of KubeVirt to keep warm, and how many.
2. `POST /v1/claim` hands one out, in milliseconds. It is yours until its lease ends: renew it, or release it.
3. Behind it the pool refills. `GET /v1/pools/{name}` says how it stands, `GET /v1/events` what happens.
4. A claim may describe its VM instead (`vm`): it comes by the fastest path there is, a warm pool, a snapshot, a preloaded image or
   a cold start, and says which, and why. `GET /v1/paths` says what each costs here.

The forms below are filled in: execute PUT, then claim. Every error is an RFC 9457 problem with a stable `code`.
Where the service was given a token, put it under Authorize; where it was not, everything is open and the locks mean nothing.
"""
_TAGS = [
    {"name": "pools", "description": "Which VMs to keep warm, and how many."},
    {"name": "snapshots", "description": "Disks of VMs that have booted, for others to start from."},
    {"name": "preloads", "description": "Images brought near before a VM needs them."},
    {"name": "claims", "description": "Take a VM, keep it, give it back."},
    {
        "name": "paths",
        "description": "What each way to a VM costs here: a warm pool, a snapshot, a preloaded image, a cold start.",
    },
    {"name": "vms", "description": "Each VM, and what became of it."},
    {"name": "nodes", "description": "Where VMs can run, what is left there, and whether a VM fits."},
    {"name": "manifests", "description": "Kubernetes-style YAML, and what it becomes."},
    {"name": "events", "description": "What happened, as a page or as a stream."},
    {"name": "health", "description": "Whether the service can do its work."},
]


def create_app(role: Role = Role.ALL) -> FastAPI:
    """The application without what it works on: `services` goes into its state before it serves."""
    app: FastAPI = FastAPIOffline(
        title="Emberpool",
        version=metadata.version("emberpool"),
        summary="VMs that are ready before they are asked for.",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        redoc_url=None,
        swagger_ui_parameters={"displayRequestDuration": True, "tryItOutEnabled": True, "defaultModelsExpandDepth": 0},
    )
    if role is not Role.WORKER:
        for part in (
            claim_route,
            batch,
            claims,
            pools,
            imports,
            preloads,
            snapshots,
            paths,
            vms,
            nodes,
            placements,
            manifests,
            events,
        ):
            app.include_router(part.router)
    app.include_router(health.router)
    problems.install(app)
    document.install(app)
    return app


def with_edge(app: FastAPI, services: Services) -> Edge:
    """The application behind the checks that every request passes first, and the claim route beside it."""
    settings = services.settings
    token = settings.api_token.get_secret_value() if settings.api_token else None
    claim = ClaimRoute(services) if settings.role is not Role.WORKER else None
    return Edge(app, claim=claim, token=token, max_body_bytes=settings.max_body_bytes)


@asynccontextmanager
async def run_app(settings: Settings, *, stopping: asyncio.Event) -> AsyncIterator[tuple[Edge, Services]]:
    """The application with its services running behind it."""
    async with run_services(settings, stopping=stopping) as services:
        app = create_app(settings.role)
        app.state.services = services
        yield with_edge(app, services), services


async def serve(
    settings: Settings, *, on_ready: Callable[[str], None] | None = None, stopping: asyncio.Event | None = None
) -> None:
    """Serves until SIGTERM, SIGINT or `stopping`, then drains; `on_ready` is told the address once it listens.

    Raises CannotListen, and what a part of the service died of.
    """
    stopping = stopping or asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    listening = _listen(settings)
    address = _address(settings.host, listening.getsockname()[1])
    async with run_app(settings, stopping=stopping) as (app, _):
        server = _Server(
            uvicorn.Config(
                app,
                http=claim_protocol.protocol(app),
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # nothing here depends on who called; unwrapping them costs every request
                timeout_graceful_shutdown=int(settings.shutdown_grace_seconds),
                timeout_keep_alive=75,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[listening]), name="http")
        _settle_garbage()
        log.info("serving", address=address, role=settings.role)
        if on_ready is not None:
            on_ready(address)
        await first_of(serving, stopping.wait())
        log.info("stopping", role=settings.role)
        server.should_exit = True
        await serving


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048, reuse_port=False)
    except OSError as error:
        at = f"{settings.host} port {settings.port}"
        if error.errno == errno.EADDRINUSE:
            raise CannotListen(
                f"{at} is taken by another process; stop it, or give another --port (0: any free one)."
            ) from error
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise CannotListen(f"{at}: {reason}; give another --port, or another host as EMBERPOOL_HOST.") from error


def _address(host: str, port: int) -> str:
    """As a URL that can be opened on this machine: an address that stands for all of them is none to go to."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Signals are ours: they end the workers and the streams first, and the server after them."""

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _settle_garbage() -> None:
    """What lives as long as the process is not looked at by the collector again: measured when the claim path
    was designed: a claim's p99 fell from 23 to 7 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 50)
