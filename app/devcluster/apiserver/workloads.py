"""Pods and DaemonSets in the API server: defaults, unknown fields and validation (Kubernetes 1.36)."""

import json
from collections.abc import Iterator

from app.devcluster.apiserver.label_selectors import selects
from app.devcluster.apiserver.pod_resources import qos_class
from app.devcluster.apiserver.quantities import QUANTITY_RULE, is_quantity
from app.devcluster.apiserver.registry import DAEMON_SETS, PODS, Resource
from app.devcluster.apiserver.status import Json, cause

_TOP = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})
_DAEMON_SET_SPEC = frozenset({"selector", "template", "updateStrategy", "minReadySeconds", "revisionHistoryLimit"})
_POD_SPEC = frozenset(
    [
        "activeDeadlineSeconds",
        "affinity",
        "automountServiceAccountToken",
        "containers",
        "dnsConfig",
        "dnsPolicy",
        "enableServiceLinks",
        "ephemeralContainers",
        "hostAliases",
        "hostIPC",
        "hostNetwork",
        "hostPID",
        "hostUsers",
        "hostname",
        "hostnameOverride",
        "imagePullSecrets",
        "initContainers",
        "nodeName",
        "nodeSelector",
        "os",
        "overhead",
        "preemptionPolicy",
        "priority",
        "priorityClassName",
        "readinessGates",
        "resourceClaims",
        "resources",
        "restartPolicy",
        "runtimeClassName",
        "schedulerName",
        "schedulingGates",
        "securityContext",
        "serviceAccount",
        "serviceAccountName",
        "setHostnameAsFQDN",
        "shareProcessNamespace",
        "subdomain",
        "terminationGracePeriodSeconds",
        "tolerations",
        "topologySpreadConstraints",
        "volumes",
        "workloadRef",
    ]
)
_CONTAINER = frozenset(
    [
        "args",
        "command",
        "env",
        "envFrom",
        "image",
        "imagePullPolicy",
        "lifecycle",
        "livenessProbe",
        "name",
        "ports",
        "readinessProbe",
        "resizePolicy",
        "resources",
        "restartPolicy",
        "restartPolicyRules",
        "securityContext",
        "startupProbe",
        "stdin",
        "stdinOnce",
        "terminationMessagePath",
        "terminationMessagePolicy",
        "tty",
        "volumeDevices",
        "volumeMounts",
        "workingDir",
    ]
)
_POLICIES = ("Always", "IfNotPresent", "Never")
KINDS = frozenset({PODS.id, DAEMON_SETS.id})


def unknown_fields(resource: Resource, obj: Json) -> list[str]:
    """Paths of unknown fields; only the parts of a pod that matter to nodes and images are checked."""
    found = sorted(set(obj) - _TOP)
    spec, path = obj.get("spec") or {}, "spec"
    if resource is DAEMON_SETS:
        found += sorted(f"spec.{name}" for name in set(spec) - _DAEMON_SET_SPEC)
        template = spec.get("template") or {}
        found += sorted(f"spec.template.{name}" for name in set(template) - {"metadata", "spec"})
        spec, path = template.get("spec") or {}, "spec.template.spec"
    found += sorted(f"{path}.{name}" for name in set(spec) - _POD_SPEC)
    for where, container in _containers(spec, path):
        found += sorted(f"{where}.{name}" for name in set(container) - _CONTAINER)
    return found


def decoding_problem(resource: Resource, obj: Json) -> str | None:
    """Why a value does not parse into its Go type; None where it does."""
    for _, container in _containers(_pod_spec(resource, obj), ""):
        resources = container.get("resources") or {}
        for given in (resources.get("requests") or {}, resources.get("limits") or {}):
            if not all(is_quantity(value) for value in given.values()):
                return QUANTITY_RULE
    return None


