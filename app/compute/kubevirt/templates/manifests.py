"""Turns an expanded template into the VirtualMachine that is sent to the cluster. Pure."""

import copy
import hashlib
import re

from app.compute.kubevirt import labels
from app.compute.kubevirt.kinds import VMS, Manifest

_NAME_LIMIT = 63  # a PVC's name becomes a label value of the pods that CDI starts for it
_DIGEST_CHARS = 16
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
"""What Kubernetes accepts as the value of a label."""


def vm_manifest(*, name: str, namespace: str, instance: str, pool: str, vm_id: str, spec: Manifest) -> Manifest:
    """The VirtualMachine `name`, made from an expanded `spec`.

    The VM and its VMI get the template's labels and annotations and our own labels; a VMI inherits those of
    `spec.template.metadata`. DataVolume templates, and the volumes that refer to them, get names that only this VM has.
    """
    spec = copy.deepcopy(spec)
    rename_data_volumes(spec, name)
    metadata: Manifest = spec["template"].setdefault("metadata", {})
    ours = {**labels.ours(instance), labels.POOL: pool, labels.VM_ID: vm_id}
    metadata["labels"] = {**(metadata.get("labels") or {}), **ours}
    own: Manifest = {"name": name, "namespace": namespace, "labels": dict(metadata["labels"])}
    if metadata.get("annotations"):
        own["annotations"] = dict(metadata["annotations"])
    return VMS.manifest(own, spec)


def claim_marks(claim_id: str, called: str | None) -> Manifest:
    """The metadata that marks a claimed VM. `called` becomes a label if it can be one, otherwise an annotation."""
    marks: Manifest = {"labels": {labels.CLAIM: claim_id}}
    if called is not None and _LABEL_VALUE.fullmatch(called):
        marks["labels"][labels.NAME] = called
    elif called is not None:
        marks["annotations"] = {labels.NAME: called}
    return marks


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
        for source, key in _disk_references(volume):
            if source.get(key) in renamed:
                source[key] = renamed[source[key]]


def data_volume_specs(spec: Manifest) -> dict[str, Manifest]:
    """The specs of the DataVolume templates of a VM's spec, by name."""
    return {each["metadata"]["name"]: each.get("spec") or {} for each in spec.get("dataVolumeTemplates") or []}


def disk_source(volume: Manifest) -> str | None:
    """The DataVolume or PVC that a volume of a VM names; None if it names none."""
    name: str | None = (volume.get("dataVolume") or {}).get("name")
    return name or (volume.get("persistentVolumeClaim") or {}).get("claimName")


def _disk_references(volume: Manifest) -> list[tuple[Manifest, str]]:
    """The places where a volume names a DataVolume, or the PVC of the same name that CDI creates for it."""
    claims = [holder.get("persistentVolumeClaim") for holder in (volume, volume.get("ephemeral") or {})]
    found = [(volume.get("dataVolume"), "name"), *((claim, "claimName") for claim in claims)]
    return [(source, key) for source, key in found if isinstance(source, dict)]
