"""Puts what a VM starts from into its spec: disks with the content of a snapshot or of a preload. Pure.

The disks of a snapshot are PersistentVolumeClaims (PVCs) with a VolumeSnapshot as their source, in the VM's own namespace: the
storage copies them without CDI. They belong to their VM and are therefore created after it; KubeVirt v1.9.0 waits for a missing
PVC and continues once it exists. The disk of a preload is cloned by a DataVolume of the VM.
"""

import copy

from app.compute.kubevirt import labels
from app.compute.kubevirt.kinds import PVCS, VMS, VOLUME_SNAPSHOTS, Manifest
from app.compute.kubevirt.quantities import parse_quantity
from app.compute.kubevirt.templates.manifests import added_disk, data_volume_name, data_volume_specs, disk_source
from app.compute.kubevirt.templates.shapes import image_of_source
from app.domain.paths import FromImage, FromSnapshot, FromVolume, SnapshotDisk, Start
from app.domain.preloads import storage_request

BOOT = "boot"
_NO_DISKS = frozenset(
    {
        "emptyDisk",
        "cloudInitNoCloud",
        "cloudInitConfigDrive",
        "configMap",
        "secret",
        "sysprep",
        "serviceAccount",
        "downwardAPI",
    }
)

_REQUEST = frozenset({"accessModes", "resources", "storageClassName", "volumeMode", "volumeAttributesClassName"})


def begin(spec: Manifest, start: Start, *, vm: str, namespace: str) -> Manifest:
    """The expanded `spec` for the VM named `vm`, with disks that begin with the content of `start`. `spec` is not changed."""
    match start:
        case None:
            return spec
        case FromSnapshot():
            return _from_snapshot(copy.deepcopy(spec), start, vm, namespace)
        case FromVolume():
            return _from_volume(copy.deepcopy(spec), start, namespace)
        case FromImage():
            return _from_image(copy.deepcopy(spec), start)


def has_own_disk(spec: Manifest) -> bool:
    """Whether an expanded spec has a disk with content, not counting the volumes that carry configuration."""
    blank = {name for name, each in data_volume_specs(spec).items() if "blank" in (each.get("source") or {})}
    volumes = spec["template"]["spec"].get("volumes") or []
    return any(not (volume.keys() & _NO_DISKS or disk_source(volume) in blank) for volume in volumes)


def keeps_state(spec: Manifest) -> bool:
    """Whether the VM has a persistent TPM or EFI. KubeVirt v1.9.0 keeps their state in a PVC of its own, outside of the spec."""
    domain = spec["template"]["spec"].get("domain") or {}
    tpm = (domain.get("devices") or {}).get("tpm") or {}
    efi = ((domain.get("firmware") or {}).get("bootloader") or {}).get("efi") or {}
    return bool(tpm.get("persistent") or efi.get("persistent"))


def infers(spec: Manifest) -> bool:
    """Whether KubeVirt takes the instance type or the preference from the labels of a volume's PVC or DataSource. It reads them
    when the VM is created (v1.9.0): the PVC of a snapshot's disk comes after that, and a preload has none of these labels.
    """
    return any((spec.get(kind) or {}).get("inferFromVolume") for kind in ("instancetype", "preference"))


