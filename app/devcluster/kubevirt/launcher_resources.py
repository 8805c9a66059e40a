"""Requests and limits of a virt-launcher pod's containers (KubeVirt v1.9.0: virt-controller's resource renderer)."""

from decimal import Decimal
from typing import NamedTuple

from app.devcluster.apiserver.quantities import Quantity, parse_quantity, whole
from app.devcluster.apiserver.status import Json

_ALLOCATION_RATIO = 10
_PARITY = "alpha.kubevirt.io/EmulatorThreadCompleteToEvenParity"
_FIXED_OVERHEAD = ("25Mi", "100Mi", "25Mi", "40Mi", "30Mi")
"""virt-launcher-monitor, virt-launcher, virtlogd, virtqemud, QEMU."""
_ZERO = Quantity(Decimal(0), binary=False)
_EPHEMERAL = Quantity.parse("50M")

_Amounts = dict[str, Quantity]


class Resources(NamedTuple):
    requests: dict[str, str]
    limits: dict[str, str]

    @property
    def rendered(self) -> Json:
        return {"requests": dict(self.requests), "limits": dict(self.limits)}


def compute_resources(spec: Json, annotations: dict[str, str]) -> Resources:
    """For the container that runs QEMU. `spec` is that of the VMI, with its defaults."""
    domain = spec["domain"]
    given = domain.get("resources") or {}
    memory = domain.get("memory") or {}
    requests: _Amounts = {name: Quantity.parse(value) for name, value in (given.get("requests") or {}).items()}
    limits: _Amounts = {name: Quantity.parse(value) for name, value in (given.get("limits") or {}).items()}
    requests["ephemeral-storage"] = requests.get("ephemeral-storage", _ZERO) + _EPHEMERAL
    if "ephemeral-storage" in limits:
        limits["ephemeral-storage"] += _EPHEMERAL
    for device in _virtualization_devices(domain.get("devices") or {}):
        limits[f"devices.kubevirt.io/{device}"] = Quantity(Decimal(1), binary=False)
    _ask_for_memory(requests, limits, memory)
    if is_pinned(spec):
        _pin(requests, limits, spec, annotations)
    elif "cpu" not in requests:
        requests["cpu"] = Quantity(Decimal(count_cpus(spec) + _io_threads(domain)) / _ALLOCATION_RATIO, binary=False)
    overhead = memory_overhead(spec)
    if memory.get("hugepages"):
        _move_to_hugepages(requests, limits, memory, overhead)
    else:
        if not given.get("overcommitGuestOverhead"):
            requests["memory"] = requests.get("memory", _ZERO) + overhead
        if "memory" in limits:
            limits["memory"] += overhead
    for name in _host_devices(domain.get("devices") or {}):
        for amounts in (requests, limits):
            amounts[name] = amounts.get(name, _ZERO) + Quantity(Decimal(1), binary=False)
    # The API server fills in requests that are missing where there is a limit.
    return Resources(
        {name: str(value) for name, value in {**limits, **requests}.items()},
        {name: str(value) for name, value in limits.items()},
    )


def console_log_resources(spec: Json) -> Resources:
    """For the container that logs the serial console of the guest."""
    limits = {"cpu": "15m", "memory": "60M"}
    return Resources(limits if _is_guaranteed(spec) else {"cpu": "5m", "memory": "35M"}, limits)


def container_disk_resources(spec: Json) -> Resources:
    """For the init container that makes the node pull the image of a container disk."""
    limits = {"cpu": "10m", "memory": "40M"}
    requests = limits if _is_guaranteed(spec) else {"cpu": "1m", "memory": "1M"}
    return Resources({**requests, "ephemeral-storage": "50M"}, limits)


def memory_overhead(spec: Json) -> Quantity:
    """The memory of a VMI beyond that of its guest. The part for page tables counts an explicit request only.

    That part is written with decimal suffixes, and so is the sum.
    """
    domain = spec["domain"]
    devices = domain.get("devices") or {}
    requested = ((domain.get("resources") or {}).get("requests") or {}).get("memory", 0)
    thousands = -(-whole(requested) // 1000)
    overhead = Quantity(Decimal(thousands * 1000 // 512), binary=False)
    parts = [*_FIXED_OVERHEAD, *["8Mi"] * max(1, count_cpus(spec)), "8Mi"]
    if devices.get("autoattachGraphicsDevice", True):
        parts.append("32Mi")
    if spec.get("architecture") == "arm64":
        parts.append("128Mi")
    if (
        devices.get("gpus")
        or devices.get("hostDevices")
        or any("sriov" in item for item in devices.get("interfaces", ()))
    ):
        parts.append("1Gi")
    if any("downwardMetrics" in volume for volume in spec.get("volumes", ())):
        parts.append("1Mi")
    parts += _probe_overhead(spec)
    if {"sev", "snp"} & set(domain.get("launchSecurity") or {}):
        parts.append("256Mi")
    if "tpm" in devices and (devices["tpm"] or {}).get("enabled", True):
        parts.append("53Mi")
    if _is_guaranteed(spec):
        parts.append("100Mi")
    reserved = ((domain.get("memory") or {}).get("reservedOverhead") or {}).get("addedOverhead")
    if reserved:
        parts.append(reserved)
    for part in parts:
        overhead += Quantity.parse(part)
    return overhead


def count_cpus(spec: Json) -> int:
    """The vCPUs of the topology (the product of the given members), else those of the resources; at least 1."""
    cpu = spec["domain"].get("cpu") or {}
    counted = 0
    for name in ("cores", "sockets", "threads"):
        if cpu.get(name):
            counted = int(cpu[name]) * (counted or 1)
    if counted:
        return counted
    resources = spec["domain"].get("resources") or {}
    amount = (resources.get("limits") or {}).get("cpu") or (resources.get("requests") or {}).get("cpu")
    return max(1, whole(amount)) if amount else 1


def is_pinned(spec: Json) -> bool:
    return bool((spec["domain"].get("cpu") or {}).get("dedicatedCpuPlacement"))


def _is_guaranteed(spec: Json) -> bool:
    """Whether CPUs are pinned, or requests equal limits for both CPU and memory."""
    if is_pinned(spec):
        return True
    given = spec["domain"].get("resources") or {}
    requests, limits = given.get("requests") or {}, given.get("limits") or {}
    asked, bound = parse_quantity(requests.get("memory", 0)), parse_quantity(limits.get("memory", 0))
    same_memory = asked == bound if asked else bool(bound)
    cpus = parse_quantity(requests.get("cpu", 0))
    return same_memory and bool(cpus) and cpus == parse_quantity(limits.get("cpu", 0))


def _virtualization_devices(devices: Json) -> list[str]:
    interfaces = devices.get("interfaces") or ()
    found = ["kvm"]
    if interfaces or devices.get("autoattachPodInterface", True):
        found.append("tun")
    if any(item.get("model", "virtio") in {"", "virtio"} for item in interfaces):
        found.append("vhost-net")
    if devices.get("autoattachVSOCK"):
        found.append("vhost-vsock")
    return found


def _host_devices(devices: Json) -> list[str]:
    return [
        item["deviceName"]
        for kind in ("gpus", "hostDevices")
        for item in devices.get(kind) or ()
        if item.get("deviceName")
    ]


def _ask_for_memory(requests: _Amounts, limits: _Amounts, memory: Json) -> None:
    if requests.get("memory", _ZERO).amount:
        return
    if limits.get("memory", _ZERO).amount:
        requests["memory"] = limits["memory"]
        return
    if "memory" in requests:
        return
    guest = memory.get("guest") or (memory.get("hugepages") or {}).get("pageSize")
    if guest and parse_quantity(guest) > 0:
        requests["memory"] = Quantity.parse(guest)


def _pin(requests: _Amounts, limits: _Amounts, spec: Json, annotations: dict[str, str]) -> None:
    domain = spec["domain"]
    cpus = count_cpus(spec) + _io_threads(domain)
    if domain["cpu"].get("isolateEmulatorThread"):
        extra = _io_threads(domain) if domain.get("ioThreadsPolicy") == "supplementalPool" else 0
        cpus += 2 if _PARITY in annotations and (cpus + extra) % 2 == 0 else 1
    requests["cpu"] = limits["cpu"] = Quantity(Decimal(cpus))
    if "memory" in requests:
        limits["memory"] = requests["memory"]


def _move_to_hugepages(requests: _Amounts, limits: _Amounts, memory: Json, overhead: Quantity) -> None:
    """Request pages for the guest's memory, and ordinary memory for the overhead and for any request beyond the guest's."""
    asked = requests.get("memory", _ZERO)
    guest = Quantity.parse(memory["guest"]) if memory.get("guest") else None
    pages = guest if guest is not None and asked.amount > guest.amount else asked
    name = f"hugepages-{memory['hugepages']['pageSize']}"
    requests[name] = limits[name] = pages
    requests["memory"] = _beyond(asked, guest) + overhead
    if "memory" in limits:
        limits["memory"] = _beyond(limits["memory"], guest) + overhead


def _beyond(asked: Quantity, guest: Quantity | None) -> Quantity:
    return asked - guest if guest is not None and asked.amount > guest.amount else _ZERO


def _io_threads(domain: Json) -> int:
    return int((domain.get("ioThreads") or {}).get("supplementalPoolThreadCount") or 0)


def _probe_overhead(spec: Json) -> list[str]:
    probes = sum(1 for name in ("livenessProbe", "readinessProbe") if (spec.get(name) or {}).get("exec") is not None)
    return ["10Mi"] * probes + (["100Mi"] if probes else [])
