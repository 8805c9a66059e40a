"""What the pod of one VM requests from a node, including KubeVirt's own overhead. Pure.

This follows virt-controller v1.9.0, which renders the pod from the VMI that its webhooks complete, on a cluster with KubeVirt's
defaults (a tenth of a CPU for a vCPU, no memory overcommit, no additional overhead ratio, serial console logged). Other settings
in the KubeVirt resource are not known here. The demand of a VM that is sized by an instance type cannot be computed.
"""

import math
from fractions import Fraction

from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.quantities import parse_quantity
from app.compute.kubevirt.templates.placement import EVEN_PARITY, count_cpus, count_pod_cpus
from app.domain.nodes import (
    CPU,
    DEVICES,
    HUGEPAGES,
    MEMORY,
    PODS,
    SCHEDULABLE,
    Demand,
    NodeTerm,
    Requirement,
    Toleration,
)

Amounts = dict[str, Fraction]
_MI = 2**20
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_FIXED_OVERHEAD = (25 + 100 + 25 + 40 + 30) * _MI
"""virt-launcher's monitor, virt-launcher, virtlogd, virtqemud, QEMU."""
_DOMAIN_OVERHEAD = 8 * _MI
_CPU_SHARE = Fraction(1, 10)
_EPHEMERAL = Fraction(50_000_000)
_STORAGE = "ephemeral-storage"
_HOST_MODELS = frozenset({"host-model", "host-passthrough"})
_MACHINES = {"arm64": "virt", "s390x": "s390-ccw-virtio"}
_OBSOLETE_MODEL = "node-labeller.kubevirt.io/obsolete-host-model"


def demand_of(spec: Manifest) -> Demand | None:
    """The demand of an expanded VirtualMachine's `spec`; None if an instance type or a preference decides it."""
    if spec.get("instancetype") is not None or spec.get("preference") is not None:
        return None
    vmi = spec["template"]["spec"]
    annotations = (spec["template"].get("metadata") or {}).get("annotations") or {}
    return Demand(
        amounts=counted(_pod_amounts(vmi, annotations)),
        selector=_selector(vmi),
        terms=_terms(vmi),
        tolerations=tolerations_of(spec),
        unseen=_unseen(vmi),
    )


def tolerations_of(spec: Manifest) -> tuple[Toleration, ...]:
    """What a VM of an expanded VirtualMachine's `spec` tolerates of nodes. An instance type does not change it (KubeVirt v1.9.0)."""
    return tuple(_toleration(item) for item in spec["template"]["spec"].get("tolerations") or ())


def counted(amounts: Amounts) -> dict[str, int]:
    """As the scheduler counts one pod: CPU in thousandths, everything else in whole units, rounded up; and the pod itself."""
    return {PODS: 1, **{name: math.ceil(value * 1000 if name == CPU else value) for name, value in amounts.items()}}


def _pod_amounts(vmi: Manifest, annotations: Manifest) -> Amounts:
    """Containers that run side by side are added up. One that ends before they start counts if it alone requests more."""
    guaranteed = _is_guaranteed(vmi["domain"])
    total = _compute(vmi, annotations, guaranteed=guaranteed)
    devices = vmi["domain"].get("devices") or {}
    beside: Amounts = {}
    if devices.get("autoattachSerialConsole", True) and devices.get("logSerialConsole", True):
        cpu, memory = (15, 60) if guaranteed else (5, 35)
        beside = {CPU: Fraction(cpu, 1000), MEMORY: Fraction(memory * 10**6)}
        add(total, beside)
    kernel = ((vmi["domain"].get("firmware") or {}).get("kernelBoot") or {}).get("container")
    if kernel or any("containerDisk" in volume for volume in vmi.get("volumes") or ()):
        cpu, memory = (10, 40) if guaranteed else (1, 1)
        puller = {CPU: Fraction(cpu, 1000), MEMORY: Fraction(memory * 10**6), _STORAGE: _EPHEMERAL}
        add(puller, beside)
        raise_to(total, puller)
    return total


