"""The shape of a VM, which is equal for interchangeable VMs, and the images that it boots from. Pure.

Everything that changes what boots is part of the shape: disks and their sources, CPU, memory, firmware, devices, networks,
placement, cloud-init data. Names, labels and annotations are not, nor are probes and shutdown times.
"""

import copy
import hashlib
import json
from typing import Any

from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.quantities import parse_quantity
from app.compute.kubevirt.templates.manifests import data_volume_specs, disk_source
from app.domain.paths import ImageKind, ImageRef

_WITHOUT_EFFECT = (
    "hostname",
    "subdomain",
    "readinessProbe",
    "livenessProbe",
    "terminationGracePeriodSeconds",
    "evictionStrategy",
    "startStrategy",
)
_CPU_DEFAULTS = {"cores": 1, "sockets": 1, "threads": 1}
_QUANTITIES = frozenset({"guest", "maxGuest", "pageSize", "memory", "cpu", "storage", "capacity", "ephemeral-storage"})
# These mean nothing when they are empty. Others do: `efi: {}` asks for UEFI.
_CONTAINERS = frozenset(
    {
        "devices",
        "resources",
        "requests",
        "limits",
        "nodeSelector",
        "affinity",
        "tolerations",
        "topologySpreadConstraints",
        "networks",
        "interfaces",
        "disks",
    }
)
_BY_URL = (ImageKind.HTTP, ImageKind.REGISTRY, ImageKind.S3, ImageKind.GCS)


def shape_of(spec: Manifest) -> str:
    """Equal for expanded specs that boot the same VM."""
    spec = copy.deepcopy(spec)
    vmi = spec["template"]["spec"]
    for key in _WITHOUT_EFFECT:
        vmi.pop(key, None)
    spread = vmi.get("topologySpreadConstraints") or []
    vmi["topologySpreadConstraints"] = [each for each in spread if each.get("whenUnsatisfiable") != "ScheduleAnyway"]
    domain = vmi.get("domain") or {}
    devices = domain.get("devices") or {}
    if domain.get("cpu"):
        domain["cpu"] = {**_CPU_DEFAULTS, **domain["cpu"]}
    boots = {
        "disks": _disks(devices, _volumes(spec, vmi)),
        "instance": vmi,
        "instancetype": spec.get("instancetype"),
        "preference": spec.get("preference"),
    }
    for holder, key in ((devices, "disks"), (devices, "filesystems"), (vmi, "volumes")):
        holder.pop(key, None)
    return fingerprint(_canonical(boots))


def fingerprint(value: object) -> str:
    """The same for equal JSON, whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def images_of(spec: Manifest) -> tuple[ImageRef, ...]:
    """The images from which the disks of an expanded spec are made, in the order of its volumes, each once."""
    found: dict[ImageRef, None] = {}
    templates = data_volume_specs(spec)
    for volume in spec["template"]["spec"].get("volumes") or []:
        image = _image_of(volume, templates)
        if image is not None:
            found[image] = None
    return tuple(found)


def image_of_source(source: Manifest) -> ImageRef | None:
    """The image of a DataVolume's `source`; None if it has none (blank, upload, snapshot)."""
    for kind in _BY_URL:
        reference = (source.get(kind) or {}).get("url")
        if isinstance(reference, str):
            return ImageRef(kind, reference)
    claim = source.get("pvc")
    if isinstance(claim, dict) and claim.get("name"):
        return ImageRef(ImageKind.PVC, f"{claim.get('namespace') or ''}/{claim['name']}")
    return None


def _image_of(volume: Manifest, templates: dict[str, Manifest]) -> ImageRef | None:
    image = (volume.get("containerDisk") or {}).get("image")
    if isinstance(image, str):
        return ImageRef(ImageKind.CONTAINER, image)
    template = templates.get(disk_source(volume) or "")
    return image_of_source(template.get("source") or {}) if template is not None else None


def _volumes(spec: Manifest, vmi: Manifest) -> dict[str, Any]:
    """The content of each volume by its name. The spec of a DataVolume template replaces its name, which differs in each VM."""
    templates = data_volume_specs(spec)
    contents: dict[str, Any] = {}
    for volume in vmi.get("volumes") or []:
        content = {key: value for key, value in volume.items() if key != "name"}
        name = disk_source(content)
        if name in templates:
            content = {"import": templates[name]}
        contents[volume["name"]] = content
    return contents


def _disks(devices: Manifest, contents: dict[str, Any]) -> list[Any]:
    """The disks in their order, which is the boot order if none is given, then the volumes without a disk."""
    disks: list[Any] = []
    for kind in ("disks", "filesystems"):
        for device in devices.get(kind) or []:
            content = contents.pop(device["name"], None)
            disks.append({**{key: value for key, value in device.items() if key != "name"}, "content": content})
    return [*disks, *({"content": content} for content in contents.values())]


def _canonical(value: Any, key: str = "") -> Any:
    """Without empty values, and with quantities as numbers: `2Gi` and `2048Mi` are the same memory."""
    if isinstance(value, dict):
        kept = {name: _canonical(item, name) for name, item in value.items()}
        return {
            name: item
            for name, item in kept.items()
            if item is not None and not (name in _CONTAINERS and item in ({}, []))
        }
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if key in _QUANTITIES and isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            return str(parse_quantity(value))
        except ValueError:
            return value
    return value
