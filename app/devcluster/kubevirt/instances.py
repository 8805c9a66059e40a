"""Builds the VMI of a VM, with the defaults of KubeVirt's webhooks (KubeVirt v1.9.0)."""

from datetime import datetime

from app.devcluster.apiserver.objects import annotations_of, labels_of, new_object, owned_by
from app.devcluster.apiserver.quantities import Quantity, parse_quantity, whole
from app.devcluster.apiserver.registry import VIRTUAL_MACHINE_INSTANCES
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.times import stamp
from app.devcluster.kubevirt.launcher import VMI_FINALIZERS
from app.devcluster.kubevirt.launcher_resources import count_cpus

_HOTPLUG_RATIO = 4
_HOTPLUG_MINIMUM = 2**30
_MOST_CPUS = 512


def build_instance(vm: Json, now: datetime) -> Json:
    """The VMI that a VM starts, as it is after the webhooks."""
    metadata, template = vm["metadata"], vm["spec"]["template"]
    generation = {"kubevirt.io/vm-generation": str(metadata["generation"])}
    more: Json = {"labels": dict(labels_of(template))} if labels_of(template) else {}
    vmi = new_object(
        VIRTUAL_MACHINE_INSTANCES,
        metadata["name"],
        metadata["namespace"],
        now,
        annotations={**annotations_of(template), **generation},
        finalizers=list(VMI_FINALIZERS),
        ownerReferences=owned_by(vm),
        **more,
    )
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
    return {**vmi, "spec": spec, "status": status}


def _instance_spec(template: Json) -> Json:
    domain = {**template["domain"]}
    resources = domain["resources"] = _with_cpu_request(domain.get("resources") or {})
    memory = _with_guest_memory({**(domain.get("memory") or {})}, resources)
    cpu = _with_topology({**(domain.get("cpu") or {})}, resources)
    cpu.setdefault("model", "host-model")
    domain["cpu"] = cpu
    domain["features"] = {"acpi": {"enabled": True}, **(domain.get("features") or {})}
    devices = {**(domain.get("devices") or {})}
    spec: Json = {**template, "domain": domain}
    if not spec.get("networks") and devices.get("autoattachPodInterface", True):
        devices.setdefault("interfaces", [{"bridge": {}, "name": "default"}])
        spec["networks"] = [{"name": "default", "pod": {}}]
    devices["disks"] = _with_all_disks(devices, spec.get("volumes") or [])
    if not devices["disks"]:
        del devices["disks"]
    domain["devices"] = devices
    if memory.get("guest") and _takes_more_memory(domain, memory):
        memory.setdefault("maxGuest", str(Quantity(parse_quantity(memory["guest"]) * _HOTPLUG_RATIO)))
    if memory:
        domain["memory"] = memory
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


def _with_all_disks(devices: Json, volumes: list[Json]) -> list[Json]:
    """A disk for each volume that has none, after those that are written; SATA where no bus is named, on amd64."""
    written = devices.get("disks") or []
    attached = {device["name"] for device in [*written, *(devices.get("filesystems") or [])]}
    added = [{"name": volume["name"]} for volume in volumes if volume["name"] not in attached]
    return [_with_bus(disk) for disk in [*written, *added]]


def _with_bus(disk: Json) -> Json:
    kind = next((kind for kind in ("disk", "cdrom", "lun") if disk.get(kind) is not None), "disk")
    return {**disk, kind: {"bus": "sata", **(disk.get(kind) or {})}}


def _with_cpu_request(resources: Json) -> Json:
    """A CPU limit without a request becomes the request too."""
    requests, limit = resources.get("requests") or {}, (resources.get("limits") or {}).get("cpu", 0)
    if not parse_quantity(limit) or parse_quantity(requests.get("cpu", 0)):
        return resources
    return {**resources, "requests": {**requests, "cpu": limit}}


def _with_guest_memory(memory: Json, resources: Json) -> Json:
    """Without memory of its own the guest gets the requested memory, else the limit, else one huge page."""
    if memory.get("guest") is not None:
        return memory
    for given in (resources.get("requests") or {}, resources.get("limits") or {}):
        if parse_quantity(given.get("memory", 0)):
            return {**memory, "guest": str(Quantity.parse(given["memory"]))}
    page = (memory.get("hugepages") or {}).get("pageSize")
    return {**memory, "guest": str(Quantity.parse(page))} if page else memory


def _with_topology(cpu: Json, resources: Json) -> Json:
    if not any(cpu.get(name) for name in ("cores", "sockets", "threads")):
        sockets = count_cpus({"domain": {"resources": resources}})
        cpu = {**cpu, "cores": 1, "sockets": sockets, "threads": 1}
    if cpu.get("sockets") and not cpu.get("maxSockets"):
        others = (cpu.get("cores") or 0) * (cpu.get("threads") or 0)
        most = cpu["sockets"] * _HOTPLUG_RATIO
        if most * others > _MOST_CPUS:
            most = max(_MOST_CPUS // others, cpu["sockets"])
        cpu["maxSockets"] = most
    return cpu


def _takes_more_memory(domain: Json, memory: Json) -> bool:
    """Whether memory can be hotplugged: the guest has 1 GiB or more, in whole blocks, and no feature forbids it."""
    cpu = domain["cpu"]
    if _maps_numa(cpu) or cpu.get("realtime") is not None or domain.get("launchSecurity") is not None:
        return False
    guest = whole(memory["guest"])
    block = 2**30 if (memory.get("hugepages") or {}).get("pageSize") == "1Gi" else 2**21
    return guest >= _HOTPLUG_MINIMUM and guest % block == 0


def _maps_numa(cpu: Json) -> bool:
    """Whether the guest sees the NUMA nodes of the host; its memory is not hotplugged then."""
    return (cpu.get("numa") or {}).get("guestMappingPassthrough") is not None


def _volume(volume: Json) -> Json:
    disk = volume.get("containerDisk")
    if disk is None or "imagePullPolicy" in disk:
        return volume
    tag = disk["image"].rpartition("/")[2]
    fixed = "@" in tag or (":" in tag and not tag.endswith(":latest"))
    policy = "IfNotPresent" if fixed else "Always"
    return {**volume, "containerDisk": {**disk, "imagePullPolicy": policy}}