def _compute(vmi: Manifest, annotations: Manifest, *, guaranteed: bool) -> Amounts:
    """The requests of the container that runs QEMU."""
    domain = vmi["domain"]
    resources = domain.get("resources") or {}
    limits = amounts_of(resources.get("limits"))
    asked = amounts_of(resources.get("requests"))
    memory = domain.get("memory") or {}
    cpu = domain.get("cpu") or {}
    vcpus = count_cpus(cpu, resources)
    overhead = _memory_overhead(vmi, vcpus, asked.get(MEMORY), guaranteed=guaranteed)

    if cpu.get("dedicatedCpuPlacement"):
        asked[CPU] = Fraction(count_pod_cpus(domain, vcpus, even=EVEN_PARITY in annotations))
    elif not asked.get(CPU):
        # A limit without a request is also the request.
        io_threads = int((domain.get("ioThreads") or {}).get("supplementalPoolThreadCount") or 0)
        asked[CPU] = limits.get(CPU) or _CPU_SHARE * (vcpus + io_threads)
    asked[_STORAGE] = asked.get(_STORAGE, Fraction(0)) + _EPHEMERAL

    page = (memory.get("hugepages") or {}).get("pageSize")
    guest = _guest_memory(memory, asked, limits)
    wanted = asked.get(MEMORY) or limits.get(MEMORY) or guest or Fraction(0)
    if page is not None:
        asked[f"{HUGEPAGES}{page}"] = min(wanted, guest) if guest is not None else wanted
        asked[MEMORY] = max(Fraction(0), wanted - (guest if guest is not None else wanted)) + overhead
    else:
        asked[MEMORY] = wanted + (Fraction(0) if resources.get("overcommitGuestOverhead") else overhead)
    add(asked, _devices(domain.get("devices") or {}))
    # The API server uses the limit for a missing request.
    return {**{name: amount for name, amount in limits.items() if name not in {CPU, MEMORY}}, **asked}


def _guest_memory(memory: Manifest, asked: Amounts, limits: Amounts) -> Fraction | None:
    """A guest without a given memory gets what is requested, otherwise the limit, otherwise one huge page."""
    if memory.get("guest") is not None:
        return parse_quantity(memory["guest"])
    if asked.get(MEMORY) or limits.get(MEMORY):
        return asked.get(MEMORY) or limits[MEMORY]
    page = (memory.get("hugepages") or {}).get("pageSize")
    return parse_quantity(page) if page is not None else None


