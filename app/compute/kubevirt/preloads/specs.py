"""Reads from an expanded spec which preloads would bring its images near. Pure."""

from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel

from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.quantities import requested_storage
from app.compute.kubevirt.templates.manifests import data_volume_specs, disk_source
from app.domain.preloads import GcsSource, HttpSource, PreloadSpec, RegistrySource, S3Source

_SOURCES: dict[str, type[BaseModel]] = {
    "http": HttpSource,
    "registry": RegistrySource,
    "s3": S3Source,
    "gcs": GcsSource,
}


def specs_of(vm_spec: Manifest) -> tuple[PreloadSpec, ...]:
    """One preload for each image from which the disks are made. PVCs are left out, as they are near already, and so are images with
    fields that no preload has.
    """
    templates = data_volume_specs(vm_spec)
    vmi = vm_spec["template"]["spec"]
    found: list[PreloadSpec] = []
    for volume in vmi.get("volumes") or []:
        disk = volume.get("containerDisk") or {}
        body = (
            _of_container(disk, vmi)
            if disk.get("image")
            else _of_import(templates.get(disk_source(volume) or "") or {})
        )
        with suppress(ValidationError):
            spec = PreloadSpec.model_validate(body)
            if spec not in found:
                found.append(spec)
    return tuple(found)


def _of_container(disk: Manifest, vmi: Manifest) -> dict[str, Any]:
    selector = vmi.get("nodeSelector")
    body = {
        "image": {"container": disk["image"]},
        "policy": disk.get("imagePullPolicy"),
        "pull_secret": disk.get("imagePullSecret"),
        "node_selector": {"kubevirt.io/schedulable": "true", **selector} if selector else None,
        "tolerations": vmi.get("tolerations"),
    }
    return {key: value for key, value in body.items() if value}


def _of_import(spec: Manifest) -> dict[str, Any]:
    source = spec.get("source") or {}
    storage = spec.get("storage") or spec.get("pvc") or {}
    kind = next((each for each in _SOURCES if each in source), None)
    if kind is None:
        return {}
    given = source[kind]
    image = {name: given[key] for name in _SOURCES[kind].model_fields if given.get(key := to_camel(name))}
    return {
        "image": {kind: image},
        "size": requested_storage(storage),
        "storage_class": storage.get("storageClassName"),
        "access_modes": storage.get("accessModes") or [],
        "volume_mode": storage.get("volumeMode"),
    }
