"""Validation of a VM as in KubeVirt v1.9.0, with its messages."""

import re
from collections.abc import Callable, Iterable

from app.devcluster.apiserver.quantities import QUANTITY_RULE, is_quantity, parse_quantity
from app.devcluster.apiserver.status import Json, cause
from app.devcluster.kubevirt.placement_validation import PLACEMENT_CHECKS, check_cpu_range, check_pinned_count

_STRATEGIES = frozenset({"Always", "Halted", "Manual", "RerunOnFailure", "Once", "WaitAsReceiver"})
_BUSES = ("virtio", "scsi", "sata", "usb")
_MODELS = frozenset({"e1000", "e1000e", "igb", "ne2k_pci", "pcnet", "rtl8139", "virtio"})
_EVICTIONS = frozenset({"None", "LiveMigrate", "LiveMigrateIfPossible", "External"})
_MAC = re.compile(r"([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}")
_RESERVED_LABELS = frozenset(
    {
        "kubevirt.io/created-by",
        "kubevirt.io/migrationJobUID",
        "kubevirt.io/nodeName",
        "kubevirt.io/migrationTargetNodeName",
        "kubevirt.io/install-strategy",
        "kubevirt.io/schedulable",
    }
)
_USER_DATA_LIMIT = 2048
_PROBES = ("exec", "guestAgentPing", "httpGet", "tcpSocket")
_THREADS_LIMIT = 2


def check_machine(spec: Json, path: str) -> list[Json]:
    """The field errors of the spec of a VM; their paths begin with `path`."""
    causes = _check_strategy(spec, path)
    template = spec.get("template")
    if not template:
        return [*causes, _wrong("missing virtual machine template.", f"{path}.template")]
    inner = template.get("spec") or {}
    where = f"{path}.template.spec"
    labels = (template.get("metadata") or {}).get("labels") or {}
    if _RESERVED_LABELS & set(labels):
        message = "creation of the following reserved kubevirt.io/ labels on a VMI object is prohibited"
        causes.append(_wrong(message, f"{path}.template.metadata.labels"))
    causes += _check_instancetype(spec, inner, where)
    checks: Iterable[Callable[[Json, str], list[Json]]] = (
        _check_hugepages,
        _check_memory_range,
        _check_sockets,
        check_cpu_range,
        _check_pinning,
        _check_numa,
        *PLACEMENT_CHECKS,
        _check_networks,
        _check_disks,
        _check_volumes,
        _check_probes,
        _check_options,
    )
    for check in checks:
        causes += check(inner, where)
    causes += _check_volume_templates(spec, inner, path)
    return causes


def _check_strategy(spec: Json, path: str) -> list[Json]:
    running, strategy = spec.get("running"), spec.get("runStrategy")
    if running is not None and strategy is not None:
        message = "Running and RunStrategy are mutually exclusive. Note that Running is deprecated, please use RunStrategy instead"
        return [_wrong(message, f"{path}.running")]
    if running is None and strategy is None:
        return [_wrong("RunStrategy must be specified", f"{path}.runStrategy")]
    if strategy is not None and strategy not in _STRATEGIES:
        return [_wrong(f"Invalid RunStrategy ({strategy})", f"{path}.runStrategy")]
    return []


def _check_instancetype(spec: Json, inner: Json, where: str) -> list[Json]:
    if not spec.get("instancetype"):
        return []
    cpu = inner["domain"].get("cpu") or {}
    conflicts = [f"{where}.domain.cpu.{name}" for name in ("cores", "sockets", "threads") if name in cpu]
    if "guest" in (inner["domain"].get("memory") or {}):
        conflicts.append(f"{where}.domain.memory")
    return [_wrong(f"VM field(s) {item} conflicts with selected instance type", item) for item in conflicts]


def _check_hugepages(spec: Json, where: str) -> list[Json]:
    domain = spec["domain"]
    memory = domain.get("memory") or {}
    size = (memory.get("hugepages") or {}).get("pageSize")
    if size is None:
        return []
    field = f"{where}.domain.memory.hugepages.pageSize"
    if not is_quantity(size):
        return [_wrong(f"{field} '{size}': {QUANTITY_RULE}", field)]
    requested = _requests(domain).get("memory")
    amount = parse_quantity(requested if requested is not None else memory.get("guest", 0))
    page = parse_quantity(size)
    # The real validator names resources.requests.memory and its value, also where it judged the guest's memory.
    named = f"{where}.domain.resources.requests.memory"
    shown = requested if requested is not None else "0"
    if amount and amount < page:
        message = f"{named} '{shown}' must be equal to or larger than page size {field} '{size}'"
        return [_wrong(message, named)]
    if amount % page:
        return [_wrong(f"{named} '{shown}' is not a multiple of the page size {field} '{size}'", named)]
    return []


def _check_memory_range(spec: Json, where: str) -> list[Json]:
    domain = spec["domain"]
    request, limit = _requests(domain).get("memory"), _limits(domain).get("memory")
    if request is None or limit is None:
        return []
    field = f"{where}.domain.resources.requests.memory"
    if parse_quantity(request) > parse_quantity(limit):
        return [_wrong(f"{field} '{request}' is greater than {where}.domain.resources.limits.memory '{limit}'", field)]
    return []


