"""Examples of answers about nodes, for the OpenAPI document. A test holds each to the shape that it is an example of."""

from typing import Any, Final

Json = dict[str, Any]
_GI = 2**30

SIGHT: Final[Json] = {"age_seconds": 1.2, "stale_reason": None, "pods_hidden": None}
NODE: Final[Json] = {
    "name": "node1",
    "zone": "zone-a",
    "ready": True,
    "takes_vms": True,
    "cordoned": False,
    "cpumanager": True,
    "taints": [],
    "conditions": {"Ready": "True", "MemoryPressure": "False"},
    "cpus": {"capacity": 32.0, "allocatable": 31.0, "pinned": 8.0, "shared": 1.5, "free": 21.5},
    "memory": {"capacity": 256 * _GI, "allocatable": 190 * _GI, "used": 24 * _GI, "free": 166 * _GI},
    "hugepages": {"1Gi": {"allocatable": 8, "used": 4, "free": 4}},
    "kvm": {"capacity": 1000, "allocatable": 1000, "used": 3, "free": 997},
    "pods": {"capacity": 250, "allocatable": 250, "used": 12, "free": 238},
    "images": [{"name": "quay.io/containerdisks/ubuntu:22.04", "bytes": 641728512}],
    "vms": {"ready": 2, "claimed": 1},
}
NODE_WITH_VMS: Final[Json] = {
    **NODE,
    "labels": {"kubevirt.io/schedulable": "true", "topology.kubernetes.io/zone": "zone-a"},
    "vms_on_it": [
        {
            "id": "01a206d8-3b1d-7264-9eb0-d92e221c920a",
            "name": "fast-start-pool-agranwb3dvzgjhvq3excehesbi",
            "pool": "fast-start-pool",
            "state": "claimed",
        }
    ],
}
NODE_PAGE: Final[Json] = {"items": [NODE], "next": None, "sight": SIGHT}
ANSWER: Final[Json] = {
    "fits": False,
    "count": 3,
    "now": 1,
    "ever": 2,
    "nodes": [
        {
            "node": "node1",
            "now": 1,
            "ever": 1,
            "missing": ["1Gi hugepages: 2 free of 8, 6 needed"],
        },
        {"node": "node2", "now": 0, "ever": 1, "missing": ["1Gi hugepages: 4 free of 8, 6 needed"]},
    ],
    "missing": [
        "node1: takes 1, and for one more 1Gi hugepages: 2 free of 8, 6 needed",
        "node2: 1Gi hugepages: 4 free of 8, 6 needed",
    ],
    "unseen": [],
    "demand": {
        "cpus": 4.015,
        "memory_bytes": 471042048,
        "hugepages_bytes": {"1Gi": 6 * _GI},
        "others": {"devices.kubevirt.io/kvm": 1, "ephemeral-storage": 50000000},
    },
    "fragment": {
        "domain": {
            "cpu": {"cores": 4, "dedicatedCpuPlacement": True},
            "memory": {"guest": "6Gi", "hugepages": {"pageSize": "1Gi"}},
        }
    },
    "sight": SIGHT,
}
