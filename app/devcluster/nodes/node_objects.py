"""The objects of nodes: built from a shape, and given another one."""

import json
from datetime import datetime
from decimal import Decimal

from app.devcluster.apiserver.objects import annotations_of, new_object
from app.devcluster.apiserver.quantities import Quantity, whole
from app.devcluster.apiserver.registry import NODES
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.times import stamp
from app.devcluster.nodes.node_shapes import NodeShape, change_shape

SHAPE = "devcluster/shape"
"""The annotation with the shape of a node, so that single members can be changed."""


def build_node(name: str, shape: NodeShape, number: int, now: datetime) -> Json:
    network = f"10.244.{number % 256}.0/24"
    spec: Json = {"podCIDR": network, "podCIDRs": [network], "providerID": f"devcluster://{name}"}
    taints = shape.taint_objects()
    if taints:
        spec["taints"] = taints
    zone = shape.zone or f"zone-{'abc'[number % 3]}"
    annotations = {
        "kubevirt.io/heartbeat": stamp(now),
        "node.alpha.kubernetes.io/ttl": "0",
        SHAPE: json.dumps({**shape.as_json(), "zone": zone}),
    }
    return {
        **new_object(NODES, name, "", now, labels=_labels(name, shape, zone), annotations=annotations),
        "spec": spec,
        "status": {
            **_room(shape),
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


def shape_of(node: Json) -> NodeShape:
    """The shape of the node; the default for a node of an old saved cluster, which has none."""
    kept = annotations_of(node).get(SHAPE)
    return change_shape(NodeShape(), json.loads(kept)) if kept else NodeShape()


def reshape(node: Json, shape: NodeShape) -> Json:
    """The node with another shape; labels and taints that are not from its old shape stay."""
    metadata, old = node["metadata"], shape_of(node)
    name = metadata["name"]
    zone = shape.zone or metadata["labels"]["topology.kubernetes.io/zone"]
    brought = _labels(name, old, zone)
    kept = {key: value for key, value in metadata["labels"].items() if key not in brought}
    labels = {**kept, **_labels(name, shape, zone)}
    labels["kubevirt.io/schedulable"] = metadata["labels"].get("kubevirt.io/schedulable", "true")
    taints = [item for item in node["spec"].get("taints") or () if item not in old.taint_objects()]
    spec = {**node["spec"], "taints": [*taints, *shape.taint_objects()]}
    if not spec["taints"]:
        del spec["taints"]
    annotations = {**annotations_of(node), SHAPE: json.dumps({**shape.as_json(), "zone": zone})}
    return {
        **node,
        "metadata": {**metadata, "labels": labels, "annotations": annotations},
        "spec": spec,
        "status": {**node["status"], **_room(shape)},
    }


def _labels(name: str, shape: NodeShape, zone: str) -> dict[str, str]:
    host = shape.cpu_models[0]
    labels = {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        **{f"cpu-model.node.kubevirt.io/{model}": "true" for model in shape.cpu_models},
        **{f"cpu-model-migration.node.kubevirt.io/{model}": "true" for model in shape.cpu_models},
        **{f"cpu-feature.node.kubevirt.io/{feature}": "true" for feature in shape.cpu_features},
        "cpu-timer.node.kubevirt.io/tsc-frequency": "2600000000",
        "cpu-timer.node.kubevirt.io/tsc-scalable": "true",
        "cpu-vendor.node.kubevirt.io/Intel": "true",
        f"host-model-cpu.node.kubevirt.io/{host}": "true",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubevirt.io/schedulable": "true",
        "machine-type.node.kubevirt.io/pc-q35-rhel9.6.0": "true",
        "machine-type.node.kubevirt.io/q35": "true",
        "node-role.kubernetes.io/worker": "",
        "topology.kubernetes.io/region": shape.region,
        "topology.kubernetes.io/zone": zone,
    }
    # virt-handler sets both labels, to `false` where the CPU manager policy of the kubelet is not static.
    labels["cpumanager"] = labels["kubevirt.io/cpumanager"] = "true" if shape.cpumanager else "false"
    if shape.realtime:
        labels["kubevirt.io/realtime"] = "true"
    return {**labels, **shape.labels}


def _room(shape: NodeShape) -> Json:
    """The members `capacity` and `allocatable` of the status."""
    taken = whole(shape.hugepages_2mi) + whole(shape.hugepages_1gi)
    common: Json = {
        "devices.kubevirt.io/kvm": str(Quantity(Decimal(shape.guests), binary=False)),
        **{f"devices.kubevirt.io/{device}": "1k" for device in ("tun", "vhost-net", "vhost-vsock")},
        "ephemeral-storage": "500Gi",
        "hugepages-1Gi": shape.hugepages_1gi,
        "hugepages-2Mi": shape.hugepages_2mi,
        "pods": str(shape.pods),
    }
    usable = _usable(whole(shape.memory) - taken)
    return {
        "capacity": {"cpu": str(shape.cpu), "memory": shape.memory, **common},
        "allocatable": {"cpu": str(max(1, shape.cpu - 1)), "memory": f"{usable}Mi", **common},
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


def _usable(memory: int) -> int:
    """Mebibytes left for pods; the system keeps 2 GiB, or a sixteenth of a small node."""
    return max(0, memory - min(2 * 2**30, memory // 16)) // 2**20
