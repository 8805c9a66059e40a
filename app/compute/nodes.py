"""What a cluster reports about its nodes."""

from dataclasses import dataclass

from app.compute.vms import Broken, Restored
from app.domain.nodes import Node


@dataclass(frozen=True, slots=True)
class NodesListed:
    """All nodes of the cluster. `pods_hidden`: why the pods on them cannot be read; None if they can."""

    nodes: tuple[Node, ...]
    pods_hidden: str | None


@dataclass(frozen=True, slots=True)
class NodeChanged:
    """A node, or what runs on it, changed. `node` is complete."""

    node: Node


@dataclass(frozen=True, slots=True)
class NodeGone:
    """One node left the cluster."""

    name: str


NodeEvent = NodesListed | NodeChanged | NodeGone | Broken | Restored
