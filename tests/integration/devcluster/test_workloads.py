"""What the API server fills into pods and DaemonSets, and what it refuses of them."""

import pytest

PODS = "/api/v1/namespaces/default/pods"
SETS = "/apis/apps/v1/namespaces/default/daemonsets"
STRICT = "?fieldValidation=Strict&dryRun=All"
PATCH = {"Content-Type": "application/merge-patch+json"}


def pod(**spec):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [box()], **spec}}


def box(image="x/y:1", **more):
    return {"name": "c", "image": image, **more}


def daemon_set(selector=None, labels=None, **spec):
    labels = {"app": "a"} if labels is None else labels
    selector = {"matchLabels": {"app": "a"}} if selector is None else selector
    template = {"metadata": {"labels": labels}, "spec": {"containers": [box()], **spec}}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "d"},
        "spec": {"selector": selector, "template": template},
    }


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("x/y:1", "IfNotPresent"),
        ("x/y", "Always"),
        ("registry:5000/y", "Always"),
        ("x/y:latest", "Always"),
        ("x/y@sha256:0", "IfNotPresent"),
    ],
)
async def test_the_pull_policy_follows_the_tag(bench, image, policy):
    _, made = await bench.call("POST", PODS + STRICT, pod(containers=[box(image)]))

    assert made["spec"]["containers"][0]["imagePullPolicy"] == policy


async def test_limits_are_requests_where_none_are_given(bench):
    resources = {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}
    _, made = await bench.call("POST", PODS + STRICT, pod(containers=[box(resources=resources)]))

    assert made["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "500m", "memory": "1Gi"}
    assert made["status"]["qosClass"] == "Burstable"


async def test_a_daemon_set_gets_its_defaults_and_writing_it_again_changes_nothing(bench):
    _, made = await bench.call("POST", SETS, daemon_set())
    assert made["spec"]["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
    }
    assert made["spec"]["template"]["spec"]["restartPolicy"] == "Always"
    await bench.clock.advance(60)

    status, again = await bench.call("PATCH", f"{SETS}/d", daemon_set(), headers=PATCH)
    assert (status, again["metadata"]["generation"]) == (200, 1)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (
            daemon_set(labels={"app": "b"}),
            422,
            'Invalid value: {"app":"b"}: `selector` does not match template `labels`',
        ),
        (daemon_set(selector={}), 422, "spec.selector: Invalid value: {}: empty selector is invalid for daemonset"),
        (
            daemon_set(restartPolicy="Never"),
            422,
            'spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"',
        ),
        (daemon_set(containers=[]), 422, "spec.template.spec.containers: Required value"),
        (
            daemon_set(initContainers=[{"name": "c", "image": "x/z:1"}]),
            422,
            'spec.template.spec.initContainers[0].name: Duplicate value: "c"',
        ),
        (
            daemon_set(containers=[{"name": "c"}]),
            422,
            "spec.template.spec.containers[0].image: Required value",
        ),
        (
            daemon_set(containers=[box(imagePullPolicy="Maybe")]),
            422,
            'Unsupported value: "Maybe": supported values: "Always", "IfNotPresent", "Never"',
        ),
        (daemon_set(colour="red"), 400, 'strict decoding error: unknown field "spec.template.spec.colour"'),
        (
            daemon_set(containers=[box(images="x")]),
            400,
            'strict decoding error: unknown field "spec.template.spec.containers[0].images"',
        ),
        (
            daemon_set(containers=[box(resources={"requests": {"cpu": "many"}})]),
            400,
            "quantities must match the regular expression",
        ),
    ],
)
async def test_a_daemon_set_that_makes_no_sense_is_refused(bench, body, code, message):
    status, answer = await bench.call("POST", SETS + STRICT, body)

    assert status == code, answer
    assert message in answer["message"]


async def test_a_selector_is_never_changed(bench):
    await bench.call("POST", SETS, daemon_set(labels={"app": "a", "b": "c"}))
    change = {"spec": {"selector": {"matchLabels": {"b": "c"}}}}

    status, answer = await bench.call("PATCH", f"{SETS}/d", change, headers=PATCH)

    assert status == 422
    assert answer["message"].endswith("field is immutable")