def _check_sockets(spec: Json, where: str) -> list[Json]:
    cpu = spec["domain"].get("cpu") or {}
    if cpu.get("maxSockets") and cpu.get("sockets", 1) > cpu["maxSockets"]:
        message = "Number of sockets in CPU topology is greater than the maximum sockets allowed"
        field = f"{where}.domain.cpu.sockets"
        return [_wrong(message, field), _wrong(message, field)]  # upstream reports it twice
    return []


def _check_pinning(spec: Json, where: str) -> list[Json]:
    domain = spec["domain"]
    cpu = domain.get("cpu") or {}
    causes: list[Json] = []
    if cpu.get("isolateEmulatorThread") and not cpu.get("dedicatedCpuPlacement"):
        message = "IsolateEmulatorThread should be only set in combination with DedicatedCPUPlacement"
        causes.append(_wrong(message, f"{where}.domain.cpu.isolateEmulatorThread"))
    if not cpu.get("dedicatedCpuPlacement"):
        return causes
    field = f"{where}.domain.cpu.dedicatedCpuPlacement"
    requests, limits = _requests(domain), _limits(domain)
    causes += [
        _wrong(f"provided resources CPU {name} must be an interger", f"{where}.domain.resources.{name}.cpu")
        for name, given in (("requests", requests), ("limits", limits))
        if "cpu" in given and parse_quantity(given["cpu"]) % 1
    ]
    if "cpu" in requests and "cpu" in limits and parse_quantity(requests["cpu"]) != parse_quantity(limits["cpu"]):
        message = (
            f"{where}.domain.resources.requests.cpu or {where}.domain.resources.limits.cpu must be equal when "
            "DedicatedCPUPlacement is true "
        )
        causes.append(_wrong(message, field))
    if "memory" in requests and "memory" in limits:
        request, limit = requests["memory"], limits["memory"]
        if parse_quantity(request) != parse_quantity(limit):
            named = f"{where}.domain.resources.requests.memory"
            message = f"{named} must be equal to {where}.domain.resources.limits.memory"
            causes.append(_wrong(message, named))
    causes += check_pinned_count(spec, where)
    if cpu.get("threads", 1) > _THREADS_LIMIT:
        message = (
            f"Not more than two threads must be provided at {where}.domain.cpu.threads (got {cpu['threads']}) when "
            "DedicatedCPUPlacement is true"
        )
        causes.append(_wrong(message, f"{where}.domain.cpu.threads"))
    return causes


def _check_numa(spec: Json, where: str) -> list[Json]:
    domain = spec["domain"]
    cpu = domain.get("cpu") or {}
    if (cpu.get("numa") or {}).get("guestMappingPassthrough") is None:
        return []
    field = f"{where}.domain.cpu.numa.guestMappingPassthrough"
    causes: list[Json] = []
    if not cpu.get("dedicatedCpuPlacement"):
        message = f"{where}.domain.cpu.dedicatedCpuPlacement must be set to true when NUMA topology strategy is set in {field}"
        causes.append(_wrong(message, field))
    if not (domain.get("memory") or {}).get("hugepages"):
        message = f"{where}.domain.memory.hugepages must be requested when NUMA topology strategy is set in {field}"
        causes.append(_wrong(message, field))
    return causes


def _check_networks(spec: Json, where: str) -> list[Json]:
    networks = spec.get("networks") or []
    interfaces = (spec["domain"].get("devices") or {}).get("interfaces") or []
    names = {network["name"] for network in networks}
    used = {interface["name"] for interface in interfaces}
    causes: list[Json] = []
    pods = {network["name"] for network in networks if "pod" in network}
    if sum(1 for interface in interfaces if interface["name"] in pods) > 1:
        message = f"more than one interface is connected to a pod network in {where}.interfaces"
        causes.append(_wrong(message, f"{where}.interfaces"))
    for number, interface in enumerate(interfaces):
        field = f"{where}.domain.devices.interfaces[{number}].name"
        if interface["name"] not in names:
            causes.append(_wrong(f"{field} '{interface['name']}' not found.", field))
        if "model" in interface and interface["model"] not in _MODELS:
            message = f"interface {field} uses model {interface['model']} that is not supported."
            causes.append(_wrong(message, f"{where}.domain.devices.interfaces[{number}].model"))
        if "macAddress" in interface and not _MAC.fullmatch(interface["macAddress"]):
            message = f"interface {field} has malformed MAC address ({interface['macAddress']})."
            causes.append(_wrong(message, f"{where}.domain.devices.interfaces[{number}].macAddress"))
    causes += [
        _wrong(f"{where}.networks[{number}].name '{network['name']}' not found.", f"{where}.networks[{number}].name")
        for number, network in enumerate(networks)
        if network["name"] not in used
    ]
    return causes


