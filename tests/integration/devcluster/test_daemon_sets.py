"""DaemonSets: on which nodes their pods are, what they wait for, and what stays when they go."""

import pytest

from app.devcluster import DevClusterConfig, NodeShape
from tests.support.devcluster_bench import IMAGE, machine

PODS = "/api/v1/namespaces/default/pods"
SETS = "/apis/apps/v1/namespaces/default/daemonsets"
PATCH = {"Content-Type": "application/merge-patch+json"}
COUNTS = ("desiredNumberScheduled", "currentNumberScheduled", "numberReady", "numberUnavailable", "numberMisscheduled")


@pytest.fixture
def config():
    shapes = {
        "node2": NodeShape(labels={"disk": "fast"}),
        "node3": NodeShape(labels={"disk": "fast"}, taints=("gpu=yes:NoSchedule",), image_slots=1),
    }
    return DevClusterConfig(nodes=3, named_nodes=shapes, jitter_share=0.0)


def daemon_set(name="near", image=IMAGE, **spec):
    containers = spec.pop("containers", [{"name": "image", "image": image}])
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": containers, **spec}},
        },
    }


async def create(bench, body, seconds=20):
    status, answer = await bench.call("POST", SETS, body)
    assert status == 201, answer
    await bench.clock.advance(seconds)


async def counts(bench, name="near"):
    status = (await bench.get(f"{SETS}/{name}"))["status"]
    return tuple(status[field] for field in COUNTS)


async def pods(bench, name="near"):
    """By node."""
    items = (await bench.get(f"{PODS}?labelSelector=app%20in%20({name})"))["items"]
    return {item["spec"].get("nodeName"): item for item in items}


def waiting(pod, kind="containerStatuses"):
    return [item["state"].get("waiting", {}).get("reason") for item in pod["status"].get(kind, ())]


@pytest.mark.parametrize(
    ("spec", "nodes"),
    [
        ({}, {"node1", "node2"}),
        ({"nodeSelector": {"disk": "fast"}}, {"node2"}),
        ({"nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}, {"node2", "node3"}),
        (
            {
                "affinity": {
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [
                                {"matchExpressions": [{"key": "disk", "operator": "DoesNotExist"}]},
                                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node2"]}]},
                            ]
                        }
                    }
                }
            },
            {"node1", "node2"},
        ),
        ({"nodeSelector": {"disk": "none"}}, set()),
    ],
)
async def test_pods_are_where_the_template_may_run(bench, spec, nodes):
    await create(bench, daemon_set(**spec))

    assert set(await pods(bench)) == nodes
    assert await counts(bench) == (len(nodes), len(nodes), len(nodes), 0, 0)


async def test_pods_follow_the_nodes_labels_taints_and_coming(bench):
    await create(bench, daemon_set(nodeSelector={"disk": "fast"}))
    assert set(await pods(bench)) == {"node2"}

    await bench.call("PATCH", "/api/v1/nodes/node1", {"metadata": {"labels": {"disk": "fast"}}}, headers=PATCH)
    await bench.call("PATCH", "/devcluster/v1/nodes/node3", {"taints": []})
    await bench.call("POST", "/devcluster/v1/nodes", {"name": "new", "labels": {"disk": "fast"}})
    await bench.clock.advance(20)
    assert set(await pods(bench)) == {"node1", "node2", "node3", "new"}

    await bench.call("PATCH", "/api/v1/nodes/node1", {"metadata": {"labels": {"disk": None}}}, headers=PATCH)
    await bench.call("PATCH", "/devcluster/v1/nodes/node3", {"taints": ["late:NoSchedule"]})
    await bench.call("DELETE", "/devcluster/v1/nodes/new")
    await bench.clock.advance(20)
    # A taint that lets none in leaves those that are there.
    assert set(await pods(bench)) == {"node2", "node3"}
    assert await counts(bench) == (1, 1, 1, 0, 1)


async def test_what_a_pod_waits_for(bench):
    init = [{"name": "first", "image": "x/init:1"}]
    await create(bench, daemon_set(nodeSelector={"disk": "fast"}, initContainers=init), seconds=2)
    pod = (await pods(bench))["node2"]
    assert (waiting(pod, "initContainerStatuses"), waiting(pod)) == (["PodInitializing"], ["PodInitializing"])
    assert await counts(bench) == (1, 1, 0, 1, 0)

    await bench.clock.advance(20)
    status = (await pods(bench))["node2"]["status"]
    assert status["initContainerStatuses"][0]["state"]["terminated"]["reason"] == "Completed"
    assert "startedAt" in status["containerStatuses"][0]["state"]["running"]
    assert {item["type"]: item["status"] for item in status["conditions"]} == dict.fromkeys(
        ("PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"), "True"
    )


