"""Nodes: room, images, and what is seen when one dies (delays as recorded on Kubernetes 1.36)."""

import pytest

from app.devcluster import DevClusterConfig, NodeShape
from tests.support.devcluster_bench import IMAGE, INSTANCES, MACHINES, machine

NODES = "/api/v1/nodes"


async def node_of(bench, name):
    return (await bench.get(f"{INSTANCES}/{name}"))["status"].get("nodeName")


async def ready(bench, node):
    conditions = (await bench.get(f"{NODES}/{node}"))["status"]["conditions"]
    return next(item["status"] for item in conditions if item["type"] == "Ready")


@pytest.fixture
def config():
    return DevClusterConfig(nodes=2, node_shape=NodeShape(cpu=3, hugepages_2mi="0"), jitter_share=0.0)


async def test_a_full_cluster_makes_vms_wait_until_one_goes(bench):
    pinned = {"cpu": {"cores": 1, "dedicatedCpuPlacement": True}}
    names = [f"vm{number}" for number in range(3)]
    await bench.boot(*(machine(name, **pinned) for name in names))
    states = [(await bench.status(name))[0] for name in names]
    assert sorted(states) == ["ErrorUnschedulable", "Running", "Running"]
    assert {await node_of(bench, name) for name in names} == {"node1", "node2", None}

    waiting, gone = names[states.index("ErrorUnschedulable")], names[states.index("Running")]
    await bench.call("DELETE", f"{MACHINES}/{gone}")
    await bench.clock.advance(60)
    assert await bench.status(waiting) == ("Running", "")


async def test_the_first_vm_on_a_node_pulls_the_image_and_the_next_does_not(bench):
    await bench.call("POST", "/devcluster/v1/nodes/node2/kill")
    await bench.call("DELETE", "/devcluster/v1/nodes/node2")
    await bench.create(machine("cold"))
    await bench.clock.advance(29)
    assert (await bench.condition("cold", "Ready"))["status"] == "False"
    await bench.clock.advance(1.2)
    assert await bench.status("cold") == ("Running", "")

    await bench.create(machine("near"))
    await bench.clock.advance(19.2)
    assert await bench.status("near") == ("Running", "")


async def test_a_daemon_set_brings_an_image_to_every_node_before_it_is_needed(bench):
    pod = {
        "metadata": {"labels": {"app": "preload"}},
        "spec": {"containers": [{"name": "image", "image": IMAGE, "command": ["sleep", "infinity"]}]},
    }
    daemon_set = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "preload"},
        "spec": {"selector": {"matchLabels": {"app": "preload"}}, "template": pod},
    }
    path = "/apis/apps/v1/namespaces/default/daemonsets"
    assert (await bench.call("POST", path, daemon_set))[0] == 201
    await bench.clock.advance(5)
    assert (await bench.get(f"{path}/preload"))["status"]["numberReady"] == 0
    await bench.clock.advance(15)
    status = (await bench.get(f"{path}/preload"))["status"]
    assert (status["desiredNumberScheduled"], status["numberReady"]) == (2, 2)
    nodes = (await bench.get("/devcluster/v1/nodes"))["items"]
    assert all(IMAGE in node["images"] for node in nodes)

    await bench.create(machine("near"))
    await bench.clock.advance(19.2)
    assert await bench.status("near") == ("Running", "")
    await bench.call("DELETE", f"{path}/preload", {"propagationPolicy": "Foreground"})
    await bench.clock.advance(10)
    assert (await bench.call("GET", f"{path}/preload"))[0] == 404
    pods = (await bench.get("/api/v1/namespaces/default/pods"))["items"]
    assert [item["metadata"]["labels"].get("app") for item in pods] == ["test"]


async def test_a_plain_pod_is_scheduled_run_and_removed(bench):
    pods = "/api/v1/namespaces/default/pods"
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": IMAGE}], "terminationGracePeriodSeconds": 5},
    }
    assert (await bench.call("POST", pods, body))[0] == 201
    await bench.clock.advance(60)
    assert (await bench.get(f"{pods}/p"))["status"]["phase"] == "Running"

    status, going = await bench.call("DELETE", f"{pods}/p")
    assert (status, going["metadata"]["deletionGracePeriodSeconds"]) == (200, 5)
    await bench.clock.advance(10)
    assert (await bench.call("GET", f"{pods}/p"))[0] == 404


async def test_a_new_node_takes_what_waited(bench):
    await bench.create(machine("huge", guest="400Gi"))
    await bench.clock.advance(5)
    assert (await bench.status("huge"))[0] == "ErrorUnschedulable"

    status, node = await bench.call(
        "POST", "/devcluster/v1/nodes", {"name": "big", "memory": "1Ti", "hugepages_2mi": "0"}
    )
    assert (status, node["ready"]) == (201, "True")
    await bench.clock.advance(60)
    assert await node_of(bench, "huge") == "big"


