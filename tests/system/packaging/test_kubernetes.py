"""docker/kubernetes.yaml: rights, probes and restrictions, read as data."""

from itertools import pairwise

import pytest
import yaml

from app.config import Settings
from tests.support.checkout import ROOT

DOCUMENTS = list(yaml.safe_load_all((ROOT / "docker" / "kubernetes.yaml").read_text(encoding="utf-8")))
DEPLOYMENTS = [each for each in DOCUMENTS if each["kind"] == "Deployment"]
PODS = [each["spec"]["template"]["spec"] for each in DEPLOYMENTS]
CONTAINERS = [container for pod in PODS for container in (*pod["initContainers"], *pod["containers"])]


def only(kind: str) -> dict:
    (found,) = [each for each in DOCUMENTS if each["kind"] == kind]
    return found


def test_all_of_it_is_in_one_namespace():
    namespace = only("Namespace")["metadata"]["name"]
    inside = [each for each in DOCUMENTS if each["kind"] not in {"Namespace", "ClusterRole", "ClusterRoleBinding"}]
    assert {each["metadata"].get("namespace") for each in inside} == {namespace}


def test_beyond_the_namespace_nodes_and_pods_are_read_and_nothing_else():
    rights = {
        (resource, verb)
        for rule in only("ClusterRole")["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert rights == {("nodes", "list"), ("nodes", "watch"), ("pods", "list"), ("pods", "watch")}
    assert {group for rule in only("ClusterRole")["rules"] for group in rule["apiGroups"]} == {""}


def test_the_role_names_each_right():
    # That each is needed, and that they suffice, is shown in test_rights.py.
    for rule in only("Role")["rules"]:
        for part in ("apiGroups", "resources", "verbs"):
            assert rule[part], rule
            assert "*" not in rule[part], rule
    assert not [rule for rule in only("Role")["rules"] if "secrets" in rule["resources"]]


def test_each_rbac_rule_has_a_comment_that_says_why():
    lines = (ROOT / "docker" / "kubernetes.yaml").read_text(encoding="utf-8").splitlines()
    rules = [(before, line) for before, line in pairwise(lines) if line.lstrip().startswith("- apiGroups:")]
    assert len(rules) == len(only("Role")["rules"]) + len(only("ClusterRole")["rules"])
    assert all(before.lstrip().startswith("#") for before, _ in rules)


@pytest.mark.parametrize("kind", ["Role", "ClusterRole"])
def test_the_bindings_join_our_roles_to_our_account(kind):
    binding, account = only(f"{kind}Binding"), only("ServiceAccount")["metadata"]
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == (kind, only(kind)["metadata"]["name"])
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]
    assert {pod["serviceAccountName"] for pod in PODS} == {account["name"]}


def test_api_and_worker_run_in_two_replicas_each():
    roles = {deployment["spec"]["template"]["spec"]["containers"][0]["args"][-1] for deployment in DEPLOYMENTS}
    assert roles == {"api", "worker"}
    assert {deployment["spec"]["replicas"] for deployment in DEPLOYMENTS} == {2}


def test_selectors_and_budgets_fit_the_pods():
    pods = [deployment["spec"]["template"]["metadata"]["labels"] for deployment in DEPLOYMENTS]
    for deployment, labels in zip(DEPLOYMENTS, pods, strict=True):
        assert deployment["spec"]["selector"]["matchLabels"] == labels
    budgets = [each["spec"]["selector"]["matchLabels"] for each in DOCUMENTS if each["kind"] == "PodDisruptionBudget"]
    assert budgets == pods
    (served,) = [labels for labels in pods if labels["app.kubernetes.io/component"] == "api"]
    assert only("Service")["spec"]["selector"] == served


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda each: f"{each['name']}-{each['args'][-1]}")
def test_each_container_is_restricted_and_bounded(container):
    # The "restricted" profile of the Pod Security Standards, with what the pod's own context adds.
    context = container["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("pod", PODS, ids=["api", "worker"])
def test_each_pod_is_not_root_and_has_time_to_drain(pod):
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    pause = int(container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["", "0"])[1])
    grace = Settings.model_fields["shutdown_grace_seconds"].default
    assert pod["terminationGracePeriodSeconds"] > pause + grace


def test_the_pods_user_is_the_images():
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    for pod in PODS:
        context = pod["securityContext"]
        assert f"USER {context['runAsUser']}:{context['runAsGroup']}\n" in dockerfile


@pytest.mark.parametrize("pod", PODS, ids=["api", "worker"])
def test_each_pod_is_probed_on_the_port_that_the_image_serves(pod):
    (container,) = pod["containers"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["startupProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    (port,) = container["ports"]
    assert f"EMBERPOOL_PORT={port['containerPort']}\n" in (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")


def test_each_variable_is_a_setting_and_secrets_are_referred_to():
    for container in CONTAINERS:
        for variable in container["env"]:
            name = variable["name"].removeprefix("EMBERPOOL_").lower()
            assert name in Settings.model_fields
            if "Secret" in str(Settings.model_fields[name].annotation):
                assert "secretKeyRef" in variable["valueFrom"]
    assert not [each for each in DOCUMENTS if each["kind"] == "Secret"]
