"""Translates a DataVolume or a DataImportCron into a preload: the image is imported into a volume, and VMs start from clones."""

import re
from typing import Final

from app.domain.preloads import PreloadImage
from app.manifests.fields import Part, unknown
from app.manifests.heads import DocumentKind, Head, as_text, as_value
from app.manifests.requests import Json, Reference, Resource

_SOURCES: Final = tuple(kind for kind in PreloadImage.model_fields if kind != "container")
_NO_IMAGE: Final = {
    kind: f"is not supported: a preload imports an image ({', '.join(_SOURCES)})" for kind in ("imageio", "vddk")
}
_NO_IMAGE["upload"] = (
    "waits until somebody uploads an image, and a preload imports one: apply this document with kubectl and upload the image, and "
    "then write a DataVolume of another name with source: {pvc: {name: NAME-OF-THIS-ONE}}"
)
_NO_IMAGE["snapshot"] = (
    "copies a VolumeSnapshot, and a preload imports an image: write it as a dataVolumeTemplate of each VM that uses it "
    "(spec.dataVolumeTemplates, with the same source), and leave this document out"
)
_NO_IMAGE["blank"] = (
    "is an empty disk, and a preload imports an image: write it as a dataVolumeTemplate of each VM that uses it "
    "(spec.dataVolumeTemplates, with source: {blank: {}}), so that each has a disk of its own, and leave this document out"
)
_SOURCE_FIELDS: Final = {
    "http": ("url", "secretRef", "certConfigMap", "extraHeaders", "secretExtraHeaders", "checksum"),
    "registry": ("url", "secretRef", "certConfigMap", "pullMethod"),
    "s3": ("url", "secretRef", "certConfigMap"),
    "gcs": ("url", "secretRef"),
    "pvc": ("name", "namespace"),
}
_SOURCE_UNSUPPORTED: Final = {
    "insecureSkipVerify": "is not supported: put the server's CA into a ConfigMap and name it as certConfigMap",
    "imageStream": "is not supported: name the image by its url",
    "platform": "is not supported: name the image of the platform by its url",
}
_SPEC_UNSUPPORTED: Final = {
    "sourceRef": (
        "is not supported: name the image itself as source, or write the disk as a dataVolumeTemplate of each VM that uses it "
        "(spec.dataVolumeTemplates, with the same sourceRef), and leave this document out"
    ),
    "checkpoints": "is not supported: a preload is imported as a whole; leave it out",
    "finalCheckpoint": "is not supported: a preload is imported as a whole; leave it out",
    "preallocation": "is not supported; leave it out",
    "priorityClassName": "is not supported; leave it out",
    "serviceAccountName": "is not supported; leave it out",
}
_VOLUME: Final = {"accessModes": "access_modes", "storageClassName": "storage_class", "volumeMode": "volume_mode"}
_VOLUME_UNSUPPORTED: Final = dict.fromkeys(
    ("dataSource", "dataSourceRef", "selector", "volumeName", "volumeAttributesClassName"),
    "is not supported: only the storage class can be chosen; leave it out",
)
_CRON_UNSUPPORTED: Final = {"serviceAccountName": "is not supported; leave it out"}
_CRON_SETTINGS: Final = {"ttl-seconds": ("ttl_seconds", as_value)}
_SETTINGS: Final = {"schedule": ("schedule", as_text), "keep": ("keep", as_value), **_CRON_SETTINGS}


def _translate_data_volume(head: Head, body: Json, places: dict[str, str]) -> dict[Reference, str]:
    _read_volume(head.spec, body, places)
    _note_name(head)
    return {}


