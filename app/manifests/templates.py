"""The parts of a VM template that this service adds to KubeVirt's: what the VM starts from."""

import copy
from typing import Final

from app.manifests.fields import Part
from app.manifests.requests import Json, Reference, Resource

START_SETTINGS: Final = ("start-from-snapshot", "start-from-preload")
_NO_MEMORY: Final = (
    "the disks start with the snapshot's content and the guest boots, unless the snapshot was taken with memory"
)
_NO_DISKS: Final = frozenset(
    {"cloudInitNoCloud", "cloudInitConfigDrive", "configMap", "secret", "sysprep", "serviceAccount", "downwardAPI"}
)


def read_start(vmi: Part, settings: Json, places: dict[str, str]) -> tuple[Json | None, dict[Reference, str]]:
    """What the VM starts from, and the reference to it; None if it starts from its own template only.

    It is written as `snapshot.name` in `vmi`, a VMI's spec, or as an annotation in `settings`. Either is removed there.
    """
    found: list[tuple[Resource, str, str]] = []
    for setting, resource in zip(START_SETTINGS, (Resource.SNAPSHOT, Resource.PRELOAD), strict=True):
        if setting in settings:
            found.append((resource, str(settings.pop(setting)), places.pop(setting)))
    if "snapshot" in vmi:
        snapshot = vmi.part("snapshot")
        snapshot.allow(("name",))
        name = snapshot.text("name", required=True)
        vmi.value.pop("snapshot")
        if name is not None:
            found.append((Resource.SNAPSHOT, name, snapshot.at("name")))
            vmi.note(f"{snapshot.relative}.name became start_from: {{snapshot: {name}}}; {_NO_MEMORY}")
    if not found:
        return None, {}
    if len(found) > 1:
        vmi.findings.refuse(found[1][2], f"is a second source: {vmi.findings.relative(found[0][2])} names one already")
    resource, name, place = found[0]
    places["start_from"] = places[f"start_from.{resource.noun}"] = place
    return {resource.noun: name}, {(resource, name): place}


def has_disk(vmi: Part) -> bool:
    """Whether the template has a disk that a guest can boot from; volumes for cloud-init and the like do not count."""
    volumes = vmi.get("volumes")
    if not isinstance(volumes, list):
        return False
    return any(isinstance(volume, dict) and not volume.keys() & _NO_DISKS for volume in volumes)


def copy_part(part: Part) -> Part:
    """A copy that may be changed, so that the document stays as it was written."""
    return Part(copy.deepcopy(part.value), part.path, part.findings)
