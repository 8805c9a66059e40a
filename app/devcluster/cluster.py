"""The cluster put together: store, controllers and server, started and stopped as one."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Protocol, Self

import yaml
from aiohttp import web

from app.devcluster.admission import Webhooks
from app.devcluster.api import Api
from app.devcluster.clock import Clock, LoopClock, ManualClock
from app.devcluster.config import DevClusterConfig
from app.devcluster.disruptions import Disruptions, ResetError, Stage
from app.devcluster.durations import Jitter
from app.devcluster.faults import FaultBook
from app.devcluster.garbage import GarbageCollector
from app.devcluster.node_agent import NodeAgent
from app.devcluster.nodes import ImageCache, Ledger, NodeShape, build_node
from app.devcluster.objects import Store
from app.devcluster.registry import NAMESPACES, NODES, RESOURCES
from app.devcluster.scheduler import Scheduler
from app.devcluster.server import BODY_LIMIT, ApiServer
from app.devcluster.status import Json
from app.devcluster.subresources import Subresources
from app.devcluster.times import stamp
from app.devcluster.vm_controller import MachineController
from app.devcluster.vmi_controller import InstanceController

_SHUTDOWN_SECONDS = 1.0
_RESTART_GAP = 2


class _Worker(Protocol):
    @property
    def idle(self) -> bool: ...


class DevCluster:
    """`async with DevCluster(config) as cluster:` serves at `cluster.url` until the block ends.

    `faults` orders faults in process; `clock` may be a ManualClock that the test moves.
    """

    def __init__(self, config: DevClusterConfig | None = None, *, clock: Clock | None = None) -> None:
        self.config = config or DevClusterConfig()
        self.clock: Clock = clock or LoopClock()
        self.jitter = Jitter(self.config.seed, self.config.jitter_share)
        self.store = Store()
        self.faults = FaultBook(self.jitter)
        if isinstance(clock, ManualClock):
            clock.busy.append(lambda: not self.idle)
        self._workers: tuple[_Worker, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://{self.config.host}:{self._port}"

    def kubeconfig(self, token: str = "") -> Json:
        """A kubeconfig for kubectl and kubernetes_asyncio, for one of the configured tokens where there are any."""
        name = "devcluster"
        user: Json = {"token": token} if token else {}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": {"server": self.url}}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
            "current-context": name,
        }

    def kubeconfig_text(self, token: str = "") -> str:
        return yaml.safe_dump(self.kubeconfig(token), sort_keys=False)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        config = self.config
        self._furnish()
        self.images = ImageCache(config.image_cache_slots)
        api = self.api = Api(self.store, self.clock, Webhooks(), self.jitter)
        ledger = Ledger(self.store)
        self.disruptions = Disruptions(self.faults, self.store, self.clock, config.durations)
        garbage = GarbageCollector(api, config.durations)
        machines = MachineController(api, config.durations)
        instances = InstanceController(api, config.durations, self.jitter, lambda _pod: None)
        scheduler = Scheduler(api, ledger, config.durations, self.jitter)
        self.agent = NodeAgent(api, config.durations, self.jitter, self.faults, self.images)
        for resource in RESOURCES:
            garbage.resume(resource)
        for resume in (machines.resume, instances.resume, scheduler.resume, self.agent.resume):
            resume()
        self._stops: list[Callable[[], None]] = [
            garbage.stop,
            machines.stop,
            instances.stop,
            scheduler.stop,
            self.agent.stop,
            ledger.stop,
        ]
        self._workers = (garbage, machines, instances, scheduler, self.agent)
        self.server = ApiServer(api, Subresources(api), self.disruptions, config.tokens)
        await self._listen()

    async def stop(self) -> None:
        self.server.closing.set()
        for watch in tuple(self.server.watches):
            watch.close()
        if self._runner is not None:
            await self._runner.cleanup()
        for stop in self._stops:
            stop()

    async def interrupt(self, *, kill: bool = True) -> None:
        """Stop the API server, not the controllers: new connections are refused, open ones break (or, not killed, end)."""
        if self._site is not None:
            await self._site.stop()
            self._site = None
        for watch in tuple(self.server.watches):
            if kill:
                self.disruptions.cut_watch(watch)
            else:
                watch.close()
        await asyncio.sleep(0)
        server = self._runner.server if self._runner else None
        for connection in tuple(server.connections) if server else ():
            if connection.transport is not None and (kill or not self.server.watches):
                connection.transport.abort()

    async def recover(self, stage: Stage = Stage.UP) -> None:
        """Start the API server again on its port; what watches had seen before is too old now."""
        self.disruptions.stage = stage
        self.store.rv += _RESTART_GAP
        self.store.forget_history()
        assert self._runner is not None  # noqa: S101  # interrupt() came before
        self._site = web.TCPSite(self._runner, self.config.host, self._port)
        await self._site.start()

    async def restart(self, *, kill: bool = True, down: float = 0.0, starting: float = 0.0) -> None:
        """Stop now, listen again after `down` seconds, be ready `starting` seconds later; returns at once."""
        await self.interrupt(kill=kill)
        loop = asyncio.get_running_loop()

        def recover() -> None:
            first = Stage.NO_CUSTOM_PATHS if starting else Stage.UP
            self._tasks.add(task := loop.create_task(self.recover(first)))
            task.add_done_callback(self._tasks.discard)
            if starting:
                self.clock.call_later(starting / 2, lambda: self._reach(Stage.NOT_READY))
                self.clock.call_later(starting, lambda: self._reach(Stage.UP))

        self.clock.call_later(down, recover)

    def _reach(self, stage: Stage) -> None:
        self.disruptions.stage = stage

    @property
    def idle(self) -> bool:
        """No controller has anything to do before the next timer or request."""
        return all(worker.idle for worker in self._workers)

    def add_node(self, name: str, shape: NodeShape | None = None) -> None:
        number = sum(1 for _ in self.store.each(NODES))
        node = build_node(name, shape or self.config.node_shape, number, self.clock.now())
        self.store.put(NODES, node)
        for image in self.config.images:
            self.images.add(name, image)

    def add_namespace(self, name: str) -> None:
        if self.store.get(NAMESPACES, "", name) is None:
            self.store.put(NAMESPACES, _namespace(name, stamp(self.clock.now())))

    def _furnish(self) -> None:
        """Namespaces and nodes of a new cluster."""
        for name in (*self.config.namespaces, "kube-system", "kubevirt"):
            self.add_namespace(name)
        self.images = ImageCache(self.config.image_cache_slots)
        for number in range(1, self.config.nodes + 1):
            if self.store.get(NODES, "", f"node{number}") is None:
                self.add_node(f"node{number}")
        self.store.forget_history()

    async def _listen(self) -> None:
        application = web.Application(client_max_size=BODY_LIMIT, middlewares=[_quiet_cuts])
        application.router.add_route("*", "/{path:.*}", self.server.handle)
        self._runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS, handler_cancellation=True
        )
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, self.config.host, self._port or self.config.port)
        await self._site.start()
        addresses = self._runner.addresses
        self._port = int(addresses[0][1])


@web.middleware
async def _quiet_cuts(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """A connection cut on order needs no stack trace."""
    try:
        return await handler(request)
    except ResetError:
        return web.Response(status=499)


def _namespace(name: str, moment: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": moment,
            "labels": {"kubernetes.io/metadata.name": name},
        },
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }
