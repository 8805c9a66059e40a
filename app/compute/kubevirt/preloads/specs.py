"""Reads from an expanded spec which preloads would bring its images near. Pure."""

from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.quantities import requested_storage
from app.compute.kubevirt.templates.manifests import data_volume_specs, disk_source
from app.domain.preloads import PreloadSpec

_SOURCES = {
    "http": {
        "url": "url",
        "secretRef": "secret_ref",
        "certConfigMap": "cert_config_map",
        "extraHeaders": "extra_headers",
        "secretExtraHeaders": "secret_extra_headers",
        "checksum": "checksum",
    },
    "registry": {
        "url": "url",
        "secretRef": "secret_ref",
        "certConfigMap": "cert_config_map",
        "pullMethod": "pull_method",
    },
    "s3": {"url": "url", "secretRef": "secret_ref", "certConfigMap": "cert_config_map"},
    "gcs": {"url": "url", "secretRef": "secret_ref"},
}


def specs_of(vm_spec: Manifest) -> tuple[PreloadSpec, ...]:
    """One preload for each image from which the disks are made. PVCs are left out, as they are near already, and so are images with
    fields that no preload has.
    """
    templates = data_volume_specs(vm_spec)
    vmi = vm_spec["template"]["spec"]
    found: list[PreloadSpec] = []
    bodies = []
    for volume in vmi.get("volumes") or []:
        disk = volume.get("containerDisk") or {}
        name = disk_source(volume)
        if disk.get("image"):
            bodies.append(_of_container(disk, vmi))
        elif name in templates:
            bodies.append(_of_import(templates[name]))
    for body in bodies:
        with suppress(ValidationError):
            spec = PreloadSpec.model_validate(body)
            if spec not in found:
                found.append(spec)
    return tuple(found)


def _of_container(disk: Manifest, vmi: Manifest) -> dict[str, Any]:
    body: dict[str, Any] = {"image": {"container": disk["image"]}}
    if disk.get("imagePullPolicy"):
        body["policy"] = disk["imagePullPolicy"]
    if disk.get("imagePullSecret"):
        body["pull_secret"] = disk["imagePullSecret"]
    if vmi.get("nodeSelector"):
        body["node_selector"] = {"kubevirt.io/schedulable": "true", **vmi["nodeSelector"]}
    if vmi.get("tolerations"):
        body["tolerations"] = vmi["tolerations"]
    return body


def _of_import(spec: Manifest) -> dict[str, Any]:
    source = spec.get("source") or {}
    storage = spec.get("storage") or spec.get("pvc") or {}
    kind = next((each for each in _SOURCES if each in source), None)
    if kind is None:
        return {}
    given = source[kind]
    image = {ours: given[theirs] for theirs, ours in _SOURCES[kind].items() if given.get(theirs)}
    return {
        "image": {kind: image},
        "size": requested_storage(storage),
        "storage_class": storage.get("storageClassName"),
        "access_modes": storage.get("accessModes") or [],
        "volume_mode": storage.get("volumeMode"),
    }