async def test_an_image_that_cannot_be_pulled_on_one_node(bench):
    fault = await bench.order(
        kind="image-error", resource="pods", settings={"node": "node2", "message": "no such image"}
    )
    await create(bench, daemon_set(), seconds=6)
    found = await pods(bench)
    assert (waiting(found["node1"]), waiting(found["node2"])) == (["ContainerCreating"], ["ErrImagePull"])
    await bench.clock.advance(10)
    state = (await pods(bench))["node2"]["status"]["containerStatuses"][0]["state"]["waiting"]
    assert state == {
        "reason": "ImagePullBackOff",
        "message": f'Back-off pulling image "{IMAGE}": ErrImagePull: no such image',
    }
    assert await counts(bench) == (2, 2, 1, 1, 0)

    await bench.call("DELETE", f"/devcluster/v1/faults/{fault}")
    await bench.clock.advance(20)
    assert await counts(bench) == (2, 2, 2, 0, 0)


async def test_an_image_that_must_not_be_pulled_waits_until_it_is_there(bench):
    never = [{"name": "image", "image": IMAGE, "imagePullPolicy": "Never"}]
    await create(bench, daemon_set("never", nodeSelector={"disk": "fast"}, containers=never))
    assert waiting((await pods(bench, "never"))["node2"]) == ["ErrImageNeverPull"]

    await create(bench, daemon_set(nodeSelector={"disk": "fast"}), seconds=30)
    assert await counts(bench, "never") == (1, 1, 1, 0, 0)


async def test_a_pull_is_shared_by_all_who_wait_for_it(bench):
    await create(bench, daemon_set(), seconds=6)
    await bench.create(machine("x"))
    # The VM waits for what is left of the pull, not for one of its own.
    await bench.clock.advance(25)

    assert await bench.status("x") == ("Running", "")


async def test_an_image_stays_while_its_pod_runs_and_may_go_after_it(bench):
    tolerant = {"nodeSelector": {"kubernetes.io/hostname": "node3"}, "tolerations": [{"operator": "Exists"}]}
    await create(bench, daemon_set(image="x/kept:1", **tolerant))
    await create(bench, daemon_set("other", image="x/other:1", **tolerant))

    async def held():
        nodes = (await bench.get("/devcluster/v1/nodes"))["items"]
        return next(node["images"] for node in nodes if node["name"] == "node3")

    assert await held() == ["x/kept:1", "x/other:1"]
    await bench.call("DELETE", f"{SETS}/near", {"propagationPolicy": "Foreground"})
    await bench.clock.advance(20)
    assert (await bench.call("GET", f"{SETS}/near"))[0] == 404
    assert await held() == ["x/kept:1", "x/other:1"]

    await create(bench, daemon_set("third", image="x/third:1", **tolerant))
    assert await held() == ["x/other:1", "x/third:1"]


async def test_another_template_replaces_the_pods_one_by_one(bench):
    await create(bench, daemon_set(image="x/a:1"))
    before = {node: item["metadata"]["uid"] for node, item in (await pods(bench)).items()}
    containers = [{"name": "image", "image": "x/a:2"}]
    change = {"spec": {"template": {"spec": {"containers": containers}}}}
    assert (await bench.call("PATCH", f"{SETS}/near", change, headers=PATCH))[0] == 200

    await bench.clock.advance(10)
    status = (await bench.get(f"{SETS}/near"))["status"]
    assert (status["observedGeneration"], status["updatedNumberScheduled"], status["numberReady"]) == (2, 1, 1)
    await bench.clock.advance(40)
    assert await counts(bench) == (2, 2, 2, 0, 0)
    after = await pods(bench)
    assert {item["spec"]["containers"][0]["image"] for item in after.values()} == {"x/a:2"}
    assert all(item["metadata"]["uid"] != before[node] for node, item in after.items())


async def test_a_silent_node_keeps_its_pod(bench):
    await create(bench, daemon_set())
    await bench.call("POST", "/devcluster/v1/nodes/node1/kill")
    await bench.clock.advance(600)

    assert "deletionTimestamp" not in (await pods(bench))["node1"]["metadata"]
    # The taint lets no new pod in: the one that is there is no longer counted as wanted.
    assert await counts(bench) == (1, 1, 1, 0, 1)
    await bench.call("POST", "/devcluster/v1/nodes/node1/revive")
    await bench.clock.advance(60)
    assert (await counts(bench))[:2] == (2, 2)


async def test_pods_wait_for_room_and_say_so(bench):
    big = [{"name": "image", "image": IMAGE, "resources": {"requests": {"cpu": "1k"}}}]
    await create(bench, daemon_set(containers=big, nodeSelector={"disk": "fast"}))

    pod = (await pods(bench))[None]
    condition = next(item for item in pod["status"]["conditions"] if item["type"] == "PodScheduled")
    assert condition["message"].startswith(
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) [NodeAffinity]. "
    )
    assert await counts(bench) == (1, 1, 0, 1, 0)
