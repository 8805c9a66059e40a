"""The capacity and properties of a node, as given on the command line, in the configuration or by the admin API."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from app.devcluster.apiserver.quantities import is_quantity, parse_quantity
from app.devcluster.apiserver.status import Json

_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_TAINT = re.compile(rf"(?P<key>[^=:\s]+)(=(?P<value>[^=:\s]*))?:(?P<effect>{'|'.join(_EFFECTS)})")
_COUNTS = frozenset({"cpu", "pods"})
_QUANTITIES = frozenset({"memory", "hugepages_2mi", "hugepages_1gi"})
_LISTS = frozenset({"taints", "cpu_models", "cpu_features"})
_FLAGS = frozenset({"cpumanager", "realtime"})


@dataclass(frozen=True, slots=True)
class NodeShape:
    """Memory and hugepages are Kubernetes quantities, `cpu` is a number of CPUs; the system keeps one CPU and some memory.

    Nodes without a `zone` are spread over zone-a, zone-b and zone-c in turn. `taints` have the form of kubectl
    (`key=value:NoSchedule`). The first of `cpu_models` is that of the host. `labels` override all other labels.
    `image_slots` is the size of the image cache; None for the default of the cluster. `guests` is the number of VMs that it can
    run at once, told as its devices for virtualization.
    """

    cpu: int = 32
    memory: str = "256Gi"
    hugepages_2mi: str = "64Gi"
    hugepages_1gi: str = "0"
    pods: int = 250
    zone: str = ""
    region: str = "devcluster"
    cpumanager: bool = True
    realtime: bool = False
    cpu_models: tuple[str, ...] = ("Skylake-Server",)
    cpu_features: tuple[str, ...] = ()
    taints: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    image_slots: int | None = None
    guests: int = 1000

    def taint_objects(self) -> list[Json]:
        return [_parse_taint(text) for text in self.taints]

    def as_json(self) -> Json:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


SHAPE_FIELDS = frozenset(item.name for item in fields(NodeShape))


def change_shape(shape: NodeShape, given: Mapping[str, Any]) -> NodeShape:
    """The shape with the given members changed. Raises ValueError for an unknown member or an impossible value."""
    for name, value in given.items():
        if name not in SHAPE_FIELDS:
            raise ValueError(f"node field '{name}' is not known; use name, {', '.join(sorted(SHAPE_FIELDS))}")
        problem = _problem(name, value)
        if problem:
            raise ValueError(f"'{name}' must be {problem}")
    members: dict[str, Any] = {name: tuple(value) if name in _LISTS else value for name, value in given.items()}
    changed = replace(shape, **members)
    pages = parse_quantity(changed.hugepages_2mi) + parse_quantity(changed.hugepages_1gi)
    if pages > parse_quantity(changed.memory):
        raise ValueError("'hugepages_2mi' and 'hugepages_1gi' must fit into 'memory' together")
    return changed


def parse_shape(text: str, shape: NodeShape) -> tuple[str, NodeShape]:
    """Name and shape of a node from `name,member=value,...`; missing members are those of `shape`.

    Lists are written with `+` between their members, labels as `label.<key>=<value>`. Raises ValueError.
    """
    name, *parts = text.split(",")
    given: dict[str, Any] = {}
    for part in parts:
        member, found, value = part.partition("=")
        if not found:
            raise ValueError(f"'{part}' is not member=value; write a node as name,cpu=16,hugepages_1gi=8Gi")
        member = member.replace("-", "_") if not member.startswith("label.") else member
        if member.startswith("label."):
            given.setdefault("labels", {})[member.removeprefix("label.")] = value
        elif member in _LISTS:
            given[member] = value.split("+") if value else []
        elif member in _COUNTS or member in {"image_slots", "guests"}:
            given[member] = int(value) if value.isdecimal() else value
        elif member in _FLAGS:
            given[member] = {"true": True, "false": False}.get(value, value)
        else:
            given[member] = value
    if not name:
        raise ValueError(f"'{text}' names no node; write it first, as in big,cpu=64")
    return name, change_shape(shape, given)


def _problem(name: str, value: object) -> str:
    """What the value must be; empty where it is valid."""
    if name in _COUNTS:
        return "" if _is_count(value) else "a whole number above 0"
    if name == "guests":
        return "" if value == 0 or _is_count(value) else "a whole number, not below 0"
    if name in _QUANTITIES:
        return "" if is_quantity(value) and parse_quantity(value) >= 0 else "a quantity such as 64Gi"
    if name in _FLAGS:
        return "" if isinstance(value, bool) else "true or false"
    if name == "image_slots":
        return "" if value is None or _is_count(value) else "a whole number above 0, or null"
    if name == "labels":
        texts = isinstance(value, Mapping) and all(isinstance(item, str) for pair in value.items() for item in pair)
        return "" if texts else "an object of strings"
    if name in _LISTS:
        texts = isinstance(value, list | tuple) and all(isinstance(item, str) and item for item in value)
        if name == "cpu_models":
            return "" if texts and value else "a list of CPU models, the host's own first"
        if name == "taints":
            fit = texts and isinstance(value, list | tuple) and all(_TAINT.fullmatch(item) for item in value)
            return "" if fit else "a list of taints such as key=value:NoSchedule"
        return "" if texts else "a list of strings"
    return "" if isinstance(value, str) else "a string"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _parse_taint(text: str) -> Json:
    match = _TAINT.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is not a taint; write one such as key=value:NoSchedule")
    taint = {"key": match["key"], "effect": match["effect"]}
    return {**taint, "value": match["value"]} if match["value"] else taint