def pvcs_of(vm: Manifest, start: Start, spec: Manifest) -> list[Manifest]:
    """The PVCs that a VM from a snapshot needs, each owned by `vm`, which is the VM as the cluster returned it.

    `spec` is the expanded spec that `begin` was given. A disk that CDI restores is not among them: see `_is_restored_as_asked`.
    """
    if not isinstance(start, FromSnapshot):
        return []
    metadata = vm["metadata"]
    owner = {"apiVersion": VMS.api_version, "kind": VMS.name, "name": metadata["name"], "uid": metadata["uid"]}
    ours = {key: value for key, value in (metadata.get("labels") or {}).items() if labels.is_ours(key)}
    content = {"apiGroup": VOLUME_SNAPSHOTS.group, "kind": VOLUME_SNAPSHOTS.name}
    templates = _templates_by_volume(spec)
    places = _places(spec, start)
    claims = []
    for disk in start.disks:
        template = templates.get(places.get(disk.volume, ""))
        if template is not None and not _is_restored_as_asked(template, disk):
            continue
        given = (template or {}).get("metadata") or {}
        claim: Manifest = {
            "name": data_volume_name(metadata["name"], disk.volume),
            "namespace": metadata["namespace"],
            "labels": {**(given.get("labels") or {}), **ours},
            "ownerReferences": [owner],
        }
        if given.get("annotations"):
            claim["annotations"] = dict(given["annotations"])
        claims.append(
            PVCS.manifest(claim, {**_request(disk, template), "dataSource": {**content, "name": disk.volume_snapshot}})
        )
    return claims


def _from_snapshot(spec: Manifest, start: FromSnapshot, vm: str, namespace: str) -> Manifest:
    vmi = spec["template"]["spec"]
    volumes = {volume["name"]: volume for volume in vmi.get("volumes") or []}
    templates, places = _templates_by_volume(spec), _places(spec, start)
    added = []
    for disk in start.disks:
        source = {"persistentVolumeClaim": {"claimName": data_volume_name(vm, disk.volume)}}
        if (place := places.get(disk.volume)) is None:
            added.append({"name": disk.volume, **source})
            continue
        template = templates.get(place)
        if template is not None and not _is_restored_as_asked(template, disk):
            template["spec"].pop("sourceRef", None)
            template["spec"]["source"] = {"snapshot": {"name": disk.volume_snapshot, "namespace": namespace}}
            _make_room(template["spec"], disk.size)
            continue
        volume = volumes[place]
        _drop_template(spec, (volume.get("dataVolume") or {}).get("name"))
        volume.clear()
        volume.update({"name": place, **source})
    if places:
        _add_last(vmi, added)
    else:
        _add_first(vmi, added)
    return spec


def _places(spec: Manifest, start: FromSnapshot) -> dict[str, str]:
    """The template's volume of which each disk of the snapshot takes the place, by the name of the disk's volume.

    That is the volume of the same name. A disk without one takes the place of an image that no other disk takes, the first the
    first's: VMs of one shape may name their volumes differently, and nothing is to boot from another image than the snapshot's.
    A CD-ROM is no such image. A disk that is not in the result is added to the VM.
    """
    vmi = spec["template"]["spec"]
    devices = (vmi.get("domain") or {}).get("devices") or {}
    cdroms = {disk["name"] for disk in devices.get("disks") or [] if "cdrom" in disk}
    templates = _templates_by_volume(spec)
    names = [volume["name"] for volume in vmi.get("volumes") or []]
    held = {disk.volume for disk in start.disks}
    images = [
        volume["name"]
        for volume in vmi.get("volumes") or []
        if volume["name"] not in held | cdroms and _holds_image(volume, templates.get(volume["name"]))
    ]
    places = {disk.volume: disk.volume for disk in start.disks if disk.volume in names}
    others = [disk.volume for disk in start.disks if disk.volume not in places]
    return {**places, **dict(zip(others, images, strict=False))}


def _holds_image(volume: Manifest, template: Manifest | None) -> bool:
    return "containerDisk" in volume or (template is not None and "blank" not in (template["spec"].get("source") or {}))


def _templates_by_volume(spec: Manifest) -> dict[str, Manifest]:
    """The DataVolume template of each volume that has one, by the volume's name."""
    templates = {each["metadata"]["name"]: each for each in spec.get("dataVolumeTemplates") or []}
    volumes = spec["template"]["spec"].get("volumes") or []
    return {volume["name"]: templates[name] for volume in volumes if (name := disk_source(volume)) in templates}


