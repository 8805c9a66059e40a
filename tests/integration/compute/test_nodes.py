"""The stream of nodes and what runs on them, from lists and watches that a test orders, and from a dev cluster."""

import asyncio
from contextlib import aclosing

import pytest

from app.compute.kubevirt import rounds
from app.compute.kubevirt.kinds import ALL_PODS, NODES
from app.compute.kubevirt.nodes.inventory import NodeInventory
from app.compute.kubevirt.nodes.watch import observe_nodes
from app.compute.nodes import NodeChanged, NodeGone, NodesListed
from app.compute.vms import Broken
from app.domain.observation import WarmWhen
from app.errors import ClusterForbidden, ClusterUnavailable, WatchExpired
from app.ids import new_id, vm_name
from tests.support.kubevirt_documents import SHORT


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


class Api:
    """Lists are what they are set to; an exception is raised in their place. Watches are fed by the test."""

    def __init__(self):
        self.lists = {NODES: [node()], ALL_PODS: []}
        self.feeds = {NODES: asyncio.Queue(), ALL_PODS: asyncio.Queue()}
        self.naps = []
        self.watched = []

    async def list_all(self, kind):
        found = self.lists[kind]
        if isinstance(found, Exception):
            raise found
        return found, "7"

    async def watch(self, kind, version):
        self.watched.append((kind, version))
        while True:
            item = await self.feeds[kind].get()
            if isinstance(item, Exception):
                raise item
            yield {"type": item[0], "object": item[1]}

    async def sleep(self, seconds):
        self.naps.append(seconds)
        await asyncio.sleep(0)

    def observe(self, relist_seconds=60):
        return aclosing(observe_nodes(self.list_all, self.watch, relist_seconds=relist_seconds, sleep=self.sleep))


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(rounds, "_BACKOFF_BASE", 0.001)
    return Api()


async def test_a_list_then_each_change_as_it_comes(api):
    api.lists[ALL_PODS] = [pod(cpu="500m", **OURS)]
    async with api.observe() as events:
        listed = await anext(events)
        assert isinstance(listed, NodesListed)
        assert [(each.name, each.used, each.vms) for each in listed.nodes] == [
            ("node-1", {"cpu": 500, "pods": 1}, {"a", "i"})
        ]
        api.feeds[ALL_PODS].put_nowait(("MODIFIED", pod(cpu="500m", **OURS, other="label")))
        api.feeds[ALL_PODS].put_nowait(("BOOKMARK", {"metadata": {"resourceVersion": "8"}}))
        api.feeds[ALL_PODS].put_nowait(("ADDED", pod("q", cpu="2")))
        assert (await anext(events)).node.used == {"cpu": 2500, "pods": 2}
        api.feeds[ALL_PODS].put_nowait(("MODIFIED", pod("q", cpu="2", phase="Succeeded")))
        assert (await anext(events)).node.used == {"cpu": 500, "pods": 1}
        api.feeds[ALL_PODS].put_nowait(("DELETED", pod(cpu="500m")))
        assert (await anext(events)).node.vms == frozenset()
        api.feeds[NODES].put_nowait(("MODIFIED", node(disk="fast")))
        assert (await anext(events)).node.labels == {"disk": "fast"}
        api.feeds[NODES].put_nowait(("DELETED", node()))
        assert await anext(events) == NodeGone("node-1")
    assert api.watched == [(NODES, "7"), (ALL_PODS, "7")]


async def test_where_pods_may_not_be_seen_nodes_are_told_without_them(api):
    api.lists[ALL_PODS] = ClusterForbidden("pods is forbidden")
    async with api.observe() as events:
        listed = await anext(events)
        assert (listed.pods_hidden, listed.nodes[0].used) == ("pods is forbidden", None)
        api.feeds[NODES].put_nowait(("ADDED", node("node-2")))
        assert (await anext(events)).node.used is None
    assert api.watched == [(NODES, "7")]


