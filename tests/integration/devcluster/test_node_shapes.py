"""Nodes of many shapes: ordered, changed while they run, and told as a kubelet and virt-handler tell them."""

import pytest

from app.devcluster import DevCluster, DevClusterConfig, ManualClock, NodeShape
from app.devcluster.apiserver import registry
from app.devcluster.nodes.node_shapes import change_shape, parse_shape
from tests.support.devcluster_bench import IMAGE, INSTANCES, machine

NODES = "/api/v1/nodes"
ADMIN = "/devcluster/v1/nodes"
HUGE = {"memory": {"guest": "1Gi", "hugepages": {"pageSize": "1Gi"}}}


@pytest.fixture
def config():
    special = NodeShape(
        cpu=8,
        memory="32Gi",
        hugepages_2mi="0",
        hugepages_1gi="4Gi",
        zone="zone-x",
        cpu_models=("EPYC", "Opteron_G5"),
        cpu_features=("vmx",),
        taints=("gpu=yes:NoSchedule", "old:NoExecute"),
        labels={"disk": "fast"},
        realtime=True,
    )
    return DevClusterConfig(
        nodes=2,
        node_shape=NodeShape(hugepages_2mi="0", cpumanager=False),
        named_nodes={"special": special, "node2": NodeShape(image_slots=1)},
        jitter_share=0.0,
    )


async def test_a_node_shows_its_shape(bench):
    node = await bench.get(f"{NODES}/special")
    assert (node["status"]["capacity"]["cpu"], node["status"]["allocatable"]["cpu"]) == ("8", "7")
    assert (node["status"]["capacity"]["memory"], node["status"]["allocatable"]["memory"]) == ("32Gi", "26880Mi")
    assert node["status"]["allocatable"]["hugepages-1Gi"] == "4Gi"
    labels = node["metadata"]["labels"]
    assert (labels["topology.kubernetes.io/zone"], labels["disk"], labels["kubevirt.io/realtime"]) == (
        "zone-x",
        "fast",
        "true",
    )
    models = {name for name in labels if name.startswith("cpu-model.node.kubevirt.io/")}
    assert models == {"cpu-model.node.kubevirt.io/EPYC", "cpu-model.node.kubevirt.io/Opteron_G5"}
    assert labels["host-model-cpu.node.kubevirt.io/EPYC"] == labels["cpu-feature.node.kubevirt.io/vmx"] == "true"
    assert node["spec"]["taints"] == [
        {"key": "gpu", "value": "yes", "effect": "NoSchedule"},
        {"key": "old", "effect": "NoExecute"},
    ]
    plain = (await bench.get(f"{NODES}/node1"))["metadata"]["labels"]
    assert (plain["kubevirt.io/cpumanager"], plain["topology.kubernetes.io/zone"]) == ("false", "zone-a")
    names = [item["metadata"]["name"] for item in (await bench.get(NODES))["items"]]
    assert names == ["node1", "node2", "special"]


async def test_a_node_that_is_given_pages_takes_what_waited_for_them(bench):
    await bench.create(machine("x", **HUGE))
    await bench.clock.advance(5)
    assert (await bench.status("x"))[0] == "ErrorUnschedulable"
    message = (await bench.condition("x", "PodScheduled"))["message"]
    assert message.startswith(
        "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient hugepages-1Gi. "
    )

    status, node = await bench.call("PATCH", f"{ADMIN}/node1", {"hugepages_1gi": "2Gi", "zone": "zone-z"})
    assert (status, node["shape"]["hugepages_1gi"], node["shape"]["cpumanager"]) == (200, "2Gi", False)
    await bench.clock.advance(60)
    assert await bench.status("x") == ("Running", "")
    assert (await bench.get(f"{INSTANCES}/x"))["status"]["nodeName"] == "node1"
    assert (await bench.get(f"{NODES}/node1"))["metadata"]["labels"]["topology.kubernetes.io/zone"] == "zone-z"


async def test_a_change_keeps_what_others_did_to_the_node(bench):
    headers = {"Content-Type": "application/merge-patch+json"}
    own = {"metadata": {"labels": {"mine": "1"}}, "spec": {"unschedulable": True}}
    assert (await bench.call("PATCH", f"{NODES}/special", own, headers=headers))[0] == 200
    before = await bench.get(f"{NODES}/special")

    assert (await bench.call("PATCH", f"{ADMIN}/special", {"taints": ["new:NoSchedule"], "labels": {}}))[0] == 200
    after = await bench.get(f"{NODES}/special")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"]["taints"] == [{"key": "new", "effect": "NoSchedule"}]
    assert (after["metadata"]["labels"]["mine"], after["spec"]["unschedulable"]) == ("1", True)
    assert "disk" not in after["metadata"]["labels"]


async def test_a_silent_node_keeps_its_own_taints(bench):
    await bench.call("POST", f"{ADMIN}/special/kill")
    await bench.clock.advance(50)
    keys = [taint["key"] for taint in (await bench.get(f"{NODES}/special"))["spec"]["taints"]]
    assert keys == ["gpu", "old", "node.kubernetes.io/unreachable", "node.kubernetes.io/unreachable"]

    await bench.call("POST", f"{ADMIN}/special/revive")
    await bench.clock.advance(1)
    assert [taint["key"] for taint in (await bench.get(f"{NODES}/special"))["spec"]["taints"]] == ["gpu", "old"]


