"""Where the scheduler puts pods, and what it says where it can put them nowhere (words of kube-scheduler 1.36)."""

import pytest

from app.devcluster import DevClusterConfig, NodeShape
from tests.support.devcluster_bench import MACHINES, machine

PODS = "/api/v1/namespaces/default/pods"
NODES = "/api/v1/nodes"
HOST = "kubernetes.io/hostname"
ZONE = "topology.kubernetes.io/zone"
NO_NODE = "node(s) didn't match Pod's node affinity/selector"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


@pytest.fixture
def config():
    return DevClusterConfig(nodes=3, node_shape=NodeShape(cpu=5, memory="16Gi", hugepages_2mi="0"), jitter_share=0.0)


def pod(name, *, cpu="10m", labels=None, requests=None, **spec):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {"app": "a"}},
        "spec": {
            "containers": [
                {"name": "c", "image": "x/y:1", "resources": {"requests": {"cpu": cpu, **(requests or {})}}}
            ],
            "terminationGracePeriodSeconds": 0,
            **spec,
        },
    }


async def create(bench, *pods):
    for body in pods:
        status, answer = await bench.call("POST", PODS, body)
        assert status == 201, answer
        await bench.clock.advance(1)


async def node_of(bench, name):
    return (await bench.get(f"{PODS}/{name}"))["spec"].get("nodeName")


async def refusal(bench, name):
    status = (await bench.get(f"{PODS}/{name}"))["status"]
    condition = next(item for item in status["conditions"] if item["type"] == "PodScheduled")
    assert (condition["status"], condition["reason"]) == ("False", "Unschedulable")
    return condition["message"]


async def label(bench, node, **labels):
    body = {"metadata": {"labels": {name.replace("_", "-"): value for name, value in labels.items()}}}
    await patch(bench, node, body)


async def patch(bench, node, body):
    headers = {"Content-Type": "application/merge-patch+json"}
    status, answer = await bench.call("PATCH", f"{NODES}/{node}", body, headers=headers)
    assert status == 200, answer


def on_nodes(*terms, preferred=()):
    affinity = {PREFERRED: list(preferred)}
    if terms:
        affinity[REQUIRED] = {"nodeSelectorTerms": list(terms)}
    return {"nodeAffinity": affinity}


def rule(key, operator, *values):
    return {"key": key, "operator": operator, "values": list(values)}


def by(*rules):
    return {"matchExpressions": list(rules)}


def term(labels, key=HOST, **more):
    return {"labelSelector": {"matchLabels": labels}, "topologyKey": key, **more}


def spread(labels, key=HOST, *, skew=1, when="DoNotSchedule", **more):
    return {
        "labelSelector": {"matchLabels": labels},
        "maxSkew": skew,
        "topologyKey": key,
        "whenUnsatisfiable": when,
        **more,
    }


@pytest.mark.parametrize(
    ("affinity", "node"),
    [
        (on_nodes(by(rule("disk", "In", "fast"))), "node1"),
        (on_nodes(by(rule("disk", "NotIn", "fast"), rule("disk", "Exists"))), "node2"),
        (on_nodes(by(rule("disk", "DoesNotExist"))), "node3"),
        (on_nodes(by(rule("rank", "Gt", "1"))), "node2"),
        (on_nodes(by(rule("rank", "Lt", "2"))), "node1"),
        (on_nodes(by(rule("disk", "In", "none")), by(rule("rank", "In", "2"))), "node2"),
        (on_nodes({"matchFields": [rule("metadata.name", "In", "node3")]}), "node3"),
        (on_nodes({}, by(rule("disk", "In", "fast"))), "node1"),
        (on_nodes(preferred=[{"weight": 1, "preference": by(rule("disk", "In", "slow"))}]), "node2"),
    ],
)
async def test_a_pod_goes_to_the_node_that_its_node_affinity_selects(bench, affinity, node):
    await label(bench, "node1", disk="fast", rank="1")
    await label(bench, "node2", disk="slow", rank="2")

    await create(bench, pod("p", affinity=affinity))

    assert await node_of(bench, "p") == node


