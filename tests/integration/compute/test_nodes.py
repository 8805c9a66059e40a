"""The stream of nodes and what runs on them, from lists and watches that a test orders, and from a dev cluster."""

from contextlib import aclosing

import pytest

from app.compute.kubevirt.kinds import ALL_PODS, NODES
from app.compute.kubevirt.nodes.inventory import NodeInventory
from app.compute.kubevirt.nodes.watch import observe_nodes
from app.compute.nodes import NodeChanged, NodeGone, NodesListed
from app.compute.vms import Broken, Restored
from app.domain.observation import WarmWhen
from app.errors import ClusterForbidden, ClusterUnavailable
from app.ids import new_id, vm_name
from tests.support.kubevirt_documents import SHORT
from tests.support.scripted_source import Naps, ScriptedSource, event, soon


def node(name="node-1", **labels):
    return {"metadata": {"name": name, "uid": f"uid-{name}", "labels": labels}, "status": {"allocatable": {"cpu": "4"}}}


OURS = {"app.kubernetes.io/managed-by": "emberpool", "emberpool.io/vm-id": "a", "kubevirt.io/created-by": "i"}


def pod(uid="p", on="node-1", *, phase="Running", cpu="1", **labels):
    requests = {"resources": {"requests": {"cpu": cpu}}}
    return {
        "metadata": {"uid": uid, "labels": labels},
        "spec": {"nodeName": on, "containers": [requests]},
        "status": {"phase": phase},
    }


class Api(ScriptedSource):
    """Its lists are of one page each."""

    def __init__(self):
        super().__init__({NODES: [[[node()]]], ALL_PODS: [[[]]]})
        self.naps = Naps()

    def observe(self, relist_seconds=60):
        return aclosing(observe_nodes(self, relist_seconds=relist_seconds, sleep=self.naps))


@pytest.fixture
def api():
    return Api()


async def test_a_list_then_each_change_as_it_comes(api):
    api.lists[ALL_PODS] = [[[pod(cpu="500m", **OURS)]]]
    async with api.observe() as events:
        listed = await soon(events)
        assert isinstance(listed, NodesListed)
        assert [(each.name, each.used, each.vms) for each in listed.nodes] == [
            ("node-1", {"cpu": 500, "pods": 1}, {"a", "i"})
        ]
        await api.feed(
            ALL_PODS,
            event("MODIFIED", pod(cpu="500m", **OURS, other="label")),
            event("BOOKMARK", {"metadata": {"resourceVersion": "8"}}),
            event("ADDED", pod("q", cpu="2")),
        )
        assert (await soon(events)).node.used == {"cpu": 2500, "pods": 2}
        await api.feed(ALL_PODS, event("MODIFIED", pod("q", cpu="2", phase="Succeeded")))
        assert (await soon(events)).node.used == {"cpu": 500, "pods": 1}
        await api.feed(ALL_PODS, event("DELETED", pod(cpu="500m")))
        assert (await soon(events)).node.vms == frozenset()
        await api.feed(NODES, event("MODIFIED", node(disk="fast")))
        assert (await soon(events)).node.labels == {"disk": "fast"}
        await api.feed(NODES, event("DELETED", node()))
        assert await soon(events) == NodeGone("node-1")
    assert set(api.watched) == {(NODES, "10"), (ALL_PODS, "10")}


async def test_where_pods_may_not_be_seen_nodes_are_told_without_them(api):
    api.lists[ALL_PODS] = [ClusterForbidden("pods is forbidden")]
    async with api.observe() as events:
        listed = await soon(events)
        assert (listed.pods_hidden, listed.nodes[0].used) == ("pods is forbidden", None)
        await api.feed(NODES, event("ADDED", node("node-2")))
        assert (await soon(events)).node.used is None
    assert api.watched == [(NODES, "10")]
    assert set(api.naps.taken) == {60.0}


async def test_pods_that_may_be_seen_again_are_told_without_a_restart(api):
    api.lists[ALL_PODS] = [ClusterForbidden("pods is forbidden"), [[pod(cpu="500m")]]]
    async with api.observe() as events:
        found = await soon(events)
        assert found.pods_hidden == "pods is forbidden"
        while not isinstance(found := await soon(events), NodesListed):
            pass
        assert (found.pods_hidden, found.nodes[0].used) == (None, {"cpu": 500, "pods": 1})


async def test_where_nodes_may_not_it_asks_rarely(api):
    api.lists[NODES] = [ClusterForbidden("nodes is forbidden"), [[node()]]]
    async with api.observe() as events:
        assert await soon(events) == Broken("nodes is forbidden")
        assert await soon(events) == Restored()
        assert isinstance(await soon(events), NodesListed)
    assert api.naps.taken == [60.0]


@pytest.mark.parametrize("kind", [NODES, ALL_PODS])
async def test_a_list_that_fails_is_tried_again_soon(api, kind):
    away = ClusterUnavailable("away")
    api.lists[kind] = [away, away, *api.lists[kind]]
    async with api.observe() as events:
        assert [await soon(events) for _ in range(3)] == [Broken("away"), Broken("away"), Restored()]
        assert isinstance(await soon(events), NodesListed)
    assert all(nap <= 1 for nap in api.naps.taken)


