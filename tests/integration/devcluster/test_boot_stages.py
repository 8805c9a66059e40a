"""The times of a boot by stage, as a client reads them from the launcher pod and its VMI."""

from datetime import datetime
from itertools import pairwise

import pytest
import yaml

from app.devcluster import DevClusterConfig, Durations, NodeShape
from app.devcluster.__main__ import parse
from tests.support.devcluster_bench import IMAGE, INSTANCES, MACHINES, machine

PODS = "/api/v1/namespaces/default/pods"
DURATIONS = Durations()

PINNED = """
domain:
  devices: {}
  cpu: {cores: 2, sockets: 1, dedicatedCpuPlacement: true}
  resources: {requests: {memory: 2Gi, cpu: "2"}}
"""
HUGE = """
domain:
  devices: {}
  memory: {hugepages: {pageSize: 2Mi}}
  resources: {requests: {memory: 2Gi, cpu: "2"}}
"""


@pytest.fixture
def config():
    return DevClusterConfig(nodes=1, jitter_share=0.0)


def when(text):
    return datetime.fromisoformat(text)


def condition(obj, kind):
    return next((item for item in obj["status"].get("conditions", ()) if item["type"] == kind), None)


async def launcher(bench, selector="kubevirt.io in (virt-launcher)"):
    items = (await bench.get(f"{PODS}?labelSelector={selector.replace(' ', '%20')}"))["items"]
    assert len(items) == 1
    return items[0]


async def test_each_stage_leaves_its_time(bench):
    await bench.boot(machine("x"))

    pod, vmi = await launcher(bench), await bench.get(f"{INSTANCES}/x")
    times = {
        "created": when(pod["metadata"]["creationTimestamp"]),
        "scheduled": when(condition(pod, "PodScheduled")["lastTransitionTime"]),
        "initialized": when(condition(pod, "Initialized")["lastTransitionTime"]),
        "started": when(pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]),
        "connected": when(condition(vmi, "AgentConnected")["lastTransitionTime"]),
        "ready": when(condition(vmi, "Ready")["lastTransitionTime"]),
    }
    moments = list(times.values())
    steps = [(later - sooner).total_seconds() for sooner, later in pairwise(moments)]
    expected = [
        DURATIONS.schedule,
        DURATIONS.image_pull,
        DURATIONS.launch,
        DURATIONS.domain_start + DURATIONS.guest_boot,
        DURATIONS.probe,
    ]
    # Times are told in whole seconds.
    assert all(abs(step - seconds) <= 1 for step, seconds in zip(steps, expected, strict=True)), (steps, expected)
    assert condition(pod, "Ready")["lastTransitionTime"] == condition(vmi, "Ready")["lastTransitionTime"]
    assert condition(pod, "ContainersReady")["status"] == "True"


async def test_what_a_pod_shows_while_its_image_comes(bench):
    await bench.create(machine("x", labels={"pool": "p", "tier": "gold"}))
    await bench.clock.advance(5)

    pod = await launcher(bench, "tier in (silver,gold),pool=p")
    assert pod["status"]["phase"] == "Pending"
    assert condition(pod, "PodScheduled")["status"] == "True"
    initialized = condition(pod, "Initialized")
    assert (initialized["status"], initialized["reason"]) == ("False", "ContainersNotInitialized")
    assert [item["name"] for item in pod["status"]["initContainerStatuses"]] == ["guest-console-log", "volumeroot"]
    vmi = await bench.get(f"{INSTANCES}/x")
    assert pod["metadata"]["labels"]["kubevirt.io/created-by"] == vmi["metadata"]["uid"]
    assert pod["metadata"]["labels"]["vm.kubevirt.io/name"] == "x"

    await bench.clock.advance(8)
    pod = await launcher(bench)
    disk = pod["status"]["initContainerStatuses"][1]
    assert (disk["image"], disk["state"]["terminated"]["reason"]) == (IMAGE, "Completed")
    assert (condition(pod, "Initialized")["status"], pod["status"]["phase"]) == ("True", "Pending")


async def test_an_image_error_is_told_where_the_image_is_used(bench):
    await bench.order(kind="image-error", settings={"message": "gone"})
    await bench.create(machine("x"))
    await bench.clock.advance(4)

    pod = await launcher(bench)
    states = {item["name"]: item["state"]["waiting"] for item in pod["status"]["initContainerStatuses"]}
    assert states["volumeroot"] == {"reason": "ErrImagePull", "message": "gone"}
    assert states["guest-console-log"] == {"reason": "PodInitializing"}
    assert (await bench.status("x"))[0] == "ErrImagePull"


async def test_a_disk_image_that_must_not_be_pulled(bench):
    vm = machine("x")
    vm["spec"]["template"]["spec"]["volumes"][0]["containerDisk"]["imagePullPolicy"] = "Never"
    await bench.create(vm)
    await bench.clock.advance(60)
    pod = await launcher(bench)
    assert pod["status"]["initContainerStatuses"][1]["state"]["waiting"]["reason"] == "ErrImageNeverPull"

    bench.cluster.images.add("node1", IMAGE)
    await bench.clock.advance(60)
    assert await bench.status("x") == ("Running", "")


def bare(name, text):
    spec = {"runStrategy": "Always", "template": {"spec": yaml.safe_load(text)}}
    return {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": name}, "spec": spec}


def test_the_command_s_nodes_pin_cpus_and_have_pages_of_both_sizes():
    shape = parse([])[1].node_shape
    assert (shape.cpumanager, shape.hugepages_2mi, shape.hugepages_1gi) == (True, "64Gi", "16Gi")

    _, plain = parse(["--no-cpumanager", "--hugepages-2mi", "0", "--hugepages-1gi", "0", "--node", "big,cpu=64"])
    assert plain.node_shape == NodeShape(cpumanager=False, hugepages_2mi="0")
    assert plain.named_nodes == {"big": NodeShape(cpu=64, cpumanager=False, hugepages_2mi="0")}


@pytest.mark.parametrize("bad", ["big,cpu=none", "big,hugepages_1gi=1Ti"])
def test_a_node_that_makes_no_sense_ends_the_command(capsys, bad):
    with pytest.raises(SystemExit):
        parse(["--node", bad])

    assert "must " in capsys.readouterr().err


async def test_pinned_and_hugepage_vms_start_where_nodes_have_what_they_need(bench):
    await bench.boot(bare("pinned", PINNED), bare("huge", HUGE))

    assert [(await bench.status(name))[0] for name in ("pinned", "huge")] == ["Running", "Running"]
    used = (await bench.get("/devcluster/v1/nodes"))["items"][0]["used"]
    assert used["hugepages-2Mi"] == 2 * 2**30
    assert used["cpu"] == 2000 + 15 + 2000 + 5


async def test_and_say_what_is_missing_where_they_have_not(bench):
    await bench.call("PATCH", "/devcluster/v1/nodes/node1", {"cpumanager": False, "hugepages_2mi": "0"})
    await bench.boot(bare("pinned", PINNED), bare("huge", HUGE))

    messages = [(await bench.condition(name, "PodScheduled"))["message"] for name in ("pinned", "huge")]
    assert messages[0].startswith("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. ")
    assert messages[1].startswith("0/1 nodes are available: 1 Insufficient hugepages-2Mi. ")
    assert (await bench.get(f"{MACHINES}/huge"))["status"]["printableStatus"] == "ErrorUnschedulable"