async def test_reasons_are_counted_and_sorted_and_preemption_told_for_each_node(bench):
    await label(bench, "node1", disk="fast")
    await patch(bench, "node2", {"spec": {"unschedulable": True}})
    await patch(bench, "node3", {"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}})
    await create(bench, pod("full", cpu="3", nodeSelector={"disk": "fast"}))

    await create(bench, pod("p", cpu="2", nodeSelector={"disk": "fast"}))
    await create(bench, pod("q", cpu="5", requests={"memory": "1Ti"}, nodeSelector={"disk": "fast"}))

    assert await refusal(bench, "p") == (
        "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. "
        "no new claims to deallocate, preemption: 0/3 nodes are available: 1 No preemption victims found for incoming "
        "pod, 2 Preemption is not helpful for scheduling."
    )
    assert await refusal(bench, "q") == (
        "0/3 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 node(s) had untolerated taint(s), "
        "1 node(s) were unschedulable. no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is "
        "not helpful for scheduling."
    )


async def test_affinity_that_names_no_node_at_all(bench):
    both = [rule("metadata.name", "In", "node1"), rule("metadata.name", "In", "node2")]
    await create(bench, pod("p", affinity=on_nodes({"matchFields": both})))
    await create(bench, pod("q", affinity=on_nodes({"matchFields": [rule("metadata.name", "In", "gone")]})))

    tail = (
        "no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
    )
    assert await refusal(bench, "p") == f"0/3 nodes are available: pod affinity terms conflict. {tail}"
    assert await refusal(bench, "q") == (
        f"0/3 nodes are available: 3 node(s) didn't satisfy plugin(s) [NodeAffinity]. {tail}"
    )


async def test_a_node_that_is_opened_again_takes_what_waited(bench):
    for node in ("node1", "node2", "node3"):
        await patch(bench, node, {"spec": {"unschedulable": True}})
    tolerant = [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]
    await create(bench, pod("p"), pod("q", tolerations=tolerant))
    assert (await node_of(bench, "p"), await node_of(bench, "q")) == (None, "node1")

    await patch(bench, "node2", {"spec": {"unschedulable": None}})
    await bench.clock.advance(1)
    assert await node_of(bench, "p") == "node2"


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}, True),
        ({"key": "k", "value": "v"}, True),
        ({"key": "k", "value": "w"}, False),
        ({"key": "k"}, False),
        ({"key": "k", "operator": "Exists"}, True),
        ({"operator": "Exists"}, True),
        ({"key": "k", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "other", "operator": "Exists"}, False),
    ],
)
async def test_taints(bench, toleration, tolerated):
    taint = {"key": "k", "value": "v", "effect": "NoSchedule"}
    for node in ("node1", "node2", "node3"):
        await patch(bench, node, {"spec": {"taints": [taint]}})

    await create(bench, pod("p", tolerations=[toleration]))

    assert (await node_of(bench, "p") is not None) is tolerated


async def test_a_taint_that_only_repels_is_avoided_where_possible(bench):
    taint = {"key": "k", "value": "v", "effect": "PreferNoSchedule"}
    for node in ("node1", "node2"):
        await patch(bench, node, {"spec": {"taints": [taint]}})

    await create(bench, pod("p"), pod("q", nodeSelector={HOST: "node1"}))

    assert (await node_of(bench, "p"), await node_of(bench, "q")) == ("node3", "node1")


async def test_anti_affinity_holds_both_ways_and_ends_with_the_pod(bench):
    lonely = {"podAntiAffinity": {REQUIRED: [term({"app": "a"})]}}
    await create(bench, *(pod(f"p{number}", affinity=lonely) for number in range(3)))
    assert len({await node_of(bench, f"p{number}") for number in range(3)}) == 3

    await create(bench, pod("p3", affinity=lonely), pod("guest"))
    assert "3 node(s) didn't match pod anti-affinity rules." in await refusal(bench, "p3")
    assert "3 node(s) didn't satisfy existing pods anti-affinity rules." in await refusal(bench, "guest")

    gone = await node_of(bench, "p1")
    await bench.call("DELETE", f"{PODS}/p1")
    await bench.clock.advance(5)
    assert await node_of(bench, "p3") == gone


async def test_affinity_brings_pods_together_and_lets_the_first_in(bench):
    social = {"podAffinity": {REQUIRED: [term({"app": "s"}, ZONE)]}}
    await create(bench, *(pod(f"s{number}", labels={"app": "s"}, affinity=social) for number in range(3)))
    assert len({await node_of(bench, f"s{number}") for number in range(3)}) == 1

    follower = {"podAffinity": {REQUIRED: [term({"app": "leader"})]}}
    await create(bench, pod("f", affinity=follower))
    assert "3 node(s) didn't match pod affinity rules." in await refusal(bench, "f")
    await create(bench, pod("l", labels={"app": "leader"}, nodeSelector={HOST: "node3"}))
    await bench.clock.advance(1)
    assert await node_of(bench, "f") == "node3"


async def test_affinity_keeps_to_its_namespaces(bench):
    await bench.call("POST", "/devcluster/v1/namespaces", {"name": "other"})
    elsewhere = pod("x", labels={"app": "b"}, nodeSelector={HOST: "node2"})
    assert (await bench.call("POST", "/api/v1/namespaces/other/pods", elsewhere))[0] == 201
    await bench.clock.advance(1)

    def near(**where):
        return {"podAffinity": {REQUIRED: [term({"app": "b"}, **where)]}}

    labels = {"matchLabels": {"kubernetes.io/metadata.name": "other"}}
    await create(
        bench,
        pod("own", affinity=near()),
        pod("named", affinity=near(namespaces=["other"])),
        pod("chosen", affinity=near(namespaceSelector=labels)),
        pod("all", affinity=near(namespaceSelector={})),
    )

    nodes = [await node_of(bench, name) for name in ("own", "named", "chosen", "all")]
    assert nodes == [None, "node2", "node2", "node2"]


