"""Volumes that name a preload: where a VM uses a DataVolume of that name, it gets a clone of the preload's volume.

In Kubernetes such a VM would use the very DataVolume. Here each VM has a disk of its own: the volume becomes a
dataVolumeTemplate that imports the preload's image, which a start from the preload makes a clone.
"""

import copy
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from app.domain.preloads import PreloadSpec
from app.manifests.requests import Json, Resource, ResourceRequest


def names_of_volumes(request: ResourceRequest) -> frozenset[str]:
    """The DataVolumes and claims that the request's VM uses, and no template of its own makes."""
    vm_spec = _vm_spec(request.body.get(_ROOTS.get(request.resource, "")))
    return frozenset(name for _, name, _ in _borrowed(vm_spec)) if vm_spec is not None else frozenset()


def link(request: ResourceRequest, preloads: Mapping[str, PreloadSpec], *, namespace: str) -> ResourceRequest:
    """The request with its volumes made from those of the `preloads` that they name; the same where they name none.

    `namespace` is where an image's claim lies that names none.
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
        told = f"{place.removeprefix(request.document.path + '.')} is a volume of each VM's own"
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
    """The part of a template that may have dataVolumeTemplates; of a VMI template one that stands for it."""
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
    """Position, the DataVolume's or claim's name, and the volume."""
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
