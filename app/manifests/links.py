"""Links volumes to preloads: a VM that uses a DataVolume with the name of a preload gets a clone of the preload's volume.

In Kubernetes, the VM would use the DataVolume itself. Here each VM has its own disk: the volume becomes a dataVolumeTemplate that
imports the preload's image, and a start from the preload turns that import into a clone.
"""

import copy
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from app.domain.preloads import PreloadSpec
from app.manifests.requests import Json, Resource, ResourceRequest


def names_of_volumes(request: ResourceRequest) -> frozenset[str]:
    """The DataVolumes and PersistentVolumeClaims that the request's VM uses without having a template for them."""
    vm_spec = _vm_spec(request.body.get(_ROOTS.get(request.resource, "")))
    return frozenset(name for _, name, _ in _borrowed(vm_spec)) if vm_spec is not None else frozenset()


def link(request: ResourceRequest, preloads: Mapping[str, PreloadSpec], *, namespace: str) -> ResourceRequest:
    """The request with each volume that names one of the `preloads` turned into a clone of it.

    `namespace` is the namespace of an image that is a PersistentVolumeClaim without one.
    """
    root = _ROOTS.get(request.resource, "")
    written = request.body.get(root)
    if not names_of_volumes(request) & preloads.keys():
        return request
    body = copy.deepcopy(request.body)
    places = dict(request.places)
    references = dict(request.references)
    notes = list(request.notes)
    if isinstance(written, dict) and _is_vmi(written):
        body[root] = {"template": body[root]}
        places[f"{root}.template"] = places[root]
    vm_spec = _vm_spec(body[root])
    for number, name, volume in list(_borrowed(vm_spec or {})):
        preload = preloads.get(name)
        if vm_spec is None or preload is None:
            continue
        place = f"{places[root]}{_path_of_volumes(written)}[{number}]"
        vm_spec["dataVolumeTemplates"] = [
            *(vm_spec.get("dataVolumeTemplates") or []),
            {"metadata": {"name": name}, "spec": preload.data_volume(namespace)},
        ]
        volume.pop("persistentVolumeClaim", None)
        volume["dataVolume"] = {"name": name}
        told = f"{place.removeprefix(request.document.path + '.')} became a disk of each VM"
        if "start_from" in body:
            notes.append(f"{told}, made from the image of preload {name}")
            continue
        body["start_from"] = {"preload": name}
        places["start_from"] = places["start_from.preload"] = place
        references[Resource.PRELOAD, name] = place
        notes.append(f"{told}, a clone of preload {name}")
    return dataclasses.replace(request, body=body, places=places, references=references, notes=tuple(notes))


_ROOTS = {Resource.POOL: "template", Resource.CLAIM: "vm"}


def _is_vmi(written: Json) -> bool:
    spec = written.get("spec")
    return "template" not in written and isinstance(spec, dict) and "template" not in spec


def _vm_spec(written: Any) -> Json | None:
    """The part of a template that may have dataVolumeTemplates; a VMI template is wrapped into one."""
    if not isinstance(written, dict):
        return None
    if _is_vmi(written):
        return {"template": written}
    found = written if "template" in written else written.get("spec")
    return found if isinstance(found, dict) else None


def _path_of_volumes(written: Any) -> str:
    if isinstance(written, dict) and _is_vmi(written):
        return ".spec.volumes"
    return (
        ".template.spec.volumes"
        if isinstance(written, dict) and "template" in written
        else ".spec.template.spec.volumes"
    )


def _borrowed(vm_spec: Json) -> Iterator[tuple[int, str, Json]]:
    """The position of each such volume, the name of its DataVolume or PersistentVolumeClaim, and the volume."""
    own = set(_names(vm_spec.get("dataVolumeTemplates")))
    template = vm_spec.get("template")
    inner = template.get("spec") if isinstance(template, dict) else None
    volumes = inner.get("volumes") if isinstance(inner, dict) else None
    for number, volume in enumerate(volumes if isinstance(volumes, list) else ()):
        if not isinstance(volume, dict):
            continue
        for kind, key in (("dataVolume", "name"), ("persistentVolumeClaim", "claimName")):
            source = volume.get(kind)
            name = source.get(key) if isinstance(source, dict) else None
            if isinstance(name, str) and name not in own:
                yield number, name, volume


def _names(templates: Any) -> Collection[str]:
    metadata = (
        [each.get("metadata") for each in templates if isinstance(each, dict)] if isinstance(templates, list) else []
    )
    return [str(each.get("name")) for each in metadata if isinstance(each, dict)]
