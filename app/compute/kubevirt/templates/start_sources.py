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
from app.domain.paths import FromImage, FromSnapshot, FromVolume, Start
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


def begin(spec: Manifest, start: Start, *, vm: str, namespace: str) -> Manifest:
    """The expanded `spec` for the VM named `vm`, with disks that begin with the content of `start`. `spec` is not changed."""
    match start:
        case None:
            return spec
        case FromSnapshot():
            return _from_snapshot(copy.deepcopy(spec), start, vm)
        case FromVolume():
            return _from_volume(copy.deepcopy(spec), start, namespace)
        case FromImage():
            return _from_image(copy.deepcopy(spec), start)


def has_own_disk(spec: Manifest) -> bool:
    """Whether an expanded spec has a disk with content, not counting the volumes that carry configuration."""
    blank = {name for name, each in data_volume_specs(spec).items() if "blank" in (each.get("source") or {})}
    volumes = spec["template"]["spec"].get("volumes") or []
    return any(not (volume.keys() & _NO_DISKS or disk_source(volume) in blank) for volume in volumes)


def pvcs_of(vm: Manifest, start: Start) -> list[Manifest]:
    """The PVCs that a VM from a snapshot needs, each owned by `vm`, which is the VM as the cluster returned it."""
    if not isinstance(start, FromSnapshot):
        return []
    metadata = vm["metadata"]
    owner = {"apiVersion": VMS.api_version, "kind": VMS.name, "name": metadata["name"], "uid": metadata["uid"]}
    ours = {key: value for key, value in (metadata.get("labels") or {}).items() if labels.is_ours(key)}
    content = {"apiGroup": VOLUME_SNAPSHOTS.group, "kind": VOLUME_SNAPSHOTS.name}
    return [
        PVCS.manifest(
            {
                "name": data_volume_name(metadata["name"], disk.volume),
                "namespace": metadata["namespace"],
                "labels": ours,
                "ownerReferences": [owner],
            },
            {**storage_request(disk), "dataSource": {**content, "name": disk.volume_snapshot}},
        )
        for disk in start.disks
    ]


def _from_snapshot(spec: Manifest, start: FromSnapshot, vm: str) -> Manifest:
    vmi = spec["template"]["spec"]
    volumes = {volume["name"]: volume for volume in vmi.get("volumes") or []}
    missing = []
    for disk in start.disks:
        source = {"persistentVolumeClaim": {"claimName": data_volume_name(vm, disk.volume)}}
        if (volume := volumes.get(disk.volume)) is None:
            missing.append({"name": disk.volume, **source})
            continue
        _drop_template(spec, (volume.get("dataVolume") or {}).get("name"))
        volume.clear()
        volume.update({"name": disk.volume, **source})
    _add_first(vmi, missing)
    return spec


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
    vmi["volumes"] = [*volumes, *(vmi.get("volumes") or [])]
    devices = vmi["domain"].setdefault("devices", {})
    disks = [added_disk(vmi, volume["name"]) for volume in volumes]
    devices["disks"] = [*disks, *(devices.get("disks") or [])]
