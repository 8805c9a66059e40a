"""Nodes: their objects, what is free on each, and which images they hold."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from app.devcluster.objects import Change, Store
from app.devcluster.pod_requests import pod_requests
from app.devcluster.pod_terms import has_pod_terms
from app.devcluster.quantities import whole
from app.devcluster.registry import PODS
from app.devcluster.status import Json
from app.devcluster.times import stamp

_PODS_PER_NODE = 250


@dataclass(frozen=True, slots=True)
class NodeShape:
    """What one node offers. Memory and hugepages as Kubernetes quantities; `cpu` in whole CPUs."""

    cpu: int = 32
    memory: str = "256Gi"
    hugepages_2mi: str = "64Gi"
    hugepages_1gi: str = "0"
    pods: int = _PODS_PER_NODE


def build_node(name: str, shape: NodeShape, number: int, now: datetime) -> Json:
    taken = whole(shape.hugepages_2mi) + whole(shape.hugepages_1gi)
    free = whole(shape.memory) - taken
    devices = {f"devices.kubevirt.io/{device}": "1k" for device in ("kvm", "tun", "vhost-net", "vhost-vsock")}
    common: Json = {
        **devices,
        "ephemeral-storage": "500Gi",
        "hugepages-1Gi": shape.hugepages_1gi,
        "hugepages-2Mi": shape.hugepages_2mi,
        "pods": str(shape.pods),
    }
    labels = {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        "cpu-model-migration.node.kubevirt.io/Skylake-Server": "true",
        "cpu-model.node.kubevirt.io/Skylake-Server": "true",
        "cpu-timer.node.kubevirt.io/tsc-frequency": "2600000000",
        "cpu-timer.node.kubevirt.io/tsc-scalable": "true",
        "cpu-vendor.node.kubevirt.io/Intel": "true",
        "cpumanager": "true",
        "host-model-cpu.node.kubevirt.io/Skylake-Server": "true",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubevirt.io/cpumanager": "true",
        "kubevirt.io/schedulable": "true",
        "machine-type.node.kubevirt.io/pc-q35-rhel9.6.0": "true",
        "machine-type.node.kubevirt.io/q35": "true",
        "node-role.kubernetes.io/worker": "",
        "topology.kubernetes.io/region": "devcluster",
        "topology.kubernetes.io/zone": f"zone-{'abc'[number % 3]}",
    }
    network = f"10.244.{number % 256}.0/24"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": stamp(now),
            "labels": labels,
            "annotations": {"kubevirt.io/heartbeat": stamp(now), "node.alpha.kubernetes.io/ttl": "0"},
        },
        "spec": {"podCIDR": network, "podCIDRs": [network], "providerID": f"devcluster://{name}"},
        "status": {
            "capacity": {"cpu": str(shape.cpu), "memory": shape.memory, **common},
            "allocatable": {"cpu": str(max(1, shape.cpu - 1)), "memory": f"{_usable(free)}Mi", **common},
            "conditions": ready_conditions(now),
            "addresses": [
                {"type": "InternalIP", "address": f"192.0.2.{10 + number % 240}"},
                {"type": "Hostname", "address": name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
            "nodeInfo": {
                "machineID": name,
                "systemUUID": name,
                "bootID": name,
                "kernelVersion": "6.1.0-devcluster",
                "osImage": "simulated",
                "containerRuntimeVersion": "simulated://0",
                "kubeletVersion": "v1.36.2",
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": "amd64",
            },
        },
    }


def ready_conditions(now: datetime, *, alive: bool = True) -> list[Json]:
    """The four conditions of a node; all Unknown where its kubelet no longer reports."""
    rows = (
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    )
    return [
        {
            "type": kind,
            "status": status if alive else "Unknown",
            "lastHeartbeatTime": stamp(now),
            "lastTransitionTime": stamp(now),
            "reason": reason if alive else "NodeStatusUnknown",
            "message": message if alive else "Kubelet stopped posting node status.",
        }
        for kind, status, reason, message in rows
    ]


class Ledger:
    """What pods ask for on each node, kept up to date from the store's changes."""

    def __init__(self, store: Store) -> None:
        self._asked: dict[str, tuple[str, dict[str, int]]] = {}
        self._pods: dict[str, dict[str, Json]] = {}
        self._with_terms: dict[str, dict[str, Json]] = {}
        self._used: dict[str, dict[str, int]] = {}
        for stored in store.each(PODS):
            self._enter(stored.obj)
        self._unsubscribe = store.subscribe(self._notice)

    def stop(self) -> None:
        self._unsubscribe()

    def used(self, node: str) -> dict[str, int]:
        return self._used.get(node, {})

    def pods_on(self, node: str) -> Collection[Json]:
        """Pods that are bound there and have not ended; those that are going away are among them."""
        return self._pods.get(node, {}).values()

    def pods_with_terms(self, node: str) -> Collection[Json]:
        """Those of them that have affinity or anti-affinity to other pods."""
        return self._with_terms.get(node, {}).values()

    def _notice(self, change: Change) -> None:
        if change.resource is not PODS:
            return
        if change.new is None:
            self._leave(change.last.obj["metadata"]["uid"])
        else:
            self._enter(change.new.obj)

    def _enter(self, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        node = pod["spec"].get("nodeName")
        ended = pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
        if not node or ended:
            self._leave(uid)
            return
        self._pods.setdefault(node, {})[uid] = pod
        if has_pod_terms(pod):
            self._with_terms.setdefault(node, {})[uid] = pod
        if uid in self._asked:
            return
        asked = pod_requests(pod)
        self._asked[uid] = (node, asked)
        used = self._used.setdefault(node, {})
        for name, amount in asked.items():
            used[name] = used.get(name, 0) + amount

    def _leave(self, uid: str) -> None:
        node, asked = self._asked.pop(uid, ("", {}))
        self._pods.get(node, {}).pop(uid, None)
        self._with_terms.get(node, {}).pop(uid, None)
        used = self._used.get(node, {})
        for name, amount in asked.items():
            used[name] -= amount


def _usable(memory: int) -> int:
    """Mebibytes left for pods; the system keeps 2 GiB, or a sixteenth of a small node."""
    return max(0, memory - min(2 * 2**30, memory // 16)) // 2**20