def _is_restored_as_asked(template: Manifest, disk: SnapshotDisk) -> bool:
    """Whether the storage can restore the disk by itself, into what the DataVolume template asks for.

    It takes no other driver, nor another volume mode (Kubernetes with external-snapshotter v8). CDI takes both: it copies the
    content where it must (CDI v1.66.0).
    """
    asked = _asked(template)
    same_class = asked.get("storageClassName") in {None, disk.storage_class}
    same_mode = asked.get("volumeMode") in {None, disk.volume_mode or "Filesystem"}
    return same_class and same_mode and asked.keys() <= _REQUEST


def _request(disk: SnapshotDisk, template: Manifest | None) -> Manifest:
    """A PVC's spec: what the DataVolume template asks for, else what the disk had. It is never smaller than the disk."""
    request = storage_request(disk)
    if template is None:
        return request
    asked = copy.deepcopy({key: value for key, value in _asked(template).items() if value})
    request = {**request, **asked}
    _make_room({"storage": request}, disk.size)
    return request


def _asked(template: Manifest) -> Manifest:
    spec = template["spec"]
    asked: Manifest = spec.get("storage") or spec.get("pvc") or {}
    return {key: value for key, value in asked.items() if value is not None}


def _from_volume(spec: Manifest, start: FromVolume, namespace: str) -> Manifest:
    held = "snapshot" if start.is_snapshot else "pvc"
    source = {held: {"name": start.claim, "namespace": namespace}}
    for template in spec.get("dataVolumeTemplates") or []:
        image = image_of_source(template["spec"].get("source") or {})
        if image is not None and image.within(namespace) == start.image:
            template["spec"].pop("sourceRef", None)
            template["spec"]["source"] = source
            _make_room(template["spec"], start.size)
    if not has_own_disk(spec):
        template = {"metadata": {"name": BOOT}, "spec": {"source": source, "storage": storage_request(start)}}
        spec["dataVolumeTemplates"] = [*(spec.get("dataVolumeTemplates") or []), template]
        _add_first(spec["template"]["spec"], [{"name": BOOT, "dataVolume": {"name": BOOT}}])
    return spec


def _from_image(spec: Manifest, start: FromImage) -> Manifest:
    if not has_own_disk(spec):
        _add_first(spec["template"]["spec"], [{"name": BOOT, "containerDisk": {"image": start.image}}])
    return spec


def _drop_template(spec: Manifest, name: str | None) -> None:
    kept = [each for each in spec.get("dataVolumeTemplates") or [] if each["metadata"]["name"] != name]
    if kept:
        spec["dataVolumeTemplates"] = kept
    else:
        spec.pop("dataVolumeTemplates", None)


def _make_room(volume: Manifest, size: str) -> None:
    """A clone must be at least as large as its source (CDI v1.66)."""
    target = volume.get("storage") or volume.get("pvc") or {}
    requests = target.setdefault("resources", {}).setdefault("requests", {})
    asked = requests.get("storage")
    if asked is None or parse_quantity(asked) < parse_quantity(size):
        requests["storage"] = size


def _add_first(vmi: Manifest, volumes: list[Manifest]) -> None:
    """Puts the volumes before the others: if no order is given, the VM boots from the first disk."""
    if not volumes:
        return
    disks = [added_disk(vmi, volume["name"]) for volume in volumes]
    vmi["volumes"] = [*volumes, *(vmi.get("volumes") or [])]
    devices = vmi["domain"].setdefault("devices", {})
    devices["disks"] = [*disks, *(devices.get("disks") or [])]


def _add_last(vmi: Manifest, volumes: list[Manifest]) -> None:
    """Puts the volumes after the others. KubeVirt attaches those without a disk itself, after the disks that are given."""
    if not volumes:
        return
    devices = vmi["domain"].setdefault("devices", {})
    disks = [added_disk(vmi, volume["name"]) for volume in volumes]
    vmi["volumes"] = [*(vmi.get("volumes") or []), *volumes]
    if devices.get("disks"):
        devices["disks"] = [*devices["disks"], *disks]
