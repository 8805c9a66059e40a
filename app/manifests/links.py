"""Links volumes to preloads: a VM that uses a DataVolume with the name of a preload gets a clone of the preload's volume.

In Kubernetes, the VM would use the DataVolume itself. Here each VM has its own disk: the volume becomes a dataVolumeTemplate that
imports the preload's image, and a start from the preload turns that import into a clone.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from app.domain.preloads import PreloadSpec
from app.manifests.requests import Json, Resource, ResourceRequest


def names_of_volumes(request: ResourceRequest) -> frozenset[str]:
    """The DataVolumes and PersistentVolumeClaims that the request's VM uses without having a template for them."""
    vm_spec, _ = _find_vm(request.body.get(_ROOTS.get(request.resource, "")))
    return frozenset(name for _, name, _ in _borrowed(vm_spec))


def link(request: ResourceRequest, preloads: Mapping[str, PreloadSpec], *, namespace: str) -> ResourceRequest:
    """The request with each volume that names one of the `preloads` turned into a clone of it.

    `namespace` is the namespace of an image that is a PersistentVolumeClaim without one.
    """
    root = _ROOTS.get(request.resource, "")
    written: Any = request.body.get(root)
    if not names_of_volumes(request) & preloads.keys():
        return request
    body = copy.deepcopy(request.body)
    places = dict(request.places)
    references = dict(request.references)
    notes = list(request.notes)
    _, volumes = _find_vm(written)
    if _is_vmi(written):
        body[root] = {"template": body[root]}
        places[f"{root}.template"] = places[root]
    vm_spec, _ = _find_vm(body[root])
    for number, name, volume in list(_borrowed(vm_spec)):
        preload = preloads.get(name)
        if preload is None:
            continue
        place = f"{places[root]}{volumes}[{number}]"
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


def _find_vm(written: Any) -> tuple[Json, str]:
    """The part of a template that may have dataVolumeTemplates, and the path from the template to the volumes.

    A VMI template is wrapped into such a part; what is no template has an empty one.
    """
    if not isinstance(written, dict):
        return {}, ""
    if _is_vmi(written):
        return {"template": written}, ".spec.volumes"
    if "template" in written:
        return written, ".template.spec.volumes"
    found = written.get("spec")
    return found if isinstance(found, dict) else {}, ".spec.template.spec.volumes"


def _borrowed(vm_spec: Json) -> Iterator[tuple[int, str, Json]]:
    """The position of each such volume, the name of its DataVolume or PersistentVolumeClaim, and the volume."""
    given = vm_spec.get("dataVolumeTemplates")
    heads = [each.get("metadata") for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    own = {str(head.get("name")) for head in heads if isinstance(head, dict)}
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
