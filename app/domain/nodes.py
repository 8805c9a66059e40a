"""A node as the scheduler sees it, and what the pod of one VM asks of it. Pure.

Amounts are counted as kube-scheduler counts them (Kubernetes 1.36): CPU in thousandths, all else in whole units, which for
memory and hugepages are bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

CPU, MEMORY, PODS = "cpu", "memory", "pods"
HUGEPAGES = "hugepages-"
DEVICES = "devices.kubevirt.io/"
KVM = f"{DEVICES}kvm"
SCHEDULABLE = "kubevirt.io/schedulable"
CPU_MANAGERS = ("kubevirt.io/cpumanager", "cpumanager")
"""KubeVirt 1.8 and later, and before."""
ZONE = "topology.kubernetes.io/zone"
CORDON = "node.kubernetes.io/unschedulable"

_KEEPS_AWAY = frozenset({"NoSchedule", "NoExecute"})
# Put on a node for what it goes through, by Kubernetes, cloud providers, KubeVirt's drains and autoscalers, not for what it is.
_PASSING = (
    "node.kubernetes.io/",
    "node.cloudprovider.kubernetes.io/",
    "kubevirt.io/drain",
    "ToBeDeletedByClusterAutoscaler",
)


@dataclass(frozen=True, slots=True)
class Taint:
    key: str
    value: str = ""
    effect: str = "NoSchedule"

    @property
    def is_passing(self) -> bool:
        return self.key.startswith(_PASSING)


@dataclass(frozen=True, slots=True)
class Toleration:
    """An empty key (with Exists) tolerates every taint, an empty effect every effect."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def covers(self, taint: Taint) -> bool:
        if self.effect not in ("", taint.effect) or self.key not in ("", taint.key):
            return False
        return self.operator == "Exists" or (self.operator == "Equal" and self.value == taint.value)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement of a label, or of a node's name (`key` is `metadata.name` then)."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value in self.values
            case "NotIn":
                return value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
            case "Gt" | "Lt":
                return self._compares(value)
            case _:
                return False

    def _compares(self, value: str | None) -> bool:
        try:
            left, right = int(value or ""), int(self.values[0] if self.values else "")
        except ValueError:
            return False
        return left > right if self.operator == "Gt" else left < right


@dataclass(frozen=True, slots=True)
class NodeTerm:
    """All of its requirements hold; one without any holds nowhere."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """`used` is what the pods on it ask for; None: they cannot be seen. `pinned`: the CPUs of it (in thousandths) that belong
    to one pod alone. `vms`: our VMs whose pods are on it, by their ids and by the UIDs of their instances. `repels`: pods on it
    may keep ours away from it, or from what it is in, by an anti-affinity of their own.
    """

    name: str
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    cordoned: bool = False
    conditions: Mapping[str, str] = field(default_factory=dict)
    capacity: Mapping[str, int] = field(default_factory=dict)
    allocatable: Mapping[str, int] = field(default_factory=dict)
    images: tuple[tuple[str, int], ...] = ()
    used: Mapping[str, int] | None = field(default_factory=dict)
    pinned: int = 0
    vms: frozenset[str] = frozenset()
    repels: bool = False

    @property
    def zone(self) -> str | None:
        return self.labels.get(ZONE)

    @property
    def is_ready(self) -> bool:
        return self.conditions.get("Ready") == "True"

    @property
    def pins_cpus(self) -> bool:
        return any(self.labels.get(key) == "true" for key in CPU_MANAGERS)

    @property
    def takes_vms(self) -> bool:
        return self.is_ready and not self.cordoned and self.labels.get(SCHEDULABLE) == "true"

    def free(self, name: str) -> int:
        """Of what it offers; all of it where its pods cannot be seen. Never below zero."""
        return max(0, self.allocatable.get(name, 0) - (self.used or {}).get(name, 0))


@dataclass(frozen=True, slots=True)
class Demand:
    """What the pod of one VM asks of a node. `terms` None: any node; else one of them must hold.

    `unseen` says in words what it also asks that is not compared here.
    """

    amounts: Mapping[str, int]
    selector: Mapping[str, str] = field(default_factory=dict)
    terms: tuple[NodeTerm, ...] | None = None
    tolerations: tuple[Toleration, ...] = ()
    unseen: tuple[str, ...] = ()

    def tolerates(self, taint: Taint) -> bool:
        return any(toleration.covers(taint) for toleration in self.tolerations)

    def untolerated(self, taints: Iterable[Taint]) -> tuple[Taint, ...]:
        return tuple(taint for taint in taints if taint.effect in _KEEPS_AWAY and not self.tolerates(taint))

    def accepts_terms(self, node: Node) -> bool:
        if self.terms is None:
            return True
        name = {"metadata.name": node.name}
        return any(
            (term.labels or term.fields)
            and all(each.holds(node.labels) for each in term.labels)
            and all(each.holds(name) for each in term.fields)
            for term in self.terms
        )
