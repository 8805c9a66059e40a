"""From a VM to its VMI, and from a VMI to the virt-launcher pod that holds it (KubeVirt v1.9.0)."""

import uuid
from datetime import datetime

from app.devcluster.quantities import MEBI, in_mebi, whole
from app.devcluster.status import Json
from app.devcluster.times import stamp

VM_FINALIZER = "kubevirt.io/virtualMachineControllerFinalize"
VMI_FINALIZERS = (VM_FINALIZER, "kubevirt.io/foregroundDeleteVirtualMachine")
OBSERVED = {"kubevirt.io/latest-observed-api-version": "v1", "kubevirt.io/storage-observed-api-version": "v1"}
LAUNCHER_IMAGE = "quay.io/kubevirt/virt-launcher:v1.9.0"
_CONSOLE_LOG_MEMORY = "35M"
_HOTPLUG_RATIO = 4
_HOTPLUG_MINIMUM = 2**30


def build_instance(vm: Json, now: datetime) -> Json:
    """The VMI a VM starts, as it is after its webhooks."""
    metadata, template = vm["metadata"], vm["spec"]["template"]
    extra = template.get("metadata") or {}
    annotations = {**(extra.get("annotations") or {}), "kubevirt.io/vm-generation": str(metadata["generation"])}
    instance_metadata: Json = {
        "annotations": annotations,
        "creationTimestamp": stamp(now),
        "finalizers": list(VMI_FINALIZERS),
        "generation": 1,
        "labels": dict(extra.get("labels") or {}),
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "ownerReferences": [
            {
                "apiVersion": vm["apiVersion"],
                "blockOwnerDeletion": True,
                "controller": True,
                "kind": vm["kind"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            }
        ],
        "uid": str(uuid.uuid4()),
    }
    if not instance_metadata["labels"]:
        del instance_metadata["labels"]
    spec = _instance_spec(template["spec"])
    guest = spec["domain"].get("memory", {}).get("guest")
    status: Json = {
        "currentCPUTopology": {
            key: spec["domain"]["cpu"][key] for key in ("cores", "sockets", "threads") if key in spec["domain"]["cpu"]
        },
        "guestOSInfo": {},
        "memory": {"guestAtBoot": guest, "guestCurrent": guest, "guestRequested": guest} if guest else {},
        "phase": "Pending",
        "phaseTransitionTimestamps": [{"phase": "Pending", "phaseTransitionTimestamp": stamp(now)}],
        "runtimeUser": 107,
        "virtualMachineRevisionName": f"revision-start-vm-{metadata['uid']}-{metadata['generation']}",
    }
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": instance_metadata,
        "spec": spec,
        "status": status,
    }


