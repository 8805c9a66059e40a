"""The check against the dev cluster's scheduler, on the same nodes and pods: what fits is bound, and what does not is not."""

import asyncio
import uuid

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.compute.kubevirt.nodes.inventory import NodeInventory
from app.compute.kubevirt.templates.demand import demand_of
from app.compute.kubevirt.templates.expand import expand
from app.compute.kubevirt.templates.manifests import vm_manifest
from app.devcluster import Durations, ManualClock, NodeShape
from app.devcluster.apiserver.admission import Admission
from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.registry import NODES, PODS
from app.devcluster.apiserver.store import Store
from app.devcluster.durations import Jitter
from app.devcluster.kubevirt.admission import KubeVirtWebhooks
from app.devcluster.kubevirt.instances import build_instance
from app.devcluster.kubevirt.launcher import build_pod
from app.devcluster.nodes.node_objects import build_node
from app.devcluster.scheduling.ledger import Ledger
from app.devcluster.scheduling.scheduler import Scheduler
from app.domain.capacity import fit
from app.domain.observation import WarmWhen
from app.domain.placement import Placement

SHAPES = st.builds(
    NodeShape,
    cpu=st.integers(1, 9),
    memory=st.sampled_from(["4Gi", "8Gi", "9Gi", "16Gi"]),
    hugepages_2mi=st.sampled_from(["0", "1Gi", "3Gi"]),
    hugepages_1gi=st.sampled_from(["0", "1Gi"]),
    pods=st.integers(1, 6),
    cpumanager=st.booleans(),
    realtime=st.booleans(),
    cpu_models=st.sampled_from([("Skylake-Server",), ("EPYC", "Skylake-Server")]),
    taints=st.sampled_from([(), (), ("vms=only:NoSchedule",), ("soft:PreferNoSchedule",), ("gone:NoExecute",)]),
    labels=st.fixed_dictionaries(
        {}, optional={"disk": st.sampled_from(["fast", "slow"]), "kubevirt.io/schedulable": st.just("false")}
    ),
)
TOLERATIONS = [
    {"operator": "Exists"},
    {"key": "vms", "value": "only"},
    {"key": "vms", "operator": "Exists", "effect": "NoExecute"},
    {"key": "gone", "operator": "Exists"},
    {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"},
]
RULES = [
    {"key": "disk", "operator": "In", "values": ["fast"]},
    {"key": "disk", "operator": "NotIn", "values": ["fast"]},
    {"key": "disk", "operator": "DoesNotExist"},
    {"key": "topology.kubernetes.io/zone", "operator": "Exists"},
]
NAMED = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node1"]}]}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


@st.composite
def placements(draw):
    dedicated = draw(st.booleans())
    hugepages = draw(st.sampled_from([None, None, "2Mi", "1Gi"]))
    numa = dedicated and hugepages is not None and draw(st.booleans())
    terms = draw(
        st.lists(
            st.one_of(
                st.just(NAMED),
                st.lists(st.sampled_from(RULES), max_size=2).map(lambda rules: {"matchExpressions": rules}),
            ),
            max_size=2,
        )
    )
    return Placement(
        dedicated_cpus=dedicated,
        isolate_emulator_thread=dedicated and draw(st.booleans()),
        numa_passthrough=numa,
        realtime=numa and draw(st.booleans()),
        hugepages=hugepages,
        cpu_model=draw(st.sampled_from([None, None, "EPYC"])),
        node_selector=draw(st.sampled_from([{}, {}, {"disk": "fast"}])),
        affinity={"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}} if terms else None,
        tolerations=draw(st.lists(st.sampled_from(TOLERATIONS), max_size=2)),
    )


@st.composite
def specs(draw):
    template = {
        "image": "registry.example/fedora:42",
        "cpu": draw(st.integers(1, 4)),
        "memory": draw(st.sampled_from(["1Gi", "2Gi", "3Gi"])),
    }
    return expand(template, WarmWhen.AGENT, draw(placements())).spec


@st.composite
def loads(draw):
    """A pod of somebody else's: side by side, before, and beside."""
    amounts = st.fixed_dictionaries(
        {}, optional={"cpu": st.sampled_from(["100m", "1", "2500m"]), "memory": st.sampled_from(["64Mi", "1G", "3Gi"])}
    )
    container = st.builds(lambda requests: {"name": "c", "resources": {"requests": requests}}, amounts)
    first = st.builds(
        lambda requests, policy: {"name": "i", "resources": {"requests": requests}, **policy},
        amounts,
        st.sampled_from([{}, {"restartPolicy": "Always"}]),
    )
    return {
        "containers": draw(st.lists(container, min_size=1, max_size=2)),
        "initContainers": draw(st.lists(first, max_size=2)),
        "nodeName": draw(st.sampled_from(["node1", "node2", "node3"])),
    }


def as_pod(name, spec, phase="Running"):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": str(uuid.uuid4())},
        "spec": spec,
        "status": {"phase": phase},
    }


def launcher(spec, number, now):
    vm = vm_manifest(
        name=f"vm-{number}", namespace="default", instance="emberpool", pool="pool-a", vm_id=str(number), spec=spec
    )
    vm["metadata"] |= {"uid": str(uuid.uuid4()), "generation": 1}
    return build_pod(build_instance(vm, now), "abcde", now)


class Cluster:
    """The scheduler with the store that it works on, and nothing else."""

    def __init__(self, shapes, cordoned):
        self.clock = ManualClock()
        self.store = Store()
        durations, jitter = Durations(), Jitter(0, 0.0)
        self.ledger = Ledger(self.store)
        self.scheduler = Scheduler(
            Api(self.store, self.clock, Admission(KubeVirtWebhooks(self.store)), jitter), self.ledger, durations, jitter
        )
        self.clock.busy.append(lambda: not self.scheduler.idle)
        for number, shape in enumerate(shapes, start=1):
            node = build_node(f"node{number}", shape, number, self.clock.now())
            if number in cordoned:
                node["spec"]["unschedulable"] = True
            self.store.put(NODES, node)

    def each(self, resource):
        return [stored.obj for stored in self.store.each(resource)]

    def seen(self):
        inventory = NodeInventory()
        for node in self.each(NODES):
            inventory.put_node(node)
        for pod in self.each(PODS):
            inventory.put_pod(pod)
        return inventory.nodes()

    async def schedule(self, spec, count):
        """How many of so many VMs get a node."""
        for number in range(count):
            self.store.put(PODS, launcher(spec, number, self.clock.now()))
            await self.clock.advance(60)
        pods = [pod for pod in self.each(PODS) if pod["metadata"]["name"].startswith("virt-launcher")]
        return sum(1 for pod in pods if pod["spec"].get("nodeName"))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(SHAPES, min_size=0, max_size=3),
    st.sets(st.integers(1, 3), max_size=1),
    st.lists(loads(), max_size=4),
    specs(),
)
def test_as_many_fit_as_the_scheduler_binds(shapes, cordoned, others, spec):
    async def run():
        cluster = Cluster(shapes, cordoned)
        for number, other in enumerate(others):
            cluster.store.put(PODS, as_pod(f"other-{number}", other))
        cluster.store.put(PODS, as_pod("over", {"containers": [], "nodeName": "node1"}, phase="Succeeded"))
        found = fit(cluster.seen(), demand_of(spec))
        for node in cluster.seen():
            assert node.used == {name: amount for name, amount in cluster.ledger.used(node.name).items() if amount}
        assert found.unseen == ()
        assert await cluster.schedule(spec, found.now + 1) == found.now
        assert fit(cluster.seen(), demand_of(spec)).now == 0
        assert len(found.missing) == max(1, len(shapes))

    asyncio.run(run())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(SHAPES, min_size=1, max_size=3), specs())
def test_what_ever_fits_is_what_an_empty_cluster_takes(shapes, spec):
    """Nodes without KubeVirt's daemon go through something; `ever` is about when it is over."""
    for shape in shapes:
        shape.labels.pop("kubevirt.io/schedulable", None)

    async def run():
        cluster = Cluster(shapes, set())
        found = fit(cluster.seen(), demand_of(spec))
        assert found.ever == found.now
        assert await cluster.schedule(spec, found.ever + 1) == found.ever

    asyncio.run(run())
