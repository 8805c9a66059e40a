"""The shape of a VM, which is equal for interchangeable VMs, and the images that it boots from. Pure.

The shape of a VM is everything that KubeVirt is given for it, less what can be written onto it while it runs (its marks) and what
makes no difference: the names of its DataVolumes, which the service gives each VM anew; the probe and the spreading rule that the
service adds by itself; and the spelling of the same value. A field that is not known here is therefore part of the shape.
"""

import copy
import hashlib
import json
from typing import Any

from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.quantities import parse_quantity
from app.compute.kubevirt.templates.manifests import data_volume_specs, disk_references, disk_source
from app.compute.kubevirt.templates.marks import read_at_boot
from app.compute.kubevirt.templates.placement import is_default_spread
from app.domain.paths import ImageKind, ImageRef

# Often enough that a claim does not get a guest that stopped answering long ago, and rarely enough for hundreds of VMs: each ping
# starts a process in the VM's pod.
AGENT_PROBE = {
    "guestAgentPing": {},
    "initialDelaySeconds": 2,
    "periodSeconds": 3,
    "timeoutSeconds": 2,
    "failureThreshold": 3,
}
"""The readiness probe of a pool that waits for the guest agent, if its template has none. A VM without it boots the same."""
_CPU_DEFAULTS = {"cores": 1, "sockets": 1, "threads": 1}
_QUANTITIES = frozenset(
    {
        "addedOverhead",
        "capacity",
        "cpu",
        "ephemeral-storage",
        "guest",
        "maxGuest",
        "memory",
        "pageSize",
        "storage",
    }
)
_VERBATIM = frozenset({"annotations", "labels", "matchLabels", "nodeSelector"})
"""Below these, keys are not ours to know, and every value is text."""
# These mean nothing when they are empty. Others do: `efi: {}` asks for UEFI.
_CONTAINERS = frozenset(
    {
        "affinity",
        "annotations",
        "devices",
        "disks",
        "interfaces",
        "labels",
        "limits",
        "metadata",
        "networks",
        "nodeSelector",
        "requests",
        "resources",
        "tolerations",
        "topologySpreadConstraints",
        "unused",
    }
)
_BY_URL = (ImageKind.HTTP, ImageKind.REGISTRY, ImageKind.S3, ImageKind.GCS)


def shape_of(spec: Manifest) -> str:
    """Equal for expanded specs that make the same VM, but for its marks (see `marks.marks_of`)."""
    return fingerprint(contents_of(spec))


def contents_of(spec: Manifest) -> Manifest:
    """What the shape is the hash of: `instance` (a VMI's spec), `disks` with their contents, and what else KubeVirt is given."""
    metadata = read_at_boot(spec)
    spec = copy.deepcopy(spec)
    vmi = spec.pop("template")["spec"]
    templates = {each["metadata"]["name"]: each for each in spec.pop("dataVolumeTemplates", None) or []}
    if vmi.get("readinessProbe") == AGENT_PROBE:
        del vmi["readinessProbe"]
    spread = vmi.get("topologySpreadConstraints") or []
    vmi["topologySpreadConstraints"] = [each for each in spread if not is_default_spread(each)]
    domain = vmi.get("domain") or {}
    devices = domain.get("devices") or {}
    if domain.get("cpu"):
        given = {key: value for key, value in domain["cpu"].items() if value is not None}
        domain["cpu"] = {**_CPU_DEFAULTS, **given}
    used: set[str] = set()
    contents = {volume["name"]: _content(volume, templates, used) for volume in vmi.get("volumes") or []}
    makes = {
        **spec,
        "metadata": metadata,
        "disks": _disks(devices, contents),
        "unused": [_import(each) for name, each in templates.items() if name not in used],
        "instance": vmi,
    }
    for holder, key in ((devices, "disks"), (devices, "filesystems"), (vmi, "volumes")):
        holder.pop(key, None)
    found: Manifest = _canonical(makes)
    return found


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


def _content(volume: Manifest, templates: dict[str, Manifest], used: set[str]) -> Manifest:
    """The volume, with the DataVolume template that it refers to in place of its name. Adds that name to `used`."""
    for source, key in disk_references(volume):
        if (name := source.get(key)) in templates:
            used.add(name)
            source[key] = _import(templates[name])
    return {key: value for key, value in volume.items() if key != "name"}


def _import(template: Manifest) -> Manifest:
    metadata = {key: value for key, value in template["metadata"].items() if key != "name"}
    return {"metadata": metadata, "spec": template.get("spec")}


def _disks(devices: Manifest, contents: dict[str, Any]) -> list[Any]:
    """The disks in their order, which is the boot order if none is given, then the volumes for which KubeVirt adds a disk."""
    found = [
        {**device, "kind": kind, "content": contents.pop(device["name"], None)}
        for kind in ("disks", "filesystems")
        for device in devices.get(kind) or []
    ]
    added = [{"name": name, "kind": "disks", "content": content} for name, content in contents.items()]
    return [*found, *added]


def _canonical(value: Any, key: str = "") -> Any:
    """Without empty values, and with quantities as numbers: `2Gi` and `2048Mi` are the same memory."""
    if key in _VERBATIM:
        return value
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
