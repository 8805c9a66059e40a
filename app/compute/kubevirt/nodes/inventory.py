"""Combines the watch of nodes and the watch of pods: what each node offers, and what its pods use of it. Pure.

Of a pod only its requests are kept, counted as kube-scheduler counts them (Kubernetes 1.36): containers that run side by side are
added up; an init container that ends counts if it alone requests more; a request of the pod as a whole replaces those of its
containers; a pod that has ended uses nothing.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import orjson

from app.compute.kubevirt import labels
from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.templates.demand import REQUIRED, Amounts, add, amounts_of, counted, raise_to
from app.domain.nodes import CPU, HUGEPAGES, MEMORY, Node, Taint

_CREATED_BY = "kubevirt.io/created-by"  # on a launcher pod: the UID of its VMI (KubeVirt v1.9.0)
_ENDED = frozenset({"Succeeded", "Failed"})
_MOST_IMAGES = 100  # a kubelet reports 50 by default


@dataclass(frozen=True, slots=True)
class _Placed:
    """One pod on a node. `pinned`: its exclusive CPUs, in thousandths. For `vms` and `repels` see `Node`."""

    node: str
    amounts: Mapping[str, int]
    pinned: int
    vms: tuple[str, ...]
    repels: bool


@dataclass(slots=True)
class _Load:
    used: Counter[str] = field(default_factory=Counter)
    pinned: int = 0
    vms: Counter[str] = field(default_factory=Counter)
    repelling: int = 0


class NodeInventory:
    """Nodes by name, and what each of their pods uses, by the pod's UID. `namespace`: where our VMs are."""

    def __init__(self, *, namespace: str = "") -> None:
        self._namespace = namespace
        self._nodes: dict[str, dict[str, Any]] = {}
        self._pods: dict[str, _Placed] = {}
        self._loads: dict[str, _Load] = {}
        self.pods_hidden: str | None = None
        """Why pods cannot be read; None if they can."""

    def hide_pods(self, reason: str | None) -> bool:
        """Pods cannot be read, or can again (None). Whether that is news."""
        is_news = self.pods_hidden != reason
        self.pods_hidden = reason
        if reason is not None:
            self._pods.clear()
            self._loads.clear()
        return is_news

    def nodes(self) -> tuple[Node, ...]:
        return tuple(node for name in sorted(self._nodes) if (node := self.node(name)) is not None)

    def node(self, name: str) -> Node | None:
        facts = self._nodes.get(name)
        if facts is None:
            return None
        load = self._loads.get(name, _Load())
        return Node(
            name=name,
            used={key: amount for key, amount in load.used.items() if amount} if self.pods_hidden is None else None,
            pinned=load.pinned if Node("", labels=facts["labels"]).pins_cpus else 0,
            vms=frozenset(load.vms),
            repels=load.repelling > 0,
            **facts,
        )

    def put_node(self, node: Manifest) -> tuple[str, ...]:
        """Returns the names of the nodes that changed by it."""
        name = str(node["metadata"]["name"])
        facts = _facts(node)
        if self._nodes.get(name) == facts:
            return ()
        self._nodes[name] = facts
        return (name,)

    def drop_node(self, name: str) -> None:
        self._nodes.pop(name, None)

    def put_pod(self, pod: Manifest) -> tuple[str, ...]:
        """Returns the names of the nodes that changed by it."""
        return self._replace_pod(str(pod["metadata"]["uid"]), _read_pod(pod, self._namespace))

    def drop_pod(self, uid: str) -> tuple[str, ...]:
        """Returns the names of the nodes that changed by it."""
        return self._replace_pod(uid, None)

    def _replace_pod(self, uid: str, after: _Placed | None) -> tuple[str, ...]:
        before = self._pods.get(uid)
        if before == after:
            return ()
        if before is not None:
            del self._pods[uid]
            self._count(before, -1)
        if after is not None:
            self._pods[uid] = after
            self._count(after, 1)
        return tuple(dict.fromkeys(each.node for each in (before, after) if each is not None))

    def _count(self, pod: _Placed, sign: int) -> None:
        load = self._loads.setdefault(pod.node, _Load())
        for name, amount in pod.amounts.items():
            load.used[name] += sign * amount
        load.pinned += sign * pod.pinned
        load.repelling += sign * pod.repels
        for vm in pod.vms:
            load.vms[vm] += sign
            if not load.vms[vm]:
                del load.vms[vm]


