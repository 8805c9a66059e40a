"""A KubeVirt cluster in one process, for laptops and tests: a stand-in, and it says so.

It speaks the Kubernetes API over HTTP (API server 1.36, KubeVirt v1.9.0) well enough that kubernetes_asyncio and other
clients work against it as against a real cluster; behind it small controllers live out the life of VMs on simulated
nodes. Every answer carries `Server: emberpool-devcluster`, and /version names it. It imports nothing of the service.

    async with DevCluster(DevClusterConfig(durations=Durations.for_cold_boot(0.5))) as cluster:
        configuration = cluster.kubeconfig()
        cluster.faults.order(kind="error", verbs=["create"], resource="virtualmachines", count=3)

`python -m app.devcluster --help` serves one on its own.
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
