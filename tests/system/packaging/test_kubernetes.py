"""docker/kubernetes.yaml: rights, probes and restrictions, read as data."""

import re
import subprocess
from itertools import pairwise

import pytest
import yaml

from app.config import Settings
from tests.support.checkout import ROOT

DOCUMENTS = list(yaml.safe_load_all((ROOT / "docker" / "kubernetes.yaml").read_text(encoding="utf-8")))
DEPLOYMENTS = [each for each in DOCUMENTS if each["kind"] == "Deployment"]
PODS = [each["spec"]["template"]["spec"] for each in DEPLOYMENTS]
CONTAINERS = [container for pod in PODS for container in (*pod["initContainers"], *pod["containers"])]


def of_kind(kind: str) -> list[dict]:
    return [each for each in DOCUMENTS if each["kind"] == kind]


def only(kind: str) -> dict:
    (found,) = of_kind(kind)
    return found


NAMESPACE = only("Namespace")["metadata"]["name"]
OUTSIDE = {
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}


def test_all_of_it_is_in_one_namespace():
    inside = [each for each in DOCUMENTS if each["kind"] not in OUTSIDE]
    assert {each["metadata"].get("namespace") for each in inside} == {NAMESPACE}


def test_beyond_the_namespace_nodes_and_pods_are_read_and_nothing_else():
    rights = {
        (resource, verb)
        for rule in only("ClusterRole")["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert rights == {("nodes", "list"), ("nodes", "watch"), ("pods", "list"), ("pods", "watch")}
    assert {group for rule in only("ClusterRole")["rules"] for group in rule["apiGroups"]} == {""}


def only_role(name):
    (role,) = [each for each in of_kind("Role") if each["metadata"]["name"] == name]
    return role


def test_the_roles_name_each_right():
    # That each is needed, and that they suffice, is shown in test_rights.py.
    rules = [rule for role in of_kind("Role") for rule in role["rules"]]
    for rule in rules:
        for part in ("apiGroups", "resources", "verbs"):
            assert rule[part], rule
            assert "*" not in rule[part], rule
    assert not [rule for rule in only_role("emberpool-api")["rules"] if "secrets" in rule["resources"]]
    (identities,) = [rule for rule in rules if "secrets" in rule["resources"]]
    assert set(identities["verbs"]) == {
        "get",
        "create",
        "delete",
    }  # and none that shows which there are, or changes one


def test_each_rbac_rule_has_a_comment_that_says_why():
    lines = (ROOT / "docker" / "kubernetes.yaml").read_text(encoding="utf-8").splitlines()
    rules = [(before, line) for before, line in pairwise(lines) if re.match(r"  - apiGroups:", line)]
    assert len(rules) == sum(len(role["rules"]) for role in (*of_kind("Role"), *of_kind("ClusterRole")))
    assert all(before.lstrip().startswith("#") for before, _ in rules)


def test_each_pod_has_the_account_and_the_role_of_its_part():
    accounts = [each["metadata"]["name"] for each in of_kind("ServiceAccount")]
    assert accounts == ["emberpool-api", "emberpool-worker"]
    assert [
        (each["metadata"]["name"], pod["serviceAccountName"]) for each, pod in zip(DEPLOYMENTS, PODS, strict=True)
    ] == [(name, name) for name in accounts]
    bound = {
        (each["roleRef"]["kind"], each["roleRef"]["name"], subject["kind"], subject["name"], subject["namespace"])
        for each in (*of_kind("RoleBinding"), *of_kind("ClusterRoleBinding"))
        for subject in each["subjects"]
    }
    assert bound == {
        *(("Role", name, "ServiceAccount", name, NAMESPACE) for name in accounts),
        ("ClusterRole", "emberpool-nodes", "ServiceAccount", "emberpool-worker", NAMESPACE),
    }


def test_whatever_the_apis_role_may_create_it_may_only_try():
    (role,) = [each for each in of_kind("Role") if each["metadata"]["name"] == "emberpool-api"]
    created = {
        (group, resource)
        for rule in role["rules"]
        if "create" in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    policy, binding = only("ValidatingAdmissionPolicy"), only("ValidatingAdmissionPolicyBinding")["spec"]
    (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
    assert created <= {(group, resource) for group in rule["apiGroups"] for resource in rule["resources"]}
    assert (rule["apiVersions"], rule["operations"]) == (["*"], ["CREATE"])
    (condition,) = policy["spec"]["matchConditions"]
    user = f"system:serviceaccount:{NAMESPACE}:{role['metadata']['name']}"
    assert condition["expression"] == f"request.userInfo.username == '{user}'"
    assert [each["expression"] for each in policy["spec"]["validations"]] == ["has(request.dryRun) && request.dryRun"]
    assert policy["spec"]["failurePolicy"] == "Fail"
    assert binding == {"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]}
    # All other verbs of the API only read.
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} <= {"create", "get", "list"}


def test_guests_reach_the_port_for_guests_alone_and_the_services_pods_what_they_need_alone():
    spec = only("NetworkPolicy")["spec"]
    for deployment in DEPLOYMENTS:
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert spec["podSelector"]["matchLabels"].items() <= labels.items()
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    ingress, of_guests = spec["ingress"]
    assert of_guests["ports"] == [{"port": "guests", "protocol": "TCP"}]
    assert of_guests["from"] == [{"podSelector": {"matchLabels": {"kubevirt.io": "virt-launcher"}}}]
    assert ingress["ports"] == [{"port": "http", "protocol": "TCP"}]
    elsewhere, here = (
        each[kind] for each, kind in zip(ingress["from"], ("namespaceSelector", "podSelector"), strict=True)
    )
    own = {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [NAMESPACE]}
    assert elsewhere == {"matchExpressions": [own]}
    assert here == {"matchExpressions": [{"key": "kubevirt.io", "operator": "NotIn", "values": ["virt-launcher"]}]}
    (egress,) = spec["egress"]
    assert {(each["port"], each["protocol"]) for each in egress["ports"]} == {
        *((53, "UDP"), (53, "TCP")),  # DNS
        *((443, "TCP"), (6443, "TCP")),  # the API server, by its service and behind it
        (5432, "TCP"),
    }


@pytest.mark.parametrize(
    ("told_in", "image"),
    [
        ("docs/operations.md", "registry.example/emberpool"),
        (".github/workflows/release.yml", "ghcr.io/somebody/emberpool"),
    ],
)
def test_the_image_is_written_with_its_digest_as_the_documents_and_the_release_do(told_in, image):
    (command,) = re.findall(
        r'sed "s\|\\\(image: .*?" docker/kubernetes\.yaml', (ROOT / told_in).read_text(encoding="utf-8")
    )
    digest = f"sha256:{'0123456789abcdef' * 4}"
    given = {"IMAGE": f"{image}@{digest}"} if "$DIGEST" not in command else {"IMAGE": image.title(), "DIGEST": digest}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=given, capture_output=True, text=True, check=True)
    written = [each for each in yaml.safe_load_all(done.stdout) if each["kind"] == "Deployment"]
    pods = [each["spec"]["template"]["spec"] for each in written]
    images = [each["image"] for pod in pods for each in (*pod["initContainers"], *pod["containers"])]
    assert images == [f"{image}@{digest}"] * len(CONTAINERS)


@pytest.mark.parametrize("pod", PODS, ids=["api", "worker"])
def test_no_service_becomes_a_variable_that_is_a_setting(pod):
    # For a service called emberpool Kubernetes sets EMBERPOOL_PORT to an address.
    assert only("Service")["metadata"]["name"] == "emberpool"
    assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("pod", PODS, ids=["api", "worker"])
def test_each_scratch_volume_has_a_bound(pod):
    assert [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"]] == ["16Mi"]


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
    port, *of_guests = container["ports"]
    guests = [each["value"] for each in container["env"] if each["name"] == "EMBERPOOL_GUEST_PORT"]
    assert [str(each["containerPort"]) for each in of_guests] == guests
    assert f"EMBERPOOL_PORT={port['containerPort']}\n" in (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")


def test_each_variable_is_a_setting_and_secrets_are_referred_to():
    for container in CONTAINERS:
        for variable in container["env"]:
            name = variable["name"].removeprefix("EMBERPOOL_").lower()
            assert name in Settings.model_fields
            if "Secret" in str(Settings.model_fields[name].annotation):
                assert "secretKeyRef" in variable["valueFrom"]
    assert not [each for each in DOCUMENTS if each["kind"] == "Secret"]