async def test_what_is_used_of_nodes_stays_known_over_a_list(api):
    """A list of nodes says nothing of the pods, and comes while their watch goes on."""
    api.lists[ALL_PODS] = [[[pod(cpu="500m")]]]
    api.lists[NODES] = [[[node()]], [[node(), node("node-9")]]]
    async with api.observe(relist_seconds=0.01) as events:
        first = await soon(events)
        while len(first.nodes) == 1:
            found = await soon(events)
            first = found if isinstance(found, NodesListed) else first
        assert [(each.name, each.used) for each in first.nodes] == [
            ("node-1", {"cpu": 500, "pods": 1}),
            ("node-9", {}),
        ]


def inventory_of(nodes, pods, namespace=""):
    inventory = NodeInventory(namespace=namespace)
    for each in nodes:
        inventory.put_node(each)
    for each in pods:
        inventory.put_pod(each)
    return inventory


class TestInventory:
    def test_somebody_elses_vm_is_none_of_ours(self):
        theirs = pod(**{**OURS, "app.kubernetes.io/managed-by": "somebody"})
        assert inventory_of([node()], [theirs]).node("node-1").vms == frozenset()

    def test_a_pod_may_come_before_its_node(self):
        inventory = inventory_of([], [pod()])
        assert inventory.node("node-1") is None
        inventory.put_node(node())
        assert inventory.node("node-1").used == {"cpu": 1000, "pods": 1}

    def test_a_pod_that_moved_leaves_its_old_node(self):
        inventory = inventory_of([node(), node("node-2")], [pod()])
        assert inventory.put_pod(pod(on="node-2")) == ("node-1", "node-2")
        assert inventory.node("node-1").used == {}

    def test_what_a_pod_asks_for_as_a_whole_goes_before_its_containers(self):
        whole = pod(cpu="4")
        whole["spec"] |= {
            "resources": {"requests": {"cpu": "1", "vendor.example/x": "9"}},
            "overhead": {"cpu": "250m"},
        }
        assert inventory_of([node()], [whole]).node("node-1").used == {"cpu": 1250, "pods": 1}

    def test_whole_cpus_of_guaranteed_pods_are_pinned_where_they_can_be(self):
        ours = pod(cpu="2")
        ours["status"]["qosClass"] = "Guaranteed"
        ours["spec"]["containers"].append({"resources": {"requests": {"cpu": "15m"}}})
        manager = {"kubevirt.io/cpumanager": "true"}
        assert inventory_of([node(**manager)], [ours]).node("node-1").pinned == 2000
        assert inventory_of([node()], [ours]).node("node-1").pinned == 0
        assert inventory_of([node(**manager)], [pod(cpu="2")]).node("node-1").pinned == 0

    @pytest.mark.parametrize(
        ("term", "repels"),
        [
            ({}, False),
            ({"namespaces": ["other", "vms"]}, True),
            ({"namespaceSelector": {}}, True),
            ({"namespaces": ["other"]}, False),
        ],
    )
    def test_a_pod_that_may_keep_ours_away_is_known_as_long_as_it_is_there(self, term, repels):
        theirs = pod()
        theirs["metadata"]["namespace"] = "other"
        rules = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone", **term}]}
        theirs["spec"]["affinity"] = {"podAntiAffinity": rules}
        inventory = inventory_of([node()], [theirs], namespace="vms")
        assert inventory.node("node-1").repels is repels
        assert inventory_of([node()], [theirs], namespace="other").node("node-1").repels is True
        inventory.drop_pod("p")
        assert inventory.node("node-1").repels is False

    def test_pods_of_one_kind_share_what_they_use(self):
        """There are as many as VMs."""
        inventory = inventory_of([node()], [pod(f"p-{number}", cpu="2") for number in range(3)])
        assert len({id(each.amounts) for each in inventory._pods.values()}) == 1

    def test_images_are_told_by_their_shortest_names(self):
        full = node()
        full["status"]["images"] = [
            {"names": ["a.example/b@sha256:0123", "a.example/b:1"], "sizeBytes": 5},
            {"names": []},
            {},
        ]
        assert inventory_of([full], []).node("node-1").images == (("a.example/b:1", 5),)


async def test_a_vm_of_ours_is_seen_on_its_node(gateway):
    """On a dev cluster: what the VM's pod asks for is what was foretold, and its going frees it."""
    template = gateway.expand(SHORT, WarmWhen.RUNNING)
    vm_id = new_id()
    name = vm_name("pool-a", vm_id)
    async with aclosing(gateway.observe_nodes()) as events:
        assert isinstance(await anext(events), NodesListed)
        made = await gateway.create_vm(name=name, pool="pool-a", vm_id=str(vm_id), spec=template.spec)
        there = await _next(events, lambda found: str(vm_id) in found.vms)
        assert there.used == gateway.demand(template.spec).amounts
        await gateway.delete_vm(name=name, uid=made.uid)
        gone = await _next(events, lambda found: found.name == there.name and not found.vms)
        assert gone.used == {}


async def _next(events, holds):
    async for change in events:
        if isinstance(change, NodeChanged) and holds(change.node):
            return change.node
    raise AssertionError("the stream ended")
