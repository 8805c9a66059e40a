"""What a cluster reports about its nodes."""

from dataclasses import dataclass

from app.compute.vms import Broken
from app.domain.nodes import Node


@dataclass(frozen=True, slots=True)
class NodesListed:
    """All nodes there are. `pods_hidden`: why what runs on them cannot be seen; None: it can."""

    nodes: tuple[Node, ...]
    pods_hidden: str | None


@dataclass(frozen=True, slots=True)
class NodeChanged:
    """One node, or what runs on it, changed: all that is known of it now."""

    node: Node


@dataclass(frozen=True, slots=True)
class NodeGone:
    """One node left the cluster."""

    name: str


NodeEvent = NodesListed | NodeChanged | NodeGone | Broken
