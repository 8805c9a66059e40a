"""What a VM template says that is not the cluster's: the snapshot that it starts from."""

import copy
from typing import Final

from app.manifests.fields import Part
from app.manifests.requests import Json, Reference, Resource

START_SETTINGS: Final = ("start-from-snapshot", "start-from-preload")
_NO_MEMORY: Final = (
    "its disks begin with the snapshot's content, and its guest boots: KubeVirt keeps no memory of a guest"
)
_NO_DISKS: Final = frozenset(
    {"cloudInitNoCloud", "cloudInitConfigDrive", "configMap", "secret", "sysprep", "serviceAccount", "downwardAPI"}
)


def take_start(vmi: Part, settings: Json, places: dict[str, str]) -> tuple[Json | None, dict[Reference, str]]:
    """Where the VM starts from, and what that refers to; None: from its own template alone.

    Said in `vmi`, a VMI's spec, by `snapshot.name`, which is taken out of it, or by an annotation, which `settings` loses.
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
        vmi.findings.refuse(
            found[1][2], f"a VM starts from one thing, and {vmi.findings.relative(found[0][2])} names one already"
        )
    resource, name, place = found[0]
    word = "snapshot" if resource is Resource.SNAPSHOT else "preload"
    places["start_from"] = place
    places[f"start_from.{word}"] = place
    return {word: name}, {(resource, name): place}


def has_disk(vmi: Part) -> bool:
    """Whether the template brings a disk that a guest can boot from, beside what cloud-init and the like are told by."""
    volumes = vmi.get("volumes")
    if not isinstance(volumes, list):
        return False
    return any(isinstance(volume, dict) and not volume.keys() & _NO_DISKS for volume in volumes)


def own_copy(part: Part) -> Part:
    """To be changed: the document stays as it was written."""
    return Part(copy.deepcopy(part.value), part.path, part.findings)