def _facts(node: Manifest) -> dict[str, Any]:
    metadata, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    return {
        "uid": str(metadata.get("uid") or ""),
        "labels": {str(key): str(value) for key, value in (metadata.get("labels") or {}).items()},
        "taints": tuple(
            Taint(str(item.get("key") or ""), str(item.get("value") or ""), str(item.get("effect") or ""))
            for item in spec.get("taints") or ()
        ),
        "cordoned": bool(spec.get("unschedulable")),
        "conditions": {
            str(item["type"]): str(item.get("status") or "Unknown") for item in status.get("conditions") or ()
        },
        "capacity": _offered(status.get("capacity")),
        "allocatable": _offered(status.get("allocatable")),
        "images": tuple(
            (min(names, key=len), int(item.get("sizeBytes") or 0))
            for item in (status.get("images") or ())[:_MOST_IMAGES]
            if (names := [str(name) for name in item.get("names") or ()])
        ),
    }


def _offered(amounts: object) -> dict[str, int]:
    """Rounded up, as the scheduler does it. `pods` is a resource like the others."""
    read = amounts_of(amounts)
    return {name: value for name, value in counted(read).items() if name in read}


def _read_pod(pod: Manifest, namespace: str) -> _Placed | None:
    """None if it uses nothing: it has no node yet, or it has ended."""
    spec = pod.get("spec") or {}
    node = spec.get("nodeName")
    if not node or (pod.get("status") or {}).get("phase") in _ENDED:
        return None
    found = pod["metadata"].get("labels") or {}
    ours = found.get(labels.MANAGED_BY) == labels.MANAGER
    vms = tuple(str(found[key]) for key in (labels.VM_ID, _CREATED_BY) if ours and found.get(key))
    is_guaranteed = (pod.get("status") or {}).get("qosClass") == "Guaranteed"
    amounts, pinned = _usage(_resources_in(spec))
    return _Placed(_shared(str(node)), amounts, pinned if is_guaranteed else 0, vms, _repels(pod, namespace))


def _resources_in(spec: Manifest) -> bytes:
    """What counts of a pod's spec, as JSON."""
    part: Manifest = {key: spec[key] for key in ("resources", "overhead") if spec.get(key)}
    for key in ("containers", "initContainers"):
        found = spec.get(key) or ()
        part[key] = [{"restartPolicy": one.get("restartPolicy"), "resources": one.get("resources")} for one in found]
    return orjson.dumps(part)


@lru_cache(maxsize=1024)
def _usage(resources: bytes) -> tuple[Mapping[str, int], int]:
    """What a pod uses, and its exclusive CPUs if it is Guaranteed. Pods of one kind share it: there are thousands of them."""
    spec = orjson.loads(resources)
    return MappingProxyType(counted(_requests(spec))), _pinned(spec)


@lru_cache(maxsize=4096)
def _shared(name: str) -> str:
    """Equal names as one object."""
    return name


def _repels(pod: Manifest, namespace: str) -> bool:
    """Whether the pod has a required anti-affinity that covers pods of that namespace. Which pods it selects is not compared.

    A term that names no namespace covers the pod's own (Kubernetes 1.36, `PodAffinityTerm`).
    """
    rules = ((pod.get("spec") or {}).get("affinity") or {}).get("podAntiAffinity") or {}
    own = pod["metadata"].get("namespace")
    return any(
        term.get("namespaceSelector") is not None or namespace in (term.get("namespaces") or (own,))
        for term in rules.get(REQUIRED) or ()
    )


def _requests(spec: Manifest) -> Amounts:
    total: Amounts = {}
    for container in spec.get("containers") or ():
        add(total, _asked(container))
    beside: Amounts = {}
    peak: Amounts = {}
    for container in spec.get("initContainers") or ():
        asked = _asked(container)
        if container.get("restartPolicy") == "Always":
            add(total, asked)
            add(beside, asked)
            raise_to(peak, beside)
        else:
            add(asked, beside)
            raise_to(peak, asked)
    raise_to(total, peak)
    # A pod as a whole may request CPU, memory and hugepages, and nothing else (Kubernetes 1.34).
    whole = _asked(spec)
    total.update(
        {name: amount for name, amount in whole.items() if name in {CPU, MEMORY} or name.startswith(HUGEPAGES)}
    )
    add(total, amounts_of(spec.get("overhead")))
    return total


def _asked(holder: Manifest) -> Amounts:
    """A limit without a request counts as the request."""
    resources = holder.get("resources") or {}
    given = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return amounts_of(given)


def _pinned(spec: Manifest) -> int:
    """With a static CPU manager, containers of a Guaranteed pod have their whole CPUs to themselves (Kubernetes 1.36)."""
    sidecars = [item for item in spec.get("initContainers") or () if item.get("restartPolicy") == "Always"]
    amounts = [_asked(container).get(CPU, Fraction(0)) for container in (*(spec.get("containers") or ()), *sidecars)]
    return sum(int(amount) * 1000 for amount in amounts if amount.denominator == 1)
