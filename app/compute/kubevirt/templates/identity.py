"""The identity disk of a VM whose guest has a channel to the service: a volume made from a Secret that only this VM has. Pure.

KubeVirt makes a volume of type `secret` into an ISO 9660 disk with a file for each key, attached before the guest boots (v1.9.0). The
expanded spec names no VM yet: `manifests.vm_manifest` puts the VM's own Secret in, as DataVolumes get names of their own.

The guest program has to be started once. Where the template has no cloud-init, one is added that does it; a template's own
cloud-init stays as it is, and needs the line that docs/guests.md gives.
"""

from collections.abc import Callable
from typing import Final

from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.templates.manifests import IDENTITY, added_disk
from app.compute.kubevirt.templates.problems import Problems

LABEL: Final = "EMBERPOOL"
_CLOUD_INIT: Final = "emberpool-cloud-init"
_CONFIGURED_BY: Final = ("cloudInitNoCloud", "cloudInitConfigDrive", "sysprep")
_LABELLED: Final = ("secret", "configMap", "downwardAPI")
_VMI: Final = "spec.template.spec"
_INSTALL: Final = "d=/run/emberpool/disk; mkdir -p $d; mount -o ro LABEL=EMBERPOOL $d; exec sh $d/install.sh $d"
_USER_DATA: Final = f"#cloud-config\nruncmd:\n  - [sh, -c, '{_INSTALL}']\n"


def carry_identity(spec: Manifest, at: Callable[[str], str], problems: Problems) -> None:
    """Gives an expanded spec the identity disk. Changes `spec`; a template that cannot carry it is a problem. `at` turns a field of
    the VirtualMachine into the one that the template's author wrote.
    """
    vmi = spec["template"]["spec"]
    volumes: list[Manifest] = vmi.get("volumes") or []
    for index, volume in enumerate(volumes):
        _refuse_look_alike(volume, at(f"{_VMI}.volumes[{index}]"), problems)
    _add(vmi, {"name": IDENTITY, "secret": {"secretName": IDENTITY, "volumeLabel": LABEL}})
    if not any(volume.keys() & set(_CONFIGURED_BY) for volume in volumes):
        _add(vmi, {"name": _CLOUD_INIT, "cloudInitNoCloud": {"userData": _USER_DATA}})


def carries_identity(spec: Manifest) -> bool:
    return any(volume["name"] == IDENTITY for volume in spec["template"]["spec"].get("volumes") or [])


def _refuse_look_alike(volume: Manifest, field: str, problems: Problems) -> None:
    if volume.get("name") in {IDENTITY, _CLOUD_INIT}:
        problems.add(
            f"{field}.name",
            f"{volume['name']} is the name of a disk that the service adds for the guest's channel: give this volume another name, "
            "or turn guest.channel off",
        )
    for kind in _LABELLED:
        if (volume.get(kind) or {}).get("volumeLabel") == LABEL:
            problems.add(
                f"{field}.{kind}.volumeLabel",
                f"the guest finds its identity disk by the label {LABEL}: give this volume another label, or turn guest.channel off",
            )


def _add(vmi: Manifest, volume: Manifest) -> None:
    """After the others, so that the VM boots from the same disk. KubeVirt attaches a volume without a disk itself."""
    disk = added_disk(vmi, volume["name"])
    vmi["volumes"] = [*(vmi.get("volumes") or []), volume]
    devices = vmi["domain"].setdefault("devices", {})
    if devices.get("disks"):
        devices["disks"] = [*devices["disks"], disk]