def build_pod(vmi: Json, suffix: str, now: datetime) -> Json:
    metadata, spec = vmi["metadata"], vmi["spec"]
    requests, limits = pod_resources(spec)
    selector = {
        "kubernetes.io/arch": spec.get("architecture", "amd64"),
        "kubevirt.io/schedulable": "true",
        "machine-type.node.kubevirt.io/q35": "true",
        **({"kubevirt.io/cpumanager": "true"} if _pinned(spec) else {}),
        **(spec.get("nodeSelector") or {}),
    }
    containers: list[Json] = [
        {"name": "compute", "image": LAUNCHER_IMAGE, "resources": {"requests": requests, "limits": limits}},
        {
            "name": "guest-console-log",
            "image": LAUNCHER_IMAGE,
            "resources": {"requests": {"cpu": "5m", "memory": _CONSOLE_LOG_MEMORY}},
        },
    ]
    containers += [
        {"name": f"volume{volume['name']}", "image": volume["containerDisk"]["image"], "resources": {}}
        for volume in spec.get("volumes", ())
        if "containerDisk" in volume
    ]
    pod_spec: Json = {
        "containers": containers,
        "nodeSelector": selector,
        "readinessGates": [{"conditionType": "kubevirt.io/virtual-machine-unpaused"}],
        "restartPolicy": "Never",
        "schedulerName": "default-scheduler",
        "terminationGracePeriodSeconds": 60,
    }
    claims = [
        {"name": volume["name"], "persistentVolumeClaim": {"claimName": claim_of(volume)}}
        for volume in spec.get("volumes", ())
        if claim_of(volume)
    ]
    if claims:
        pod_spec["volumes"] = claims
    if spec.get("affinity"):
        pod_spec["affinity"] = spec["affinity"]
    if spec.get("tolerations"):
        pod_spec["tolerations"] = spec["tolerations"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "annotations": {"kubevirt.io/domain": metadata["name"]},
            "creationTimestamp": stamp(now),
            "generateName": f"virt-launcher-{metadata['name']}-",
            "labels": {
                **(metadata.get("labels") or {}),
                "kubevirt.io": "virt-launcher",
                "kubevirt.io/created-by": metadata["uid"],
                "vm.kubevirt.io/name": metadata["name"],
            },
            "name": f"virt-launcher-{metadata['name'][:220]}-{suffix}",
            "namespace": metadata["namespace"],
            "ownerReferences": [
                {
                    "apiVersion": vmi["apiVersion"],
                    "blockOwnerDeletion": True,
                    "controller": True,
                    "kind": vmi["kind"],
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                }
            ],
            "uid": str(uuid.uuid4()),
        },
        "spec": pod_spec,
        "status": {"phase": "Pending", "qosClass": "Guaranteed" if _pinned(spec) else "Burstable"},
    }


def claim_of(volume: Json) -> str:
    """The claim behind a volume of a VMI; empty for other kinds. A DataVolume's claim has its name."""
    named = (volume.get("persistentVolumeClaim") or {}).get("claimName") or (volume.get("dataVolume") or {}).get("name")
    return str(named or "")


def memory_overhead(spec: Json) -> int:
    """Bytes a VMI costs beyond its guest's memory; the page-table share counts explicit requests only."""
    domain = spec["domain"]
    overhead = (220 + 8 * count_cpus(spec) + 8) * MEBI
    requested = (domain.get("resources") or {}).get("requests", {}).get("memory")
    if requested:
        overhead += whole(requested) // 512
    if (domain.get("devices") or {}).get("autoattachGraphicsDevice", True):
        overhead += 32 * MEBI
    if _pinned(spec):
        overhead += 100 * MEBI
    return overhead


def count_cpus(spec: Json) -> int:
    cpu = spec["domain"].get("cpu") or {}
    counted = cpu.get("cores", 0) or cpu.get("sockets", 0) or cpu.get("threads", 0)
    if counted:
        return int((cpu.get("cores") or 1) * (cpu.get("sockets") or 1) * (cpu.get("threads") or 1))
    resources = spec["domain"].get("resources") or {}
    amount = resources.get("requests", {}).get("cpu") or resources.get("limits", {}).get("cpu")
    return max(1, whole(amount)) if amount else 1


