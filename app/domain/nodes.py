"""A node as the scheduler treats it, and what the pod of one VM requests from it. Pure.

Amounts are counted as in kube-scheduler (Kubernetes 1.36): CPU in thousandths, everything else in whole units, which are bytes for
memory and hugepages.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

CPU, MEMORY, PODS = "cpu", "memory", "pods"
HUGEPAGES = "hugepages-"
PAGE_BYTES = {"2Mi": 2**21, "1Gi": 2**30, "64Ki": 2**16, "32Mi": 2**25, "16Gi": 2**34}
DEVICES = "devices.kubevirt.io/"
KVM = f"{DEVICES}kvm"
SCHEDULABLE = "kubevirt.io/schedulable"
CPU_MANAGERS = ("kubevirt.io/cpumanager", "cpumanager")
"""The label in KubeVirt 1.8 and later, and the one before."""
ZONE = "topology.kubernetes.io/zone"
CORDON = "node.kubernetes.io/unschedulable"

_KEEPS_AWAY = frozenset({"NoSchedule", "NoExecute"})
# Taints for temporary states, set by Kubernetes, cloud providers, KubeVirt's drains and autoscalers.
_PASSING = (
    "node.kubernetes.io/",
    "node.cloudprovider.kubernetes.io/",
    "kubevirt.io/drain",
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
)
# Those of them that say that the node is about to lose its pods. Others, such as memory pressure, keep new pods away for a while.
_GOING = frozenset(
    {
        CORDON,
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
        "node.kubernetes.io/out-of-service",
        "node.cloudprovider.kubernetes.io/shutdown",
        "kubevirt.io/drain",
        "ToBeDeletedByClusterAutoscaler",
        "karpenter.sh/disrupted",
    }
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
    """A requirement on a label, or on the node's name; then `key` is `metadata.name`."""

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
    """Matches a node if all requirements hold. A term without requirements matches no node."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """`used`: what the pods on it request; None if they cannot be read. `pinned`: CPUs that are exclusive to one pod, in thousandths.
    `vms`: our VMs with pods on it, by their ids and by the UIDs of their instances. `repels`: the anti-affinity of pods on it may
    keep our pods away from the node or its zone.
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
    def may_be_going(self) -> bool:
        """Whether it is going for VMs that tolerate nothing; see `is_going_for`."""
        return self.is_going_for(())

    def is_going_for(self, tolerations: Iterable[Toleration]) -> bool:
        """Whether the node is about to lose its VMs, for VMs with these tolerations: it is cordoned, which comes before a drain, or
        it has a taint that says so, or one that evicts pods (NoExecute). VMs that tolerate that stay there, and others like them
        may be put there.
        """
        taints = (*self.taints, Taint(CORDON)) if self.cordoned else self.taints
        given = tuple(tolerations)
        return any(
            (taint.effect == "NoExecute" or (taint.effect == "NoSchedule" and taint.key in _GOING))
            and not any(toleration.covers(taint) for toleration in given)
            for taint in taints
        )

    @property
    def pins_cpus(self) -> bool:
        return any(self.labels.get(key) == "true" for key in CPU_MANAGERS)

    @property
    def takes_vms(self) -> bool:
        return self.is_ready and not self.cordoned and self.labels.get(SCHEDULABLE) == "true"

    def free(self, name: str) -> int:
        """How much of the resource is free; all of it if the pods cannot be read. Never below zero."""
        return max(0, self.allocatable.get(name, 0) - (self.used or {}).get(name, 0))


@dataclass(frozen=True, slots=True)
class Demand:
    """What the pod of one VM requests from a node. At least one of the `terms` must match; None matches any node.

    `unseen`: other requests of the pod that are not compared here, in words.
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