def with_defaults(resource: Resource, obj: Json) -> Json:
    """The object with the defaults that a client reads back."""
    spec = obj.get("spec") or {}
    if resource is PODS:
        obj = {**obj, "spec": _pod_with_defaults(spec)}
        return obj if "status" in obj else {**obj, "status": {"phase": "Pending", "qosClass": qos_class(obj["spec"])}}
    template = spec.get("template") or {}
    strategy = spec.get("updateStrategy") or {"type": "RollingUpdate"}
    if strategy.get("type") == "RollingUpdate":
        strategy = {
            **strategy,
            "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1, **(strategy.get("rollingUpdate") or {})},
        }
    template = {**template, "spec": _pod_with_defaults(template.get("spec") or {})}
    return {**obj, "spec": {"revisionHistoryLimit": 10, **spec, "template": template, "updateStrategy": strategy}}


def check(resource: Resource, obj: Json, old: Json | None) -> list[Json]:
    causes: list[Json] = []
    spec, path = _pod_spec(resource, obj), "spec"
    if resource is DAEMON_SETS:
        path = "spec.template.spec"
        causes += _check_selector(obj["spec"], old)
        if spec.get("restartPolicy") != "Always":
            causes.append(_unsupported(f"{path}.restartPolicy", spec.get("restartPolicy"), ("Always",)))
    if not spec.get("containers"):
        causes.append(cause("FieldValueRequired", "Required value", f"{path}.containers"))
    names: set[str] = set()
    for where, container in _containers(spec, path):
        causes += [
            cause("FieldValueRequired", "Required value", f"{where}.{name}")
            for name in ("name", "image")
            if not container.get(name)
        ]
        name = container.get("name", "")
        if name and name in names:
            causes.append(cause("FieldValueDuplicate", f'Duplicate value: "{name}"', f"{where}.name"))
        names.add(name)
        if container.get("imagePullPolicy") not in _POLICIES:
            causes.append(_unsupported(f"{where}.imagePullPolicy", container.get("imagePullPolicy"), _POLICIES))
    return causes


def _check_selector(spec: Json, old: Json | None) -> list[Json]:
    selector = spec.get("selector")
    labels = (spec["template"].get("metadata") or {}).get("labels") or {}
    if selector is None:
        return [cause("FieldValueRequired", "Required value", "spec.selector")]
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        message = "Invalid value: {}: empty selector is invalid for daemonset"
        return [cause("FieldValueInvalid", message, "spec.selector")]
    told: list[Json] = []
    if not selects(selector, labels):
        shown = json.dumps(labels, separators=(",", ":"), sort_keys=True)
        message = f"Invalid value: {shown}: `selector` does not match template `labels`"
        told.append(cause("FieldValueInvalid", message, "spec.template.metadata.labels"))
    if old is not None and old["spec"].get("selector") != selector:
        shown = json.dumps(selector, separators=(",", ":"), sort_keys=True)
        told.append(cause("FieldValueInvalid", f"Invalid value: {shown}: field is immutable", "spec.selector"))
    return told


def _unsupported(field: str, value: object, supported: tuple[str, ...]) -> Json:
    names = ", ".join(f'"{name}"' for name in supported)
    return cause("FieldValueNotSupported", f'Unsupported value: "{value}": supported values: {names}', field)


def _pod_spec(resource: Resource, obj: Json) -> Json:
    spec: Json = obj.get("spec") or {}
    return (spec.get("template") or {}).get("spec") or {} if resource is DAEMON_SETS else spec


def _containers(spec: Json, path: str) -> Iterator[tuple[str, Json]]:
    for kind in ("containers", "initContainers"):
        for number, container in enumerate(spec.get(kind) or ()):
            yield f"{path}.{kind}[{number}]", container


def _pod_with_defaults(spec: Json) -> Json:
    result = {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        **spec,
    }
    for kind in ("containers", "initContainers"):
        if spec.get(kind):
            result[kind] = [_container_with_defaults(item) for item in spec[kind]]
    return result


def _container_with_defaults(container: Json) -> Json:
    result = {
        "imagePullPolicy": _default_policy(container.get("image", "")),
        "resources": {},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        **container,
    }
    resources = result["resources"] or {}
    if resources.get("limits"):
        requests = {**resources["limits"], **(resources.get("requests") or {})}
        result["resources"] = {**resources, "requests": requests}
    return result


def _default_policy(image: str) -> str:
    """Always for an image that may change under its name: the tag `latest`, also where it is implied."""
    name, marked, _ = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return "IfNotPresent" if marked or (tag and tag != "latest") else "Always"
