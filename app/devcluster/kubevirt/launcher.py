"""Builds the virt-launcher pod of a VMI (KubeVirt v1.9.0: virt-controller's template service)."""

import hashlib
from datetime import datetime

from app.devcluster.apiserver.objects import annotations_of, labels_of, new_object, owned_by
from app.devcluster.apiserver.pod_images import LAUNCHER_IMAGE
from app.devcluster.apiserver.pod_resources import qos_class
from app.devcluster.apiserver.registry import PODS
from app.devcluster.apiserver.status import Json
from app.devcluster.kubevirt.launcher_resources import (
    compute_resources,
    console_log_resources,
    container_disk_resources,
    is_pinned,
)
from app.devcluster.storage.volumes import claim_of

VM_FINALIZER = "kubevirt.io/virtualMachineControllerFinalize"
VMI_FINALIZERS = (VM_FINALIZER, "kubevirt.io/foregroundDeleteVirtualMachine")
OBSERVED = {"kubevirt.io/latest-observed-api-version": "v1", "kubevirt.io/storage-observed-api-version": "v1"}
_OBSOLETE_MODEL = "node-labeller.kubevirt.io/obsolete-host-model"
_HOST_MODELS = frozenset({"host-model", "host-passthrough"})
_GRACE_PADDING = 30
_NOT_CARRIED = (
    "kubectl.kubernetes.io",
    "kubevirt.io/latest-observed-api-version",
    "kubevirt.io/storage-observed-api-version",
)
_LABEL_LIMIT = 63
_HASH_LENGTH = 8


def build_pod(vmi: Json, suffix: str, now: datetime, state_claim: str = "") -> Json:
    """`state_claim`: the claim with the state of its TPM or EFI, if it keeps any."""
    metadata, spec = vmi["metadata"], vmi["spec"]
    hostname = spec.get("hostname") or metadata["name"].split(".")[0][:_LABEL_LIMIT]
    pod_spec: Json = {
        "affinity": _affinity(spec),
        "automountServiceAccountToken": False,
        "containers": [
            {
                "name": "compute",
                "image": LAUNCHER_IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "resources": compute_resources(spec, metadata.get("annotations") or {}).rendered,
            }
        ],
        "enableServiceLinks": False,
        "hostname": hostname,
        "initContainers": _init_containers(spec),
        "nodeSelector": _node_selector(spec),
        "readinessGates": [{"conditionType": "kubevirt.io/virtual-machine-unpaused"}],
        "restartPolicy": "Never",
        "schedulerName": spec.get("schedulerName", "default-scheduler"),
        "terminationGracePeriodSeconds": spec.get("terminationGracePeriodSeconds", 30) + _GRACE_PADDING,
        "tolerations": spec.get("tolerations"),
        "topologySpreadConstraints": spec.get("topologySpreadConstraints"),
        "volumes": _volumes(spec, state_claim),
    }
    pod_spec = {name: value for name, value in pod_spec.items() if value not in (None, [])}
    pod = new_object(
        PODS,
        f"virt-launcher-{metadata['name'][:220]}-{suffix}",
        metadata["namespace"],
        now,
        annotations={"kubevirt.io/domain": metadata["name"], **_carried(annotations_of(vmi))},
        generateName=f"virt-launcher-{metadata['name']}-",
        labels={
            **labels_of(vmi),
            "kubevirt.io": "virt-launcher",
            "kubevirt.io/created-by": metadata["uid"],
            "vm.kubevirt.io/name": hostname,
            "vmi.kubevirt.io/id": _instance_id(metadata["name"]),
        },
        ownerReferences=owned_by(vmi),
    )
    return {**pod, "spec": pod_spec, "status": {"phase": "Pending", "qosClass": qos_class(pod_spec)}}


def _carried(annotations: dict[str, str]) -> dict[str, str]:
    """The annotations of a VMI that its pod gets."""
    return {key: value for key, value in annotations.items() if not key.startswith(_NOT_CARRIED)}