async def test_a_taint_that_expels_moves_vms_away(bench):
    await bench.boot(machine("x"))
    node = (await bench.get(f"{INSTANCES}/x"))["status"]["nodeName"]

    await bench.call("PATCH", f"{ADMIN}/{node}", {"taints": ["out:NoExecute"]})
    await bench.clock.advance(60)

    assert await bench.status("x") == ("Running", "")
    assert (await bench.get(f"{INSTANCES}/x"))["status"]["nodeName"] != node


async def test_a_node_tells_its_images_and_keeps_those_in_use(bench):
    """One slot: the image of the running VM stays, and the one that nobody uses any more makes room."""
    only = {"kubernetes.io/hostname": "node2"}

    def pod(name, image):
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": image}], "nodeSelector": only},
        }

    async def told():
        images = (await bench.get(f"{NODES}/node2"))["status"]["images"]
        assert all(item["sizeBytes"] > 0 for item in images)
        return [item["names"][-1] for item in images]

    pods = "/api/v1/namespaces/default/pods"
    launcher = (await told())[0]
    assert "virt-launcher" in launcher
    for number in (1, 2):
        assert (await bench.call("POST", pods, pod(f"p{number}", f"x/y:{number}")))[0] == 201
        await bench.clock.advance(20)
    assert await told() == ["x/y:2", "x/y:1", launcher]
    names = (await bench.get(f"{NODES}/node2"))["status"]["images"][0]["names"]
    assert names[0].startswith("x/y@sha256:")

    await bench.call("DELETE", f"{pods}/p1")
    await bench.clock.advance(10)
    assert (await bench.call("POST", pods, pod("p3", "x/y:3")))[0] == 201
    await bench.clock.advance(20)
    assert await told() == ["x/y:3", "x/y:2", launcher]


async def test_shapes_and_images_outlive_a_restart(tmp_path):
    config = DevClusterConfig(
        nodes=1, node_shape=NodeShape(cpu=4, image_slots=2), images=(IMAGE,), state=tmp_path / "state.db"
    )
    clock = ManualClock()
    async with DevCluster(config, clock=clock) as cluster:
        cluster.change_node("node1", {"memory": "128Gi"})
        cluster.images.add("node1", "x/y:1")
    async with DevCluster(DevClusterConfig(nodes=1, state=tmp_path / "state.db"), clock=clock) as cluster:
        assert cluster.images.held() == {"node1": [IMAGE, "x/y:1"]}
        cluster.change_node("node1", {"zone": "zone-q"})
        cluster.images.add("node1", "x/y:2")
        assert cluster.images.held() == {"node1": ["x/y:1", "x/y:2"]}
        node = cluster.store.rows(registry.NODES)[0].obj
        assert node["status"]["capacity"]["memory"] == "128Gi"
        assert node["status"]["capacity"]["cpu"] == "4"


@pytest.mark.parametrize(
    "change",
    [
        {"cpu": True},
        {"hugepages_2mi": "1Ti"},
        {"taints": ["key=value:Never"]},
        {"taints": "key:NoSchedule"},
        {"cpu_models": []},
        {"labels": {"a": 1}},
        {"cpumanager": "yes"},
        {"image_slots": 0},
        {"zone": 3},
    ],
)
async def test_a_change_that_makes_no_sense_changes_nothing(bench, change):
    before = await bench.get(f"{NODES}/node1")

    assert (await bench.call("PATCH", f"{ADMIN}/node1", change))[0] == 400
    assert await bench.get(f"{NODES}/node1") == before


async def test_a_node_is_added_once_and_changed_where_it_is(bench):
    assert (await bench.call("POST", ADMIN, {"name": "node1"}))[0] == 409
    assert (await bench.call("PATCH", f"{ADMIN}/none", {"cpu": 3}))[0] == 404


def test_a_shape_is_read_from_one_argument():
    name, shape = parse_shape(
        "big,cpu=64,hugepages-1gi=8Gi,cpumanager=false,taints=a=b:NoSchedule+c:NoExecute,label.disk=fast,image_slots=3",
        NodeShape(memory="128Gi"),
    )

    assert name == "big"
    assert shape == NodeShape(
        cpu=64,
        memory="128Gi",
        hugepages_1gi="8Gi",
        cpumanager=False,
        taints=("a=b:NoSchedule", "c:NoExecute"),
        labels={"disk": "fast"},
        image_slots=3,
    )


@pytest.mark.parametrize("text", ["", "x,cpu", "x,cpu=many", "x,colour=red", "x,cpumanager=maybe", ",cpu=2"])
def test_an_argument_that_makes_no_sense_is_refused(text):
    with pytest.raises(ValueError, match=r"names no node|member=value|must be|is not known"):
        parse_shape(text, NodeShape())


def test_pages_must_fit_into_memory():
    with pytest.raises(ValueError, match="must fit into 'memory' together"):
        change_shape(NodeShape(memory="16Gi"), {})