def _check_disks(spec: Json, where: str) -> list[Json]:
    devices = spec["domain"].get("devices") or {}
    disks = devices.get("disks") or []
    volumes = [volume["name"] for volume in spec.get("volumes") or []]
    path = f"{where}.domain.devices.disks"
    causes = [
        _wrong(f"{path}[{number}].Name '{disk['name']}' not found.", f"{path}[{number}].name")
        for number, disk in enumerate(disks)
        if disk["name"] not in volumes
    ]
    first: dict[str, int] = {}
    for number, disk in enumerate(disks):
        if disk["name"] in first:
            message = f"{path}[{number}] and {path}[{first[disk['name']]}] must not have the same Name."
            causes.append(_wrong(message, f"{path}[{number}].name"))
        first.setdefault(disk["name"], number)
        causes += _check_bus(disk, f"{path}[{number}]")
    # Upstream adds a disk for every volume without one, then compares the names of all disks.
    extra = [name for name in volumes if name not in first]
    for offset, name in enumerate(extra):
        if name in extra[:offset]:
            later, earlier = len(disks) + offset, len(disks) + extra.index(name)
            message = f"{path}[{later}] and {path}[{earlier}] must not have the same Name."
            causes.append(_wrong(message, f"{path}[{later}].name"))
    return causes


def _check_bus(disk: Json, path: str) -> list[Json]:
    for kind in ("disk", "lun", "cdrom"):
        bus = (disk.get(kind) or {}).get("bus")
        if bus and bus not in _BUSES:
            message = f"{path} is set with an unrecognized bus {bus}, must be one of: [{' '.join(_BUSES)}]"
            return [_wrong(message, f"{path}.{kind}.bus")]
    return []


def _check_volumes(spec: Json, where: str) -> list[Json]:
    causes: list[Json] = []
    first: dict[str, int] = {}
    for number, volume in enumerate(spec.get("volumes") or []):
        path = f"{where}.volumes[{number}]"
        if volume["name"] in first:
            message = f"{path} and {where}.volumes[{first[volume['name']]}] must not have the same Name."
            causes.append(_wrong(message, f"{path}.name"))
        first.setdefault(volume["name"], number)
        sources = set(volume) - {"name"}
        if len(sources) != 1:
            causes.append(_wrong(f"{path} must have exactly one source type set", path))
        if "hostDisk" in sources:
            causes.append(_wrong("HostDisk feature gate is not enabled", path))
        for kind in ("cloudInitNoCloud", "cloudInitConfigDrive"):
            if kind in sources:
                causes += _check_cloud_init(volume[kind] or {}, f"{path}.{kind}")
    return causes


def _check_cloud_init(source: Json, path: str) -> list[Json]:
    if not source:
        message = f"{path} must have at least one userdatasource or one networkdatasource set."
        return [_wrong(message, path)]
    if len(source.get("userData", "").encode()) > _USER_DATA_LIMIT:
        message = (
            f"{path} userdata exceeds {_USER_DATA_LIMIT} byte limit. Should use UserDataSecretRef for larger data."
        )
        return [_wrong(message, f"{path}.userData")]
    return []


def _check_probes(spec: Json, where: str) -> list[Json]:
    causes: list[Json] = []
    for name in ("readinessProbe", "livenessProbe"):
        probe = spec.get(name)
        if probe is None:
            continue
        handlers = sum(1 for kind in _PROBES if probe.get(kind) is not None)
        field = f"{where}.{name}"
        if handlers == 0:
            causes.append(
                _wrong(
                    f"either {field}.tcpSocket, {field}.exec or {field}.httpGet must be set if a {field} is specified",
                    field,
                )
            )
        elif handlers > 1:
            causes.append(_wrong(f"{field} must have exactly one probe type set", field))
    return causes


def _check_options(spec: Json, where: str) -> list[Json]:
    causes: list[Json] = []
    for name, allowed in (("evictionStrategy", _EVICTIONS), ("startStrategy", frozenset({"Paused"}))):
        value = spec.get(name)
        if value is not None and value not in allowed:
            field = f"{where}.{name}"
            causes.append(_wrong(f"{field} is set with an unrecognized option: {value}", field))
    return causes


def _check_volume_templates(spec: Json, inner: Json, path: str) -> list[Json]:
    used = {(volume.get("dataVolume") or {}).get("name") for volume in inner.get("volumes") or []}
    return [
        _wrong(
            f"DataVolumeTemplate entry {path}.dataVolumeTemplate[{number}] must be referenced in the VMI template's "
            "'volumes' list",
            f"{path}.dataVolumeTemplate[{number}]",
        )
        for number, template in enumerate(spec.get("dataVolumeTemplates") or [])
        if (template.get("metadata") or {}).get("name") not in used
    ]


def _requests(domain: Json) -> Json:
    found: Json = (domain.get("resources") or {}).get("requests") or {}
    return found


def _limits(domain: Json) -> Json:
    found: Json = (domain.get("resources") or {}).get("limits") or {}
    return found


def _wrong(message: str, field: str) -> Json:
    return cause("FieldValueInvalid", message, field)