async def test_preferred_terms_between_pods(bench):
    await create(bench, pod("b", labels={"app": "b"}, nodeSelector={HOST: "node2"}))
    wish = [{"weight": 100, "podAffinityTerm": term({"app": "b"})}]

    await create(
        bench,
        pod("near", affinity={"podAffinity": {PREFERRED: wish}}),
        pod("far", nodeSelector={ZONE: "zone-c"}, affinity={"podAntiAffinity": {PREFERRED: wish}}),
    )

    assert await node_of(bench, "near") == "node2"
    assert await node_of(bench, "far") != "node2"


async def test_spreading_refuses_what_would_be_uneven(bench):
    await patch(bench, "node3", {"spec": {"unschedulable": True}})
    rules = [spread({"app": "a"})]
    await create(bench, *(pod(f"p{number}", topologySpreadConstraints=rules) for number in range(3)))

    # A cordoned node is a domain all the same, unless the constraint honors taints: none may have two before it has one.
    assert [await node_of(bench, f"p{number}") for number in range(3)] == ["node1", "node2", None]
    assert (await refusal(bench, "p2")).startswith(
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't match pod topology spread constraints."
    )
    await bench.call("DELETE", f"{PODS}/p0")
    await bench.clock.advance(5)
    assert await node_of(bench, "p2") == "node1"


@pytest.mark.parametrize(
    ("rules", "placed"),
    [
        ({"skew": 2}, 6),
        ({"key": ZONE, "minDomains": 4}, 3),
        ({"key": ZONE, "minDomains": 3, "skew": 3}, 6),
        ({"key": "rack"}, 0),
    ],
)
async def test_how_many_fit_under_a_spreading_rule(bench, rules, placed):
    """Of six; each node has room for all."""
    rules = [spread({"app": "a"}, **rules)]
    await create(bench, *(pod(f"p{number}", topologySpreadConstraints=rules) for number in range(6)))

    nodes = [await node_of(bench, f"p{number}") for number in range(6)]
    assert sum(1 for node in nodes if node) == placed
    if not placed:
        assert "3 node(s) didn't match pod topology spread constraints (missing required label)." in await refusal(
            bench, "p0"
        )


async def test_spreading_counts_pods_of_its_own_revision_and_evens_out_loosely(bench):
    old = [pod(f"old{number}", labels={"app": "a", "rev": "1"}, nodeSelector={HOST: "node1"}) for number in range(2)]
    await create(bench, *old)
    strict = [spread({"app": "a"}, matchLabelKeys=["rev"])]
    await create(
        bench,
        *(
            pod(f"new{number}", labels={"app": "a", "rev": "2"}, topologySpreadConstraints=strict)
            for number in range(3)
        ),
    )
    assert len({await node_of(bench, f"new{number}") for number in range(3)}) == 3

    loose = [spread({"app": "l"}, when="ScheduleAnyway")]
    await create(
        bench, *(pod(f"l{number}", labels={"app": "l"}, topologySpreadConstraints=loose) for number in range(6))
    )
    nodes = [await node_of(bench, f"l{number}") for number in range(6)]
    assert {node: nodes.count(node) for node in nodes} == {"node1": 2, "node2": 2, "node3": 2}


async def test_pods_of_another_scheduler_are_left_alone(bench):
    await create(bench, pod("p", schedulerName="mine"))

    assert "nodeName" not in (await bench.get(f"{PODS}/p"))["spec"]


async def test_a_pod_that_ended_frees_its_room(bench):
    await create(bench, *(pod(f"p{number}", cpu="4") for number in range(4)))
    assert await node_of(bench, "p3") is None
    headers = {"Content-Type": "application/merge-patch+json"}
    done = {"status": {"phase": "Succeeded"}}
    assert (await bench.call("PATCH", f"{PODS}/p1/status", done, headers=headers))[0] == 200
    await bench.clock.advance(1)

    assert await node_of(bench, "p3") == await node_of(bench, "p1")


async def test_pinned_cpus_come_as_whole_ones_beside_the_console_s_share(bench):
    """Four allocatable CPUs hold one VM of two and its 15m; two of them would need 30m more than there is."""
    await patch(bench, "node2", {"metadata": {"labels": {"kubevirt.io/cpumanager": "false"}}})
    await patch(bench, "node3", {"metadata": {"labels": {"kubevirt.io/cpumanager": None}}})
    pinned = {"cpu": {"cores": 2, "dedicatedCpuPlacement": True}}
    await bench.boot(machine("x", **pinned), machine("y", **pinned))

    states = sorted([(await bench.status(name))[0] for name in ("x", "y")])
    assert states == ["ErrorUnschedulable", "Running"]
    waiting = "x" if (await bench.status("x"))[0] != "Running" else "y"
    message = (await bench.condition(waiting, "PodScheduled"))["message"]
    assert message.startswith(f"0/3 nodes are available: 1 Insufficient cpu, 2 {NO_NODE}. ")
    assert (await bench.get(f"{MACHINES}/{waiting}"))["status"]["printableStatus"] == "ErrorUnschedulable"