def _memory_overhead(vmi: Manifest, vcpus: int, requested: Fraction | None, *, guaranteed: bool) -> Fraction:
    """The memory of a VMI beyond that of its guest. Page tables are a share of an explicit request, in thousands of bytes."""
    domain = vmi["domain"]
    devices = domain.get("devices") or {}
    thousands = math.ceil((requested or 0) / 1000)
    mebi = 0
    if devices.get("autoattachGraphicsDevice", True):
        mebi += 32
    if vmi.get("architecture") == "arm64":
        mebi += 128
    passthrough = devices.get("gpus") or devices.get("hostDevices")
    if passthrough or any("sriov" in item for item in devices.get("interfaces") or ()):
        mebi += 1024
    if any("downwardMetrics" in volume for volume in vmi.get("volumes") or ()):
        mebi += 1
    probes = sum((vmi.get(name) or {}).get("exec") is not None for name in ("livenessProbe", "readinessProbe"))
    mebi += 10 * probes + (100 if probes else 0)
    if {"sev", "snp"} & set(domain.get("launchSecurity") or {}):
        mebi += 256
    if "tpm" in devices and (devices["tpm"] or {}).get("enabled", True):
        mebi += 53
    if guaranteed:
        mebi += 100
    added = ((domain.get("memory") or {}).get("reservedOverhead") or {}).get("addedOverhead")
    extra = parse_quantity(added) if added is not None else Fraction(0)
    fixed = _FIXED_OVERHEAD + _DOMAIN_OVERHEAD * (vcpus + 1) + mebi * _MI
    return Fraction(thousands * 1000 // 512) + fixed + extra


def _is_guaranteed(domain: Manifest) -> bool:
    """Whether CPUs are pinned, or requests and limits of both CPU and memory are given and equal."""
    if (domain.get("cpu") or {}).get("dedicatedCpuPlacement"):
        return True
    resources = domain.get("resources") or {}
    asked, limits = amounts_of(resources.get("requests")), amounts_of(resources.get("limits"))
    memory, bound = asked.get(MEMORY), limits.get(MEMORY)
    cpu = asked.get(CPU) or limits.get(CPU)
    return bool(bound) and (not memory or memory == bound) and bool(cpu) and cpu == limits.get(CPU)


def _devices(devices: Manifest) -> Amounts:
    names = ["kvm"]
    interfaces = devices.get("interfaces") or ()
    pod_network = devices.get("autoattachPodInterface", True)
    if interfaces or pod_network:
        names.append("tun")
    # An interface that the webhooks add has no model, which means virtio.
    if any(item.get("model", "virtio") in ("", "virtio") for item in interfaces) or (not interfaces and pod_network):
        names.append("vhost-net")
    if devices.get("autoattachVSOCK"):
        names.append("vhost-vsock")
    found: Amounts = {f"{DEVICES}{name}": Fraction(1) for name in names}
    for kind in ("gpus", "hostDevices"):
        for item in devices.get(kind) or ():
            if item.get("deviceName"):
                name = str(item["deviceName"])
                found[name] = found.get(name, Fraction(0)) + 1
    return found


def _selector(vmi: Manifest) -> dict[str, str]:
    arch = vmi.get("architecture") or "amd64"
    cpu = vmi["domain"].get("cpu") or {}
    machine = (vmi["domain"].get("machine") or {}).get("type") or _MACHINES.get(arch, "q35")
    labels = [f"machine-type.node.kubevirt.io/{machine}"]
    if cpu.get("dedicatedCpuPlacement"):
        labels.append("kubevirt.io/cpumanager")
    if cpu.get("model") and cpu["model"] not in _HOST_MODELS:
        labels.append(f"cpu-model.node.kubevirt.io/{cpu['model']}")
    labels += [
        f"cpu-feature.node.kubevirt.io/{feature.get('name')}"
        for feature in cpu.get("features") or ()
        if feature.get("policy", "") in ("", "require")
    ]
    if cpu.get("realtime") is not None:
        labels.append("kubevirt.io/realtime")
    return {
        SCHEDULABLE: "true",
        "kubernetes.io/arch": arch,
        **{str(key): str(value) for key, value in (vmi.get("nodeSelector") or {}).items()},
        **dict.fromkeys(labels, "true"),
    }


def _terms(vmi: Manifest) -> tuple[NodeTerm, ...] | None:
    """The VM's own terms, each with what its CPU excludes: obsolete host models and forbidden features."""
    cpu = vmi["domain"].get("cpu") or {}
    absent = [_OBSOLETE_MODEL] if cpu.get("model", "host-model") == "host-model" else []
    absent += [
        f"cpu-feature.node.kubevirt.io/{feature.get('name')}"
        for feature in cpu.get("features") or ()
        if feature.get("policy") == "forbid"
    ]
    rules = tuple(Requirement(key, "DoesNotExist") for key in absent)
    required = ((vmi.get("affinity") or {}).get("nodeAffinity") or {}).get(REQUIRED)
    if required is None:
        return (NodeTerm(rules),) if rules else None
    return tuple(
        NodeTerm((*_requirements(term.get("matchExpressions")), *rules), _requirements(term.get("matchFields")))
        for term in required.get("nodeSelectorTerms") or ()
    )


def _requirements(rules: object) -> tuple[Requirement, ...]:
    if not isinstance(rules, list):
        return ()
    return tuple(
        Requirement(rule["key"], rule["operator"], tuple(str(value) for value in rule.get("values") or ()))
        for rule in rules
    )


def _toleration(item: Manifest) -> Toleration:
    return Toleration(
        key=str(item.get("key") or ""),
        operator=str(item.get("operator") or "Equal"),
        value=str(item.get("value") or ""),
        effect=str(item.get("effect") or ""),
    )


def _unseen(vmi: Manifest) -> tuple[str, ...]:
    affinity = vmi.get("affinity") or {}
    found = [
        f"required {words} is not compared"
        for key, words in (("podAffinity", "pod affinity"), ("podAntiAffinity", "pod anti-affinity"))
        if (affinity.get(key) or {}).get(REQUIRED)
    ]
    spread = vmi.get("topologySpreadConstraints") or ()
    if any(item.get("whenUnsatisfiable") == "DoNotSchedule" for item in spread):
        found.append("spread constraints that keep pods waiting are not compared")
    if vmi.get("schedulerName") not in (None, "", "default-scheduler"):
        found.append(f"what scheduler {vmi['schedulerName']!r} goes by is not known")
    return tuple(found)


def amounts_of(given: object) -> Amounts:
    """Reads a mapping of quantities; empty if it is none."""
    if not isinstance(given, dict):
        return {}
    return {str(name): parse_quantity(value) for name, value in given.items() if value is not None}


def add(total: Amounts, more: Amounts) -> None:
    """Adds `more` to `total`."""
    for name, amount in more.items():
        total[name] = total.get(name, Fraction(0)) + amount


def raise_to(total: Amounts, least: Amounts) -> None:
    """Raises each amount of `total` to that of `least`."""
    for name, amount in least.items():
        total[name] = max(total.get(name, Fraction(0)), amount)
