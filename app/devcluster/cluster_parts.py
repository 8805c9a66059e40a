"""What the admin API may reach of a cluster."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.objects import Store
from app.devcluster.apiserver.watch import Watch
from app.devcluster.cdi.data_import_crons import DataImportCronController
from app.devcluster.faults.faults import FaultBook
from app.devcluster.nodes.image_cache import ImageCache
from app.devcluster.nodes.node_agent import NodeAgent
from app.devcluster.nodes.node_lifecycle import NodeLifecycle
from app.devcluster.nodes.node_shapes import NodeShape
from app.devcluster.nodes.nodes import Ledger


class Parts(Protocol):
    store: Store
    api: Api
    crons: DataImportCronController
    faults: FaultBook
    agent: NodeAgent
    lifecycle: NodeLifecycle
    ledger: Ledger
    images: ImageCache

    @property
    def watches(self) -> Collection[Watch]: ...

    def add_node(self, name: str, shape: NodeShape | None = None) -> None: ...

    def change_node(self, name: str, given: Mapping[str, Any]) -> None: ...

    def add_namespace(self, name: str) -> None: ...

    def order_restart(self, *, kill: bool, down: float, starting: float) -> None: ...

    def reset(self) -> None: ...