def _translate_import_cron(head: Head, body: Json, places: dict[str, str]) -> dict[Reference, str]:
    spec = head.spec
    spec.allow(
        ("template", "schedule", "importsToKeep", "managedDataSource", "garbageCollect", "retentionPolicy"),
        refused=_CRON_UNSUPPORTED,
    )
    for word, name in {"schedule": "schedule", "importsToKeep": "keep"}.items():
        if word in spec:
            body[name], places[name] = spec.get(word), spec.at(word)
    if "schedule" not in spec:
        spec.refuse("schedule", 'is missing: write when to look for a newer image, such as @daily or "0 3 * * *"')
    if (source := spec.text("managedDataSource")) is not None:
        body["data_source"], places["data_source"] = source, spec.at("managedDataSource")
        spec.note(
            f"spec.managedDataSource {source}: no DataSource of that name is made; a VM with this sourceRef that is applied with the "
            f"preload or after it starts from it, as others do with start_from: {{preload: {head.name}}}"
        )
    if spec.get("garbageCollect") not in {None, "Outdated"}:
        spec.refuse("garbageCollect", "must be Outdated: older imports than importsToKeep are removed")
    if spec.get("retentionPolicy") not in {None, "None"}:
        spec.refuse("retentionPolicy", "must be None: the imports are deleted with their preload")
    template = spec.part("template", required=True)
    template.allow(("metadata", "spec"))
    _read_volume(template.part("spec", required="template" in spec), body, places)
    _note_name(head)
    return {}


def _note_name(head: Head) -> None:
    head.findings.note(
        f"the service generates the volume's name in the cluster; VMs start from it with start_from: {{preload: {head.name}}}"
    )


def _read_volume(spec: Part, body: Json, places: dict[str, str]) -> None:
    """A DataVolume's spec."""
    spec.allow(("source", "pvc", "storage", "contentType", "preloadPolicy"), refused=_SPEC_UNSUPPORTED)
    if spec.get("contentType") not in {None, "kubevirt"}:
        spec.refuse("contentType", "must be kubevirt: VMs boot from a preload, and an archive is not a disk")
    if "preloadPolicy" in spec:
        body["policy"], places["policy"] = spec.get("preloadPolicy"), spec.at("preloadPolicy")
    source = spec.part("source", required="sourceRef" not in spec)
    places["image"] = source.path
    if isinstance(spec.get("source"), dict):
        _read_source(source, body, places)
    if "pvc" in spec and "storage" in spec:
        spec.refuse("storage", "and pvc exclude each other: keep one of them")
    key = "pvc" if "pvc" in spec else "storage"
    volume = spec.part(key)
    volume.allow((*_VOLUME, "resources"), refused=_VOLUME_UNSUPPORTED)
    for word, name in _VOLUME.items():
        if word in volume:
            body[name], places[name] = volume.get(word), volume.at(word)
    resources = volume.part("resources")
    resources.allow(("requests",), refused={"limits": "is not supported: requests.storage is the volume's size"})
    requests = resources.part("requests")
    requests.allow(("storage",))
    places["size"] = requests.at("storage")
    if "storage" in requests:
        size = requests.get("storage")
        body["size"] = str(size) if isinstance(size, int) and not isinstance(size, bool) else size


def _read_source(source: Part, body: Json, places: dict[str, str]) -> None:
    found = []
    for kind in source.value:
        if kind in _NO_IMAGE:
            source.refuse(kind, _NO_IMAGE[kind])
        elif kind not in _SOURCES:
            source.refuse(kind, unknown("source", kind, _SOURCES))
        elif kind in source:
            found.append(kind)
    if len(found) > 1:
        source.refuse(found[1], f"and {found[0]} exclude each other: an image has one source")
    if not found:
        if not source.value:
            source.findings.refuse(source.path, f"must name the source of the image: one of {', '.join(_SOURCES)}")
        return
    kind = found[0]
    given = source.part(kind)
    given.allow(_SOURCE_FIELDS[kind], refused=_SOURCE_UNSUPPORTED)
    body["image"] = {kind: {_snake(key): value for key, value in given.value.items() if value is not None}}
    places[f"image.{kind}"] = given.path
    for key in given.value:
        places[f"image.{kind}.{_snake(key)}"] = given.at(key)


def _snake(name: str) -> str:
    return re.sub(r"([A-Z])", lambda letter: f"_{letter[1].lower()}", name)


DATA_VOLUME: Final = DocumentKind(
    "DataVolume", "cdi.kubevirt.io", ("v1beta1",), Resource.PRELOAD, _SETTINGS, _translate_data_volume
)
IMPORT_CRON: Final = DocumentKind(
    "DataImportCron", "cdi.kubevirt.io", ("v1beta1",), Resource.PRELOAD, _CRON_SETTINGS, _translate_import_cron
)
