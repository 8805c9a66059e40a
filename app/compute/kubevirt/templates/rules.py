"""Our own rules for a template: they refuse what the cluster accepts although the VM can never become warm, and what only the
service may set.

Whatever the cluster refuses with a good message is left to its dry run. Recorded on KubeVirt v1.9.0: a VM with no memory is
accepted and fails at its first start; `guest: 0` is accepted and runs.
"""

from collections.abc import Callable

from app.compute.kubevirt import labels
from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.quantities import parse_quantity
from app.compute.kubevirt.templates.problems import Problems
from app.errors import shorten

DEFAULT_RUN_STRATEGY = "Always"
_MOST_CORES = 2**32 - 1  # a uint32 in KubeVirt v1.9.0

_RUNNING_STRATEGIES = ("Always", "RerunOnFailure", "Once")
_IDLE_STRATEGIES = ("Halted", "Manual", "WaitAsReceiver")
_METADATA_KEYS = ("labels", "annotations")
_NAMING_KEYS = ("name", "generateName", "namespace", "uid")
# Labels of a VMI that only KubeVirt's own components may set (KubeVirt v1.9.0, vmi-create-admitter).
_RESERVED_LABELS = frozenset(
    f"kubevirt.io/{name}"
    for name in (
        "created-by",
        "migrationJobUID",
        "nodeName",
        "migrationTargetNodeName",
        "schedulable",
        "install-strategy",
    )
)


def check_metadata(metadata: Manifest, path: str, problems: Problems, *, on_vmi: bool) -> None:
    for key, value in metadata.items():
        if key in _NAMING_KEYS:
            problems.add(f"{path}.{key}", "is set by the service for each VM: leave it out")
        elif key not in _METADATA_KEYS and value is not None:
            problems.add(f"{path}.{key}", "cannot be set in a template: only labels and annotations can")
    check_labels(metadata.get("labels"), f"{path}.labels", problems, on_vmi=on_vmi)
    for key in _check_strings(metadata.get("annotations"), f"{path}.annotations", problems):
        if key.startswith(f"{labels.MEMORY_GROUP}/"):
            problems.add(f"{path}.annotations.{key}", "is set for each VM by what it starts from: leave it out")


def check_labels(value: object, path: str, problems: Problems, *, on_vmi: bool) -> None:
    for key in _check_strings(value, path, problems):
        if labels.is_ours(key):
            problems.add(f"{path}.{key}", "is set by the service itself: leave it out")
        elif on_vmi and key in _RESERVED_LABELS:
            problems.add(f"{path}.{key}", "is reserved by KubeVirt: leave it out")


def check_vm_spec(spec: Manifest, path: str, problems: Problems) -> None:
    """The fields of a VM's spec other than its VMI template."""
    running, strategy = spec.get("running"), spec.get("runStrategy")
    if running is not None and strategy is not None:
        problems.add(f"{path}.running", "excludes runStrategy: keep runStrategy, `running` is deprecated")
    elif running is not None and running is not True:
        problems.add(f"{path}.running", "must be true: the service makes running VMs")
    if strategy in _IDLE_STRATEGIES:
        problems.add(
            f"{path}.runStrategy", f"{strategy} does not start the VM, and the service makes running VMs: write Always"
        )
    elif strategy is not None and strategy not in _RUNNING_STRATEGIES:
        problems.add(f"{path}.runStrategy", f"must be one of {', '.join(_RUNNING_STRATEGIES)}; got {strategy!r}")
    _check_data_volumes(spec, path, problems)


def check_vmi_template(vm_spec: Manifest, path: str, problems: Problems) -> None:
    """The VMI template of a VM's spec. `path` is where its author wrote it."""
    template, at = vm_spec.get("template"), f"{path}.spec"
    if not isinstance(template, dict):
        problems.add(path, "must be a mapping with `spec`")
        return
    check_metadata(problems.mapping(template, "metadata", path), f"{path}.metadata", problems, on_vmi=True)
    spec = problems.mapping(template, "spec", path)
    if not spec:
        if not template.get("spec"):
            problems.add(at, "is empty: it needs at least the domain's memory")
        return
    if spec.get("startStrategy") == "Paused":
        problems.add(
            f"{at}.startStrategy",
            "Paused starts the VM without booting its guest, so it would never be warm: leave it out",
        )
    if not isinstance(spec.get("domain"), dict):
        problems.add(f"{at}.domain", "is missing: it must be a mapping with the VM's memory, CPUs and devices")
        return
    _check_domain(spec["domain"], f"{at}.domain", problems, sized_elsewhere=vm_spec.get("instancetype") is not None)
    _check_names(problems.mappings(spec, "volumes", at), problems)
    for volume, where in problems.mappings(spec, "volumes", at):
        if disk := problems.mapping(volume, "emptyDisk", where):
            check_positive(disk.get("capacity"), f"{where}.emptyDisk.capacity", problems)


def check_uploads(spec: Manifest, locate: Callable[[str], str], problems: Problems) -> None:
    """Refuses disks of an expanded spec that wait for an upload: the service makes a new disk for each VM."""
    for index, template in enumerate(spec.get("dataVolumeTemplates") or []):
        if "upload" in ((template.get("spec") or {}).get("source") or {}):
            problems.add(
                locate(f"spec.dataVolumeTemplates[{index}].spec.source.upload"),
                "waits until somebody uploads an image into this disk, and each VM gets a new one: upload the image once, into a "
                "DataVolume of its own, and name its PVC as source.pvc",
            )


