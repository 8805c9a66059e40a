"""A simulated KubeVirt cluster in one process, for laptops and tests.

It serves the Kubernetes API over HTTP (API server 1.36, KubeVirt v1.9.0) so that kubernetes_asyncio and other clients work
with it as with a real cluster. Small controllers simulate the lives of VMs on simulated nodes. Every answer has the header
`Server: emberpool-devcluster`, and /version names it too. It imports nothing of the service.

    async with DevCluster(DevClusterConfig(durations=Durations.for_cold_boot(0.5))) as cluster:
        configuration = cluster.kubeconfig()
        cluster.faults.order(kind="error", verbs=["create"], resource="virtualmachines", count=3)

The packages, from the bottom up: `apiserver` (objects, verbs, and the base of all controllers), `faults`, `storage`, `guests`,
`scheduling`, `nodes`, `kubevirt` and `cdi`, `server` (HTTP). An import contract holds that order.

`python -m app.devcluster` serves one on its own; see its `--help`.
"""

from app.devcluster.apiserver.access import Rule, Subject
from app.devcluster.clock import Clock, LoopClock, ManualClock
from app.devcluster.cluster import DevCluster
from app.devcluster.config import DevClusterConfig
from app.devcluster.durations import Durations
from app.devcluster.faults.book import Fault, FaultBook
from app.devcluster.nodes.node_shapes import NodeShape

__all__ = [
    "Clock",
    "DevCluster",
    "DevClusterConfig",
    "Durations",
    "Fault",
    "FaultBook",
    "LoopClock",
    "ManualClock",
    "NodeShape",
    "Rule",
    "Subject",
]