async def test_where_nodes_may_not_it_asks_rarely(api):
    api.lists[NODES] = ClusterForbidden("nodes is forbidden")
    async with api.observe() as events:
        assert await anext(events) == Broken("nodes is forbidden")
        api.lists[NODES] = [node()]
        assert isinstance(await anext(events), NodesListed)
    assert api.naps == [60.0]


@pytest.mark.parametrize("kind", [NODES, ALL_PODS])
async def test_a_list_that_fails_is_tried_again_soon(api, kind):
    whole, api.lists[kind] = api.lists[kind], ClusterUnavailable("away")
    async with api.observe() as events:
        assert await anext(events) == Broken("away")
        assert await anext(events) == Broken("away")
        api.lists[kind] = whole
        assert isinstance(await anext(events), NodesListed)
    assert all(nap < 1 for nap in api.naps)


@pytest.mark.parametrize("kind", [NODES, ALL_PODS])
async def test_a_watch_that_breaks_soon_is_told_and_begins_with_a_list(api, kind):
    async with api.observe() as events:
        assert isinstance(await anext(events), NodesListed)
        api.feeds[kind].put_nowait(WatchExpired("too old"))
        assert await anext(events) == Broken("too old")
        api.lists[NODES] = [node("node-9")]
        assert [each.name for each in (await anext(events)).nodes] == ["node-9"]


async def test_each_round_ends_with_a_list(api):
    async with api.observe(relist_seconds=0.01) as events:
        assert [type(await anext(events)) for _ in range(3)] == [NodesListed] * 3
    assert api.naps == []


class TestInventory:
    def test_somebody_elses_vm_is_none_of_ours(self):
        theirs = pod(**{**OURS, "app.kubernetes.io/managed-by": "somebody"})
        assert NodeInventory([node()], [theirs]).node("node-1").vms == frozenset()

    def test_a_pod_may_come_before_its_node(self):
        inventory = NodeInventory([], [pod()])
        assert inventory.node("node-1") is None
        inventory.put_node(node())
        assert inventory.node("node-1").used == {"cpu": 1000, "pods": 1}

    def test_a_pod_that_moved_leaves_its_old_node(self):
        inventory = NodeInventory([node(), node("node-2")], [pod()])
        assert inventory.put_pod(pod(on="node-2")) == ("node-1", "node-2")
        assert inventory.node("node-1").used == {}

    def test_what_a_pod_asks_for_as_a_whole_goes_before_its_containers(self):
        whole = pod(cpu="4")
        whole["spec"] |= {
            "resources": {"requests": {"cpu": "1", "vendor.example/x": "9"}},
            "overhead": {"cpu": "250m"},
        }
        assert NodeInventory([node()], [whole]).node("node-1").used == {"cpu": 1250, "pods": 1}

    def test_whole_cpus_of_guaranteed_pods_are_pinned_where_they_can_be(self):
        ours = pod(cpu="2")
        ours["status"]["qosClass"] = "Guaranteed"
        ours["spec"]["containers"].append({"resources": {"requests": {"cpu": "15m"}}})
        manager = {"kubevirt.io/cpumanager": "true"}
        assert NodeInventory([node(**manager)], [ours]).node("node-1").pinned == 2000
        assert NodeInventory([node()], [ours]).node("node-1").pinned == 0
        assert NodeInventory([node(**manager)], [pod(cpu="2")]).node("node-1").pinned == 0

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
        inventory = NodeInventory([node()], [theirs], namespace="vms")
        assert inventory.node("node-1").repels is repels
        assert NodeInventory([node()], [theirs], namespace="other").node("node-1").repels is True
        inventory.put_pod(theirs, deleted=True)
        assert inventory.node("node-1").repels is False

    def test_images_are_told_by_their_shortest_names(self):
        full = node()
        full["status"]["images"] = [
            {"names": ["a.example/b@sha256:0123", "a.example/b:1"], "sizeBytes": 5},
            {"names": []},
            {},
        ]
        assert NodeInventory([full], []).node("node-1").images == (("a.example/b:1", 5),)


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
    async for event in events:
        if isinstance(event, NodeChanged) and holds(event.node):
            return event.node
    raise AssertionError("the stream ended")