def pod_resources(spec: Json) -> tuple[Json, Json]:
    """Requests and limits of the compute container."""
    domain = spec["domain"]
    given = domain.get("resources") or {}
    memory = domain.get("memory") or {}
    devices = {f"devices.kubevirt.io/{name}": "1" for name in ("kvm", "tun", "vhost-net")}
    for kind in ("gpus", "hostDevices"):
        for device in (domain.get("devices") or {}).get(kind, ()):
            name = device["deviceName"]
            devices[name] = str(int(devices.get(name, "0")) + 1)
    asked = given.get("limits", {}).get("memory") or given.get("requests", {}).get("memory") or memory.get("guest", "0")
    overhead = memory_overhead(spec)
    requests: Json = {"ephemeral-storage": "50M", **devices}
    limits: Json = {**devices}
    hugepages = (memory.get("hugepages") or {}).get("pageSize")
    if hugepages:
        requests[f"hugepages-{hugepages}"] = limits[f"hugepages-{hugepages}"] = in_mebi_or_more(whole(asked))
        requests["memory"] = limits["memory"] = in_mebi(overhead)
    else:
        base = (
            given.get("requests", {}).get("memory") or given.get("limits", {}).get("memory") or memory.get("guest", "0")
        )
        requests["memory"] = in_mebi(whole(base) + overhead)
        limit = given.get("limits", {}).get("memory")
        if limit or _pinned(spec):
            limits["memory"] = in_mebi(whole(limit or base) + overhead)
    cpus = count_cpus(spec)
    if _pinned(spec):
        cpus += 1 if (domain.get("cpu") or {}).get("isolateEmulatorThread") else 0
        requests["cpu"] = limits["cpu"] = str(cpus)
    else:
        requests["cpu"] = given.get("requests", {}).get("cpu") or f"{100 * cpus}m"
        if "cpu" in given.get("limits", {}):
            limits["cpu"] = given["limits"]["cpu"]
    return requests, limits


def in_mebi_or_more(amount: int) -> str:
    gibi = 2**30
    return f"{amount // gibi}Gi" if amount and amount % gibi == 0 else in_mebi(amount)


def images(pod: Json) -> list[str]:
    """Images a node must have before the pod starts; the launcher's own is on every node."""
    containers = [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
    return [item["image"] for item in containers if item["image"] != LAUNCHER_IMAGE]


def _pinned(spec: Json) -> bool:
    return bool((spec["domain"].get("cpu") or {}).get("dedicatedCpuPlacement"))


def _instance_spec(template: Json) -> Json:
    domain = {**template["domain"]}
    cpu = {**(domain.get("cpu") or {})}
    if not {"cores", "sockets", "threads"} & set(cpu):
        cpu = {"cores": 1, "sockets": 1, "threads": 1, "maxSockets": _HOTPLUG_RATIO, **cpu}
    cpu.setdefault("model", "host-model")
    domain["cpu"] = cpu
    domain["features"] = {"acpi": {"enabled": True}, **(domain.get("features") or {})}
    devices = {**(domain.get("devices") or {})}
    spec: Json = {**template, "domain": domain}
    if not spec.get("networks") and devices.get("autoattachPodInterface", True):
        devices.setdefault("interfaces", [{"bridge": {}, "name": "default"}])
        spec["networks"] = [{"name": "default", "pod": {}}]
    domain["devices"] = devices
    memory = {**(domain.get("memory") or {})}
    if memory.get("guest") and whole(memory["guest"]) >= _HOTPLUG_MINIMUM and not _maps_numa(cpu):
        memory.setdefault("maxGuest", in_mebi_or_more(whole(memory["guest"]) * _HOTPLUG_RATIO))
    if memory:
        domain["memory"] = memory
    domain.setdefault("resources", {})
    spec.setdefault("evictionStrategy", "None")
    probe = spec.get("readinessProbe")
    if probe:
        spec["readinessProbe"] = {
            "failureThreshold": 3,
            "periodSeconds": 10,
            "successThreshold": 1,
            "timeoutSeconds": 1,
            **probe,
        }
    spec["volumes"] = [_volume(volume) for volume in spec.get("volumes", ())]
    if not spec["volumes"]:
        del spec["volumes"]
    return spec


def _maps_numa(cpu: Json) -> bool:
    """Memory is not hotplugged into a guest that sees the host's NUMA nodes."""
    return (cpu.get("numa") or {}).get("guestMappingPassthrough") is not None


def _volume(volume: Json) -> Json:
    disk = volume.get("containerDisk")
    if disk is None or "imagePullPolicy" in disk:
        return volume
    tag = disk["image"].rpartition("/")[2]
    fixed = "@" in tag or (":" in tag and not tag.endswith(":latest"))
    policy = "IfNotPresent" if fixed else "Always"
    return {**volume, "containerDisk": {**disk, "imagePullPolicy": policy}}
