"""The cluster put together: store, controllers and server, started and stopped as one."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import yaml
from aiohttp import web

from app.devcluster.apiserver.admission import Admission
from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.builtin import with_defaults
from app.devcluster.apiserver.controller import Controller
from app.devcluster.apiserver.garbage import GarbageCollector
from app.devcluster.apiserver.namespaces import NamespaceController
from app.devcluster.apiserver.objects import new_object
from app.devcluster.apiserver.persistence import StateFile
from app.devcluster.apiserver.registry import (
    CLAIMS,
    NAMESPACES,
    NODES,
    PERSISTENT_VOLUMES,
    VOLUME_SNAPSHOT_CONTENTS,
    VOLUME_SNAPSHOTS,
)
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Store
from app.devcluster.apiserver.watch import Watch
from app.devcluster.cdi.admission import CdiWebhooks
from app.devcluster.cdi.data_import_crons import DataImportCronController
from app.devcluster.cdi.data_sources import DataSourceController
from app.devcluster.cdi.data_volumes import DataVolumeController
from app.devcluster.cdi.storage_profiles import StorageProfileController
from app.devcluster.clock import Clock, LoopClock, ManualClock
from app.devcluster.config import DevClusterConfig
from app.devcluster.durations import Jitter
from app.devcluster.faults.book import FaultBook
from app.devcluster.faults.disruptions import Disruptions, Stage
from app.devcluster.guests.runtime import GuestRuntime
from app.devcluster.guests.simulated import SimulatedGuests
from app.devcluster.kubevirt.admission import KubeVirtWebhooks
from app.devcluster.kubevirt.console_log import ConsoleLogs
from app.devcluster.kubevirt.guest_channels import GuestChannels, Hooks, no_hooks
from app.devcluster.kubevirt.pool_controller import PoolController
from app.devcluster.kubevirt.snapshot_memory import SnapshotMemory
from app.devcluster.kubevirt.subresources import Subresources
from app.devcluster.kubevirt.virt_handler import VirtHandler
from app.devcluster.kubevirt.vm_clones import CloneController
from app.devcluster.kubevirt.vm_controller import MachineController
from app.devcluster.kubevirt.vm_restores import RestoreController
from app.devcluster.kubevirt.vm_snapshots import SnapshotController
from app.devcluster.kubevirt.vmi_controller import InstanceController
from app.devcluster.nodes.daemon_sets import DaemonSetController
from app.devcluster.nodes.image_cache import ImageCache
from app.devcluster.nodes.kubelet import Kubelet
from app.devcluster.nodes.node_lifecycle import NodeLifecycle
from app.devcluster.nodes.node_objects import build_node, reshape, shape_of
from app.devcluster.nodes.node_shapes import NodeShape, change_shape
from app.devcluster.nodes.pod_start import PodStarter
from app.devcluster.nodes.power import NodePower
from app.devcluster.scheduling.ledger import Ledger
from app.devcluster.scheduling.scheduler import Scheduler
from app.devcluster.server.admin import PREFIX, Admin
from app.devcluster.server.answers import quiet_cuts, sign
from app.devcluster.server.api_server import BODY_LIMIT, ApiServer
from app.devcluster.storage.backend import StorageBackend
from app.devcluster.storage.driver import StorageDriver
from app.devcluster.storage.reclaim import Reclaimer
from app.devcluster.storage.simulated import SimulatedStorage
from app.devcluster.storage.storage_classes import storage_objects
from app.devcluster.storage.volume_snapshots import VolumeSnapshotter
from app.devcluster.storage.volumes import VolumeHistory, content_name, volume_name

if TYPE_CHECKING:
    from app.devcluster.guests.opening import OpenGuests

_SHUTDOWN_SECONDS = 1.0
_RESTART_GAP = 2
_ANSWER_SECONDS = 0.05


class DevCluster:
    """`async with DevCluster(config) as cluster:` serves at `cluster.url` until the block ends.

    Order faults through `faults`. `clock` may be a ManualClock that the test advances. `storage` has the data of volumes; by
    default nothing has.
    """

    def __init__(
        self,
        config: DevClusterConfig | None = None,
        *,
        clock: Clock | None = None,
        storage: StorageBackend | None = None,
    ) -> None:
        self.config = config or DevClusterConfig()
        self.clock: Clock = clock or LoopClock()
        self.jitter = Jitter(self.config.seed, self.config.jitter_share)
        self.store = Store()
        self.faults = FaultBook(self.jitter)
        self.guest_hooks: Hooks | None = no_hooks
        """What the hooks of simulated guests do with their claims; None: simulated guests have no channel."""
        self.images = ImageCache(self.store, self.config.image_cache_slots)
        self._state: StateFile | None = None
        self._storage = storage
        self._real: OpenGuests | None = None
        self._opened = AsyncExitStack()
        self._stops: tuple[Callable[[], None], ...] = ()
        self._resumes: tuple[Callable[[], None], ...] = ()
        if isinstance(clock, ManualClock):
            clock.busy.append(lambda: not self.idle)
        self._controllers: tuple[Controller[Any], ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://{self.config.host}:{self._port}"

    def kubeconfig(self, token: str = "") -> Json:
        """A kubeconfig for kubectl and kubernetes_asyncio; `token` is one of the configured tokens, if any."""
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
        if self._open_state():
            self._provide_storage()
        else:
            self._furnish()
        await self._open_guests()
        self.images.load()
        for stored in self.store.each(NODES):
            self._provide_images(stored.obj["metadata"]["name"], shape_of(stored.obj))
        self._build()
        self._share_guests()
        for resume in self._resumes:
            resume()
        await self._listen()

    async def stop(self) -> None:
        self.server.closing.set()
        for watch in tuple(self.server.watches):
            watch.close()
        for task in tuple(self._tasks):
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
        for stop in self._stops:
            stop()
        await self._opened.aclose()
        if self._state is not None:
            self._state.close()

    def reset(self) -> None:
        """Back to a new cluster: no faults, and no objects but the first nodes, namespaces and storage classes."""
        self.faults.lift_all()
        self.store.clear()
        self._furnish()

    def _open_state(self) -> bool:
        """Load the saved state. False where there is none yet."""
        if self.config.state is None:
            return False
        self._state = StateFile(self.config.state)
        found = self._state.load(self.store)
        self._state.attach(self.store, self.clock)
        return found

    async def _open_guests(self) -> None:
        """What really runs guests, and the disks that the saved state knows."""
        if self.config.guests is None:
            return
        from app.devcluster.guests.opening import open_guests  # noqa: PLC0415  # it needs libraries that a plain install does not have

        kinds = (PERSISTENT_VOLUMES, VOLUME_SNAPSHOT_CONTENTS)
        wanted = [stored.key[1] for kind in kinds for stored in self.store.each(kind)]
        self._real = await self._opened.enter_async_context(open_guests(self.config.guests, self.store, wanted))

    def _share_guests(self) -> None:
        """Give each node its share of the guests that this machine holds, or what its shape says where none run."""
        names = [stored.key[1] for stored in self.store.rows(NODES)]
        for number, name in enumerate(names):
            share = self.config.named_nodes.get(name, self.config.node_shape).guests
            if self._real is not None:
                whole, rest = divmod(self._real.most, len(names))
                share = whole + (1 if number < rest else 0)
            self.change_node(name, {"guests": share})

    def _provide_images(self, node: str, shape: NodeShape) -> None:
        self.images.introduce(node, shape.image_slots)
        for image in self.config.images:
            self.images.add(node, image)

    def _build(self) -> None:
        """The parts, and the order in which they take up a saved state."""
        store, durations, jitter, faults = self.store, self.config.durations, self.jitter, self.faults
        api = self.api = Api(store, self.clock, Admission(KubeVirtWebhooks(store), CdiWebhooks(store)), jitter)
        self.ledger = Ledger(store)
        self.disruptions = Disruptions(faults, store, self.clock, durations)
        guests: GuestRuntime = SimulatedGuests(store, self.clock, durations, jitter)
        self.storage: StorageBackend = self._storage or SimulatedStorage(self.clock, durations, jitter)
        if self._real is not None:
            guests, self.storage = self._real.runtime, self._real.storage
            # Real guests have the program on their identity disks, and two guests with one token would be refused.
            self.guest_hooks = None
        self.power = NodePower()
        self.lifecycle = NodeLifecycle(api, durations, self.power, self.images)
        self.crons = DataImportCronController(api, durations)
        starter = PodStarter(api, durations, jitter, self.images, self.power)
        instances = InstanceController(api, durations, jitter, self.disruptions.refuse_pod)
        keeps_memory = self.config.keeps_memory and guests.keeps_memory
        memory = SnapshotMemory(api, guests if keeps_memory else None, faults)
        # A guest that runs speaks for itself.
        channels: list[Controller[Any]] = [] if self._real else [GuestChannels(api, lambda: self.guest_hooks)]
        self._controllers = (
            GarbageCollector(api, durations.collection),
            NamespaceController(api),
            StorageDriver(api, durations, jitter, faults, self.storage),
            Reclaimer(api, PERSISTENT_VOLUMES, CLAIMS, volume_name, "claimRef"),
            VolumeSnapshotter(api, durations, jitter, faults, self.storage),
            Reclaimer(api, VOLUME_SNAPSHOT_CONTENTS, VOLUME_SNAPSHOTS, content_name, "volumeSnapshotRef"),
            StorageProfileController(api),
            DataVolumeController(api, durations, jitter, faults, self.storage),
            DataSourceController(api),
            self.crons,
            DaemonSetController(api, durations, jitter),
            SnapshotController(api, durations, faults, memory),
            RestoreController(api, durations.reaction),
            CloneController(api, durations.reaction),
            PoolController(api, durations.pool_reaction),
            MachineController(api, durations),
            instances,
            Scheduler(api, self.ledger, durations, jitter),
            VirtHandler(api, durations, jitter, faults, self.power, starter, guests),
            Kubelet(api, durations, faults, self.power, starter),
            *channels,
        )
        self.server = ApiServer(
            api,
            Subresources(api, guests),
            ConsoleLogs(api, guests),
            self.disruptions,
            self.config.tokens,
            keeps_memory=keeps_memory,
        )
        faults.listen(instances.resume)
        faults.listen(lambda: self.disruptions.reach_watches(self.server.watches))
        parts: tuple[NodeLifecycle | PodStarter | Controller[Any], ...] = (self.lifecycle, starter, *self._controllers)
        self._resumes = tuple(part.resume for part in parts)
        self._stops = (*(part.stop for part in parts), self.storage.stop, VolumeHistory(api).stop, self.ledger.stop)

    @property
    def watches(self) -> Collection[Watch]:
        """The watches open now."""
        return self.server.watches

    def order_restart(self, *, kill: bool, down: float, starting: float) -> None:
        """Like `restart`, but begins only once the caller's own request has been answered."""
        loop = asyncio.get_running_loop()

        def begin() -> None:
            self._tasks.add(task := loop.create_task(self.restart(kill=kill, down=down, starting=starting)))
            task.add_done_callback(self._tasks.discard)

        self.clock.call_later(_ANSWER_SECONDS, begin)

    async def interrupt(self, *, kill: bool = True) -> None:
        """Stop the API server but not the controllers. New connections are refused; open ones are cut (`kill`) or closed."""
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
        """Start the API server again on its port. Resource versions from before are too old for watches then."""
        self.disruptions.stage = stage
        self.store.rv += _RESTART_GAP
        self.store.forget_history()
        assert self._runner is not None  # noqa: S101  # interrupt() came before
        self._site = web.TCPSite(self._runner, self.config.host, self._port)
        await self._site.start()

    async def restart(self, *, kill: bool = True, down: float = 0.0, starting: float = 0.0) -> None:
        """Stop now, listen again after `down` seconds, be ready `starting` seconds later. Returns at once."""
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
        return all(controller.idle for controller in self._controllers)

    def add_node(self, name: str, shape: NodeShape | None = None) -> None:
        number = sum(1 for _ in self.store.each(NODES))
        shape = shape or self.config.named_nodes.get(name, self.config.node_shape)
        self.store.put(NODES, build_node(name, shape, number, self.clock.now()))
        self._provide_images(name, shape)

    def change_node(self, name: str, given: Mapping[str, Any]) -> None:
        """Give a node other members of its shape. Raises ApiError 404 for an unknown node, ValueError for an impossible shape."""
        stored = self.api.get(NODES, "", name)
        shape = change_shape(shape_of(stored.obj), given)
        self.api.modify(NODES, stored, lambda node: reshape(node, shape))
        self.images.introduce(name, shape.image_slots)

    def add_namespace(self, name: str) -> None:
        if self.store.get(NAMESPACES, "", name) is None:
            self.store.put(NAMESPACES, with_defaults(NAMESPACES, new_object(NAMESPACES, name, "", self.clock.now())))

    def _provide_storage(self) -> None:
        """Create the storage classes that are missing, also in a saved cluster."""
        for resource, obj in storage_objects(self.clock.now()):
            if self.store.get(resource, "", obj["metadata"]["name"]) is None:
                self.store.put(resource, obj)

    def _furnish(self) -> None:
        """Namespaces and nodes of a new cluster."""
        for name in (*self.config.namespaces, "kube-system", "kubevirt"):
            self.add_namespace(name)
        self._provide_storage()
        counted = [f"node{number}" for number in range(1, self.config.nodes + 1)]
        for name in dict.fromkeys([*counted, *self.config.named_nodes]):
            if self.store.get(NODES, "", name) is None:
                self.add_node(name)
        self.store.forget_history()

    async def _listen(self) -> None:
        application = web.Application(client_max_size=BODY_LIMIT, middlewares=[quiet_cuts])
        application.on_response_prepare.append(sign)
        application.router.add_route("*", PREFIX + "{path:.*}", Admin(self).handle)
        application.router.add_route("*", "/{path:.*}", self.server.handle)
        self._runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS, handler_cancellation=True
        )
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, self.config.host, self._port or self.config.port)
        await self._site.start()
        addresses = self._runner.addresses
        self._port = int(addresses[0][1])
