"""Configuration of a dev cluster."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.devcluster.apiserver.access import Subject
from app.devcluster.durations import Durations
from app.devcluster.guests.settings import RealGuests
from app.devcluster.nodes.image_cache import IMAGE_CACHE_SLOTS
from app.devcluster.nodes.node_shapes import NodeShape


@dataclass(frozen=True, slots=True)
class DevClusterConfig:
    """`port` 0 lets the system choose. Without `tokens` everybody may do everything. `state` is a SQLite file; None keeps
    everything in memory. `named_nodes` are added to the `nodes` (node1, node2, ...), or give one of those another shape.
    The same `seed` gives the same jitter and generated names; durations vary by up to `jitter_share` either way. Every
    node has the `images` cached from the start. `keeps_memory`: snapshots may keep the memory of VMs, which KubeVirt does not.
    node has the `images` cached from the start. With `guests`, VMs really run, and disks are files; None simulates both.
    """

    host: str = "127.0.0.1"
    port: int = 0
    durations: Durations = field(default_factory=Durations)
    nodes: int = 3
    node_shape: NodeShape = field(default_factory=NodeShape)
    named_nodes: Mapping[str, NodeShape] = field(default_factory=dict)
    namespaces: tuple[str, ...] = ("default",)
    images: tuple[str, ...] = ()
    image_cache_slots: int = IMAGE_CACHE_SLOTS
    tokens: Mapping[str, Subject] = field(default_factory=dict)
    state: Path | None = None
    seed: int = 0
    jitter_share: float = 0.1
    keeps_memory: bool = True
    guests: RealGuests | None = None