def check_positive(value: object, path: str, problems: Problems, *, or_zero: bool = False) -> None:
    """Adds a problem unless the value is a quantity above zero, or zero if that is allowed."""
    try:
        number = parse_quantity(value)
    except ValueError as error:
        problems.add(path, str(error))
        return
    if or_zero and number < 0:
        problems.add(path, f"must not be below zero; got {value!r}")
    elif not or_zero and number <= 0:
        problems.add(path, f"must be above zero; got {value!r}")


def check_cores(value: object, path: str, problems: Problems) -> int:
    """Reads a number of CPUs of the short form (`2`, `"2"`, `2.0`). Anything else is a problem, and counts as 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        number = parse_quantity(value)
    except ValueError:
        problems.add(path, f"must be a whole number of CPUs; got {value!r}")
        return 1
    if number < 1 or number.denominator != 1:
        problems.add(path, f"must be a whole number of CPUs, 1 or more; got {value!r}")
        return 1
    if number > _MOST_CORES:
        problems.add(path, f"must be {_MOST_CORES} CPUs at most; got {shorten(str(value))}")
        return 1
    return int(number)


def _check_strings(value: object, path: str, problems: Problems) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, dict):
        problems.add(path, f"must be a mapping, got {type(value).__name__}")
        return []
    for key, text in value.items():
        if not isinstance(text, str):
            problems.add(f"{path}.{key}", f"must be a string, in quotes; got {text!r}")
    return list(value)


def _check_domain(domain: Manifest, path: str, problems: Problems, *, sized_elsewhere: bool) -> None:
    cpu = problems.mapping(domain, "cpu", path)
    for key in ("cores", "sockets", "threads", "maxSockets"):
        value = cpu.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            problems.add(f"{path}.cpu.{key}", f"must be an integer, 1 or more; got {value!r}")
    memory = problems.mapping(domain, "memory", path)
    requests = problems.mapping(domain, "resources.requests", path)
    limits = problems.mapping(domain, "resources.limits", path)
    sizes = {
        f"{path}.memory.guest": memory.get("guest"),
        f"{path}.memory.hugepages.pageSize": problems.mapping(domain, "memory.hugepages", path).get("pageSize"),
        f"{path}.resources.requests.memory": requests.get("memory"),
        f"{path}.resources.limits.memory": limits.get("memory"),
    }
    if not sized_elsewhere and all(value is None for value in sizes.values()):
        problems.add(
            f"{path}.memory.guest",
            'is missing: say how much memory the guest has, here or in resources.requests.memory, such as "2Gi"',
        )
    positive = {
        **sizes,
        f"{path}.memory.maxGuest": memory.get("maxGuest"),
        f"{path}.resources.requests.cpu": requests.get("cpu"),
        f"{path}.resources.limits.cpu": limits.get("cpu"),
    }
    for where, value in positive.items():
        if value is not None:
            check_positive(value, where, problems)
    _check_other_resources(requests, f"{path}.resources.requests", problems)
    _check_other_resources(limits, f"{path}.resources.limits", problems)
    added = problems.mapping(domain, "memory.reservedOverhead", path).get("addedOverhead")
    if added is not None:
        check_positive(added, f"{path}.memory.reservedOverhead.addedOverhead", problems, or_zero=True)
    devices = problems.mapping(domain, "devices", path)
    for kind in ("disks", "filesystems"):
        _check_names(problems.mappings(devices, kind, f"{path}.devices"), problems)


def _check_other_resources(amounts: Manifest, path: str, problems: Problems) -> None:
    for key, value in amounts.items():
        if key not in {"cpu", "memory"}:
            check_positive(value, f"{path}.{key}", problems, or_zero=True)


def _check_names(items: list[tuple[Manifest, str]], problems: Problems, *, within: str = "") -> None:
    """Each item needs a `name` of its own; `within`: where below the item it is."""
    first: dict[str, str] = {}
    for item, path in items:
        name = (problems.mapping(item, within, path) if within else item).get("name")
        at = f"{path}.{within}.name" if within else f"{path}.name"
        if not isinstance(name, str) or not name:
            why = "a volume of the template refers to it" if within else "each needs a name of its own"
            problems.add(at, f"is missing: {why}")
        elif name in first:
            problems.add(at, f"{name!r} is the name of {first[name]} already: each needs a name of its own")
        else:
            first[name] = path


def _check_data_volumes(spec: Manifest, path: str, problems: Problems) -> None:
    templates = problems.mappings(spec, "dataVolumeTemplates", path)
    _check_names(templates, problems, within="metadata")
    for template, where in templates:
        if problems.mapping(template, "metadata", where).get("namespace") is not None:
            problems.add(f"{where}.metadata.namespace", "is set by the service for each VM: leave it out")
        for kind in ("storage", "pvc"):
            size = problems.mapping(template, f"spec.{kind}.resources.requests", where).get("storage")
            if size is not None:
                check_positive(size, f"{where}.spec.{kind}.resources.requests.storage", problems)