async def test_a_dead_node_is_noticed_late_and_its_vms_move_only_when_it_returns(bench):
    await bench.boot(machine("x"))
    dead = await node_of(bench, "x")
    before = (await bench.get(f"{INSTANCES}/x"))["metadata"]["uid"]
    await bench.call("POST", f"/devcluster/v1/nodes/{dead}/kill")

    await bench.clock.advance(46)
    assert (await ready(bench, dead), await bench.status("x")) == ("True", ("Running", ""))

    await bench.clock.advance(2)
    node = await bench.get(f"{NODES}/{dead}")
    assert await ready(bench, dead) == "Unknown"
    assert [taint["effect"] for taint in node["spec"]["taints"]] == ["NoSchedule", "NoExecute"]
    assert await bench.status("x") == ("Running", None)
    assert node["metadata"]["labels"]["kubevirt.io/schedulable"] == "true"

    await bench.clock.advance(300)
    pod = (await bench.get("/api/v1/namespaces/default/pods"))["items"][0]
    assert "deletionTimestamp" in pod["metadata"]
    assert (await bench.get(f"{NODES}/{dead}"))["metadata"]["labels"]["kubevirt.io/schedulable"] == "false"
    assert (await bench.get(f"{INSTANCES}/x"))["metadata"]["uid"] == before

    await bench.call("POST", f"/devcluster/v1/nodes/{dead}/revive")
    await bench.clock.advance(60)
    vmi = await bench.get(f"{INSTANCES}/x")
    assert vmi["metadata"]["uid"] != before
    assert await bench.status("x") == ("Running", "")
    assert (await bench.get(f"{NODES}/{dead}"))["metadata"]["labels"]["kubevirt.io/schedulable"] == "true"


async def test_a_node_that_returns_in_time_keeps_its_vms(bench):
    await bench.boot(machine("x"))
    node = await node_of(bench, "x")
    before = (await bench.get(f"{INSTANCES}/x"))["metadata"]["uid"]
    await bench.call("POST", f"/devcluster/v1/nodes/{node}/kill")
    await bench.clock.advance(100)
    assert await bench.status("x") == ("Running", None)

    await bench.call("POST", f"/devcluster/v1/nodes/{node}/revive")
    await bench.clock.advance(5)
    assert await bench.status("x") == ("Running", "")
    assert (await bench.get(f"{INSTANCES}/x"))["metadata"]["uid"] == before


async def test_a_node_taken_away_takes_its_guests_and_their_vms_start_elsewhere(bench):
    await bench.boot(machine("x"))
    node = await node_of(bench, "x")
    await bench.call("DELETE", f"/devcluster/v1/nodes/{node}")
    await bench.clock.advance(60)

    assert await bench.status("x") == ("Running", "")
    assert await node_of(bench, "x") != node


async def test_nothing_on_a_dead_node_is_deleted_before_it_is_back(bench):
    await bench.boot(machine("x"))
    node = await node_of(bench, "x")
    await bench.call("POST", f"/devcluster/v1/nodes/{node}/kill")
    await bench.call("DELETE", f"{MACHINES}/x", {"propagationPolicy": "Foreground"})
    await bench.clock.advance(600)
    assert (await bench.status("x"))[0] == "Terminating"

    await bench.call("POST", f"/devcluster/v1/nodes/{node}/revive")
    await bench.clock.advance(10)
    assert (await bench.call("GET", f"{MACHINES}/x"))[0] == 404


async def test_an_unknown_node_is_a_404(bench):
    assert (await bench.call("POST", "/devcluster/v1/nodes/nope/kill"))[0] == 404
    assert (await bench.call("GET", "/devcluster/v1/nope"))[0] == 404


@pytest.mark.parametrize(
    "body", [{}, {"name": "n", "cpu": 0}, {"name": "n", "memory": "much"}, {"name": "n", "colour": "red"}]
)
async def test_a_node_that_makes_no_sense_is_refused(bench, body):
    assert (await bench.call("POST", "/devcluster/v1/nodes", body))[0] == 400
    assert len((await bench.get(NODES))["items"]) == 2


async def test_state_counts_what_is_there(bench):
    await bench.boot(machine("x"), machine("off", strategy="Halted"))

    state = await bench.get("/devcluster/v1/state")
    assert state["virtualmachines"] == {"total": 2, "byStatus": {"Running": 1, "Stopped": 1}, "warm": 1}
    assert (state["virtualmachineinstances"]["byPhase"], state["pods"], state["nodes"]) == ({"Running": 1}, 1, 2)
    nodes = (await bench.get("/devcluster/v1/nodes"))["items"]
    assert sum(node["used"].get("pods", 0) for node in nodes) == 1


async def test_reset_leaves_an_empty_cluster(bench):
    await bench.boot(machine("x"))
    await bench.order(kind="error")
    await bench.call("POST", "/devcluster/v1/reset")
    await bench.clock.advance(10)

    state = await bench.get("/devcluster/v1/state")
    assert (state["virtualmachines"]["total"], state["pods"], state["faults"], state["nodes"]) == (0, 0, 0, 2)
    await bench.boot(machine("x"))
    assert await bench.status("x") == ("Running", "")
