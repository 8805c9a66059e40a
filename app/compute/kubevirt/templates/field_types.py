"""Checks that the fields of a template that we read ourselves have the type that KubeVirt v1.9.0 gives them.

The cluster's dry run checks all types, but we read shape, demand and placement before it. A field that is null counts as missing.
"""

from collections.abc import Callable, Iterator
from typing import Final

from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.templates.problems import Problems

_VMI: Final = "spec.template.spec"
_DOMAIN: Final = f"{_VMI}.domain"
_MAPPINGS: Final = (
    "spec.dataVolumeTemplates[].spec.pvc",
    "spec.dataVolumeTemplates[].spec.source",
    "spec.dataVolumeTemplates[].spec.source.http",
    "spec.dataVolumeTemplates[].spec.source.registry",
    "spec.dataVolumeTemplates[].spec.source.s3",
    "spec.dataVolumeTemplates[].spec.source.gcs",
    "spec.dataVolumeTemplates[].spec.source.pvc",
    "spec.dataVolumeTemplates[].spec.storage",
    f"{_VMI}.livenessProbe",
    f"{_VMI}.networks[]",
    f"{_VMI}.readinessProbe",
    f"{_VMI}.resourceClaims[]",
    f"{_VMI}.utilityVolumes[]",
    f"{_VMI}.volumes[].cloudInitConfigDrive",
    f"{_VMI}.volumes[].cloudInitNoCloud",
    f"{_VMI}.volumes[].containerDisk",
    f"{_VMI}.volumes[].dataVolume",
    f"{_VMI}.volumes[].ephemeral",
    f"{_VMI}.volumes[].ephemeral.persistentVolumeClaim",
    f"{_VMI}.volumes[].hostDisk",
    f"{_VMI}.volumes[].memoryDump",
    f"{_VMI}.volumes[].persistentVolumeClaim",
    f"{_DOMAIN}.chassis",
    f"{_DOMAIN}.cpu.features[]",
    f"{_DOMAIN}.cpu.numa",
    f"{_DOMAIN}.devices.gpus[]",
    f"{_DOMAIN}.devices.hostDevices[]",
    f"{_DOMAIN}.devices.interfaces[]",
    f"{_DOMAIN}.devices.tpm",
    f"{_DOMAIN}.firmware",
    f"{_DOMAIN}.firmware.kernelBoot",
    f"{_DOMAIN}.ioThreads",
    f"{_DOMAIN}.launchSecurity",
    f"{_DOMAIN}.machine",
)
_STRINGS: Final = (
    f"{_VMI}.architecture",
    f"{_VMI}.resourceClaims[].resourceClaimName",
    f"{_VMI}.utilityVolumes[].claimName",
    f"{_VMI}.volumes[].dataVolume.name",
    f"{_VMI}.volumes[].ephemeral.persistentVolumeClaim.claimName",
    f"{_VMI}.volumes[].hostDisk.path",
    f"{_VMI}.volumes[].memoryDump.claimName",
    f"{_VMI}.volumes[].persistentVolumeClaim.claimName",
    f"{_DOMAIN}.cpu.model",
    f"{_DOMAIN}.machine.type",
    f"{_DOMAIN}.memory.hugepages.pageSize",
)
_INTEGERS: Final = (f"{_DOMAIN}.ioThreads.supplementalPoolThreadCount",)
_TYPES: Final = (
    *((path, dict, "a mapping") for path in _MAPPINGS),
    *((path, str, "a string") for path in _STRINGS),
    *((path, int, "an integer") for path in _INTEGERS),
)


def check_types(spec: Manifest, locate: Callable[[str], str], problems: Problems) -> None:
    """Checks a VirtualMachine's `spec`. `locate` turns the cluster's name of a field into the place where its author wrote it."""
    for path, wanted, words in _TYPES:
        for value, at in _find({"spec": spec}, path.split("."), "", problems, locate):
            if value is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
                problems.add(locate(at), f"must be {words}, got {type(value).__name__}")


def _find(
    parent: object,
    path: list[str],
    at: str,
    problems: Problems,
    locate: Callable[[str], str],
) -> Iterator[tuple[object, str]]:
    """The values at a path, each with its place. A wrong type on the way is a problem of its own, or of another row of `_TYPES`."""
    if not path:
        yield parent, at
        return
    if not isinstance(parent, dict):
        return
    key, rest = path[0].removesuffix("[]"), path[1:]
    value, at = parent.get(key), f"{at}.{key}" if at else key
    if not path[0].endswith("[]"):
        yield from _find(value, rest, at, problems, locate)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if item is None:
                problems.add(locate(f"{at}[{index}]"), "must be a mapping, got NoneType")
            yield from _find(item, rest, f"{at}[{index}]", problems, locate)
    elif value is not None:
        problems.add(locate(at), f"must be a list, got {type(value).__name__}")
