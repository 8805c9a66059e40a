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
    """The DataVolumes and PersistentVolumeClaims that the request's VM uses without having a template for them, and the DataSources
    that its templates clone.
    """
    vm_spec, _ = _find_vm(request.body.get(_ROOTS.get(request.resource, "")))
    return frozenset(name for _, name, _ in _borrowed(vm_spec)) | {name for _, name, _ in _sourced(vm_spec)}


def by_data_source(preloads: Mapping[str, PreloadSpec]) -> dict[str, tuple[str, PreloadSpec]]:
    """The name and the spec of the preload by the name of the DataSource whose place it takes.

    `preloads` has the oldest first; the newest serves. One that names no DataSource takes the place of that with its own name,
    unless another names it.
    """
    unnamed = {name: (name, spec) for name, spec in preloads.items() if spec.data_source is None}
    named = {spec.data_source: (name, spec) for name, spec in preloads.items() if spec.data_source is not None}
    return unnamed | named


def link_sources(
    request: ResourceRequest, sources: Mapping[str, tuple[str, PreloadSpec]], *, namespace: str
) -> ResourceRequest:
    """The request with each dataVolumeTemplate that clones one of the DataSources turned into a clone of its preload.

    `sources` has the name and the spec of the preload by the name of the DataSource. A DataSource of another namespace than
    `namespace` stays as it is, and so does one that is not among them: the cluster may have it.
    """
    root = _ROOTS.get(request.resource, "")
    vm_spec, volumes = _find_vm(request.body.get(root))
    near = [each for each in _sourced(vm_spec) if _is_near(each[2], namespace)]
    found = [each for each in near if each[1] in sources]
    left = [
        f"dataVolumeTemplates[{number}].spec.sourceRef {name}: no preload takes the place of this DataSource, so the cluster must have "
        "it; to start from a preload, apply its DataImportCron before or with this document"
        for number, name, _ in near
        if name not in sources
    ]
    if not found:
        return dataclasses.replace(request, notes=(*request.notes, *left)) if left else request
    body, places = copy.deepcopy(request.body), dict(request.places)
    references, notes = dict(request.references), [*request.notes, *left]
    templates = _find_vm(body[root])[0]["dataVolumeTemplates"]
    above = volumes.removesuffix(".template.spec.volumes")
    for number, source, _ in found:
        name, preload = sources[source]
        spec = templates[number]["spec"]
        del spec["sourceRef"]
        spec["source"] = preload.image.source(namespace)
        _take_size(spec, preload)
        place = f"{places[root]}{above}.dataVolumeTemplates[{number}].spec.sourceRef.name"
        told = f"{place.removeprefix(request.document.path + '.')} {source}"
        if "start_from" in body:
            notes.append(f"{told} became the image of preload {name}")
            continue
        body["start_from"] = {"preload": name}
        places["start_from"] = places["start_from.preload"] = place
        references[Resource.PRELOAD, name] = place
        notes.append(f"{told} became a clone of preload {name}")
    return dataclasses.replace(request, body=body, places=places, references=references, notes=tuple(notes))


def _take_size(spec: Json, preload: PreloadSpec) -> None:
    """A clone of a DataSource needs no size, and an import does."""
    holder: Any = spec
    for key in ("pvc" if spec.get("pvc") is not None else "storage", "resources", "requests"):
        if holder.get(key) is None:
            holder[key] = {}
        holder = holder[key]
        if not isinstance(holder, dict):
            return  # what the template is held against reports it
    if holder.get("storage") is None and preload.size is not None:
        holder["storage"] = preload.size


def _is_near(source_ref: Json, namespace: str) -> bool:
    return source_ref.get("namespace") in {None, "", namespace}


def _sourced(vm_spec: Json) -> Iterator[tuple[int, str, Json]]:
    """The position of each dataVolumeTemplate that clones a DataSource, the name of the DataSource, and the reference."""
    given = vm_spec.get("dataVolumeTemplates")
    for number, template in enumerate(given if isinstance(given, list) else ()):
        spec = template.get("spec") if isinstance(template, dict) else None
        reference = spec.get("sourceRef") if isinstance(spec, dict) else None
        if not isinstance(reference, dict) or reference.get("kind") != "DataSource":
            continue
        if isinstance(name := reference.get("name"), str):
            yield number, name, reference


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