def _instance_id(name: str) -> str:
    """The name of a VMI as a label value; a long name is cut and gets a hash."""
    if len(name) <= _LABEL_LIMIT:
        return name
    digest = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
    return f"{name[: _LABEL_LIMIT - _HASH_LENGTH - 1]}-{digest[:_HASH_LENGTH]}"


def _init_containers(spec: Json) -> list[Json]:
    """A sidecar logs the console; one container for each container disk only makes the node pull its image."""
    devices = spec["domain"].get("devices") or {}
    found: list[Json] = []
    if devices.get("autoattachSerialConsole", True) and devices.get("logSerialConsole", True):
        found.append(
            {
                "name": "guest-console-log",
                "image": LAUNCHER_IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "resources": console_log_resources(spec).rendered,
                "restartPolicy": "Always",
            }
        )
    disks = {volume["name"]: volume["containerDisk"] for volume in spec.get("volumes", ()) if "containerDisk" in volume}
    kernel = ((spec["domain"].get("firmware") or {}).get("kernelBoot") or {}).get("container")
    if kernel:
        disks["kernel-boot-volume"] = kernel
    found += [
        {
            "name": f"volume{name}",
            "image": disk["image"],
            "imagePullPolicy": disk.get("imagePullPolicy", "IfNotPresent"),
            "resources": container_disk_resources(spec).rendered,
        }
        for name, disk in disks.items()
    ]
    return found


def _volumes(spec: Json, state_claim: str) -> list[Json]:
    found: list[Json] = []
    if state_claim:
        found.append({"name": "vm-state", "persistentVolumeClaim": {"claimName": state_claim}})
    for volume in spec.get("volumes", ()):
        if claim_of(volume):
            found.append({"name": volume["name"], "persistentVolumeClaim": {"claimName": claim_of(volume)}})
        elif "containerDisk" in volume:
            disk = volume["containerDisk"]
            image = {"pullPolicy": disk.get("imagePullPolicy", "IfNotPresent"), "reference": disk["image"]}
            found.append({"name": volume["name"], "image": image})
    return found


def _node_selector(spec: Json) -> dict[str, str]:
    """The labels that a node must have. Hyper-V features need none without the feature gate HypervStrictCheck."""
    cpu = spec["domain"].get("cpu") or {}
    machine = (spec["domain"].get("machine") or {}).get("type") or "q35"
    required = [f"machine-type.node.kubevirt.io/{machine}"]
    if is_pinned(spec):
        required.append("kubevirt.io/cpumanager")
    model = cpu.get("model", "host-model")
    if model not in _HOST_MODELS:
        required.append(f"cpu-model.node.kubevirt.io/{model}")
    required += [
        f"cpu-feature.node.kubevirt.io/{feature['name']}"
        for feature in cpu.get("features") or ()
        if feature.get("policy", "") in {"", "require"}
    ]
    if cpu.get("realtime") is not None:
        required.append("kubevirt.io/realtime")
    return {
        "kubevirt.io/schedulable": "true",
        "kubernetes.io/arch": spec.get("architecture", "amd64"),
        **(spec.get("nodeSelector") or {}),
        **dict.fromkeys(required, "true"),
    }


def _affinity(spec: Json) -> Json | None:
    """The affinity of the VMI, and rules against labels that its CPU forbids: an obsolete host model, forbidden features."""
    cpu = spec["domain"].get("cpu") or {}
    absent = [_OBSOLETE_MODEL] if cpu.get("model", "host-model") == "host-model" else []
    absent += [
        f"cpu-feature.node.kubevirt.io/{feature['name']}"
        for feature in cpu.get("features") or ()
        if feature.get("policy") == "forbid"
    ]
    affinity: Json | None = spec.get("affinity")
    if not absent:
        return affinity
    rules = [{"key": key, "operator": "DoesNotExist"} for key in absent]
    nodes = (affinity or {}).get("nodeAffinity") or {}
    required = nodes.get("requiredDuringSchedulingIgnoredDuringExecution") or {"nodeSelectorTerms": [{}]}
    terms = [
        {**term, "matchExpressions": [*(term.get("matchExpressions") or ()), *rules]}
        for term in required["nodeSelectorTerms"]
    ]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {**(affinity or {}), "nodeAffinity": {**nodes, **required}}
