"""Turns an expanded template into the VirtualMachine that is sent to the cluster. Pure."""

import copy
import hashlib
import json
from collections.abc import Mapping

from app.compute.kubevirt import labels
from app.compute.kubevirt.kinds import VMS, Manifest
from app.compute.kubevirt.templates.marks import SET_ON_PODS, claim_labels, marks_of
from app.domain.ownership import ClaimRecord
from app.domain.templates import Marks

VIRTIO = "virtio"
IDENTITY = "emberpool-identity"
"""The name of the volume that is a VM's identity disk (see `identity`), and the placeholder for that of its Secret."""
_NAME_LIMIT = 63  # a PVC's name becomes a label value of the pods that CDI starts for it
_DIGEST_CHARS = 16


def vm_manifest(*, name: str, namespace: str, instance: str, pool: str, vm_id: str, spec: Manifest) -> Manifest:
    """The VirtualMachine `name`, made from an expanded `spec`. Its identity disk, if it has one, is made from a Secret of its name.

    The VM and its VMI get the template's labels and annotations and our own labels; a VMI inherits those of
    `spec.template.metadata`. DataVolume templates, and the volumes that refer to them, get names that only this VM has.
    """
    spec = copy.deepcopy(spec)
    rename_data_volumes(spec, name)
    _name_identity(spec, name)
    metadata: Manifest = spec["template"].setdefault("metadata", {})
    ours = {**labels.ours(instance), labels.POOL: pool, labels.VM_ID: vm_id}
    metadata["labels"] = {**(metadata.get("labels") or {}), **ours}
    own: Manifest = {"name": name, "namespace": namespace, "labels": dict(metadata["labels"])}
    if metadata.get("annotations"):
        own["annotations"] = dict(metadata["annotations"])
    return VMS.manifest(own, spec)


def claim_patch(claim_id: str, given: Mapping[str, str], marks: Marks | None, before: Manifest | None) -> Manifest:
    """The metadata that a claimed VM gets: the claim's id, those of its labels that Kubernetes accepts, and the template's marks.

    `given` are the claim's labels. `before` is the spec of the VM as it is: marks that are not in `marks` are removed. A name that
    cannot be a label becomes an annotation.
    """
    found: Manifest = {"labels": {}, "annotations": {}}
    if marks is not None and before is not None:
        found = mark_changes(marks, before)
    found["labels"] |= {**claim_labels(given), labels.CLAIM: claim_id}
    if labels.NAME not in found["labels"] and "name" in given:
        found["annotations"][labels.NAME] = given["name"]
    return {kind: values for kind, values in found.items() if values}


def with_record(patch: Manifest, record: ClaimRecord) -> Manifest:
    """The patch, with what the claim can be rebuilt from."""
    written = json.dumps(record.as_json(), sort_keys=True, ensure_ascii=False)
    return {**patch, "annotations": {**(patch.get("annotations") or {}), labels.RECORD: written}}


def mark_changes(marks: Marks, before: Manifest) -> Manifest:
    """What to change in the metadata of a VM with the spec `before`, so that it has these marks and no others."""
    have, wanted = marks_of(before).as_json(), marks.as_json()
    return {
        kind: {
            **{key: None for key in have[kind] if key not in wanted[kind]},
            **{key: value for key, value in wanted[kind].items() if have[kind].get(key) != value},
        }
        for kind in wanted
    }


def pod_patch(patch: Manifest) -> Manifest:
    """The same for the VM's pod, on which KubeVirt sets one of the labels itself."""
    kept = {key: value for key, value in (patch.get("labels") or {}).items() if key != SET_ON_PODS}
    return {**patch, "labels": kept}


def _name_identity(spec: Manifest, secret: str) -> None:
    for volume in spec["template"]["spec"].get("volumes") or []:
        if volume["name"] == IDENTITY:
            volume["secret"]["secretName"] = secret


def data_volume_name(vm: str, template: str, *, limit: int = _NAME_LIMIT) -> str:
    """The name of one VM's copy of a DataVolume template, at most `limit` characters long.

    Two VMs must never share it: KubeVirt v1.9.0 looks up a DataVolume by its name alone, so a VM would boot another VM's disk. A
    name that is cut ends in a hash of the whole name.
    """
    whole = f"{vm}-{template}"
    if len(whole) <= limit:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{whole[: limit - _DIGEST_CHARS - 1].rstrip('-.')}-{digest}"


def rename_data_volumes(spec: Manifest, owner: str, *, limit: int = _NAME_LIMIT) -> None:
    """Gives the DataVolume templates of a spec, and all references to them, names that only `owner` has. Changes `spec`."""
    renamed: dict[str, str] = {}
    for template in spec.get("dataVolumeTemplates") or []:
        old = template["metadata"]["name"]
        renamed[old] = template["metadata"]["name"] = data_volume_name(owner, old, limit=limit)
    for volume in spec["template"]["spec"].get("volumes") or []:
        for source, key in disk_references(volume):
            if source.get(key) in renamed:
                source[key] = renamed[source[key]]


def added_disk(vmi: Manifest, name: str) -> Manifest:
    """The disk for a volume that is added to the spec of an expanded template's VMI: of virtio if all its disks are, as in the
    short form, which may have none yet. Otherwise the cluster chooses the bus.
    """
    disks = ((vmi.get("domain") or {}).get("devices") or {}).get("disks")
    if disks is not None and all((disk.get("disk") or {}).get("bus") == VIRTIO for disk in disks):
        return {"name": name, "disk": {"bus": VIRTIO}}
    return {"name": name}


def data_volume_specs(spec: Manifest) -> dict[str, Manifest]:
    """The specs of the DataVolume templates of a VM's spec, by name."""
    return {each["metadata"]["name"]: each.get("spec") or {} for each in spec.get("dataVolumeTemplates") or []}


def disk_source(volume: Manifest) -> str | None:
    """The DataVolume or PVC that a volume of a VM names; None if it names none."""
    name: str | None = (volume.get("dataVolume") or {}).get("name")
    return name or (volume.get("persistentVolumeClaim") or {}).get("claimName")


def disk_references(volume: Manifest) -> list[tuple[Manifest, str]]:
    """The places where a volume names a DataVolume, or the PVC of the same name that CDI creates for it."""
    claims = [holder.get("persistentVolumeClaim") for holder in (volume, volume.get("ephemeral") or {})]
    found = [(volume.get("dataVolume"), "name"), *((claim, "claimName") for claim in claims)]
    return [(source, key) for source, key in found if isinstance(source, dict)]
