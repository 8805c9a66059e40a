"""What the admin API may reach of a cluster."""

from collections.abc import Collection
from typing import Protocol

from app.devcluster.api import Api
from app.devcluster.data_import_crons import DataImportCronController
from app.devcluster.faults import FaultBook
from app.devcluster.image_cache import ImageCache
from app.devcluster.node_agent import NodeAgent
from app.devcluster.node_lifecycle import NodeLifecycle
from app.devcluster.nodes import Ledger, NodeShape
from app.devcluster.objects import Store
from app.devcluster.watch import Watch


class Parts(Protocol):
    store: Store
    faults: FaultBook
    api: Api
    crons: DataImportCronController
    agent: NodeAgent
    lifecycle: NodeLifecycle
    ledger: Ledger
    images: ImageCache

    @property
    def watches(self) -> Collection[Watch]: ...

    def add_node(self, name: str, shape: NodeShape | None = None) -> None: ...

    def add_namespace(self, name: str) -> None: ...

    def order_restart(self, *, kill: bool, down: float, starting: float) -> None: ...

    def reset(self) -> None: ...
