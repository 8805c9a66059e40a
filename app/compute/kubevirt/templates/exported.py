"""Templates that were read from a VM of the cluster: what identifies that VM is taken out of them. Pure.

KubeVirt v1.9.0 writes the UUID of a VM's firmware and the layout of its PCI bus into the VM's own template, and kubemacpool the MAC
addresses. Two VMs with the same are one machine twice, and with them a VM has a shape that no other VM has.
"""

import copy
from typing import Any, Final

from app.compute.kubevirt.kinds import Manifest

_LAYOUT: Final = ("kubevirt.io/pci-topology-version", "kubevirt.io/pci-interface-slot-count")
_FIRMWARE: Final = ("uuid", "serial")


def without_identity(template: Manifest) -> tuple[Manifest, tuple[str, ...]]:
    """A copy of a VirtualMachine's `spec` as it was written or read, without what identifies one machine; and the fields that were
    taken out, as they are below `spec`.
    """
    found = copy.deepcopy(template)
    vmi, metadata = _part(found, "template.spec"), _part(found, "template.metadata")
    domain, taken = _part(vmi, "domain"), []
    firmware, annotations = _part(domain, "firmware"), _part(metadata, "annotations")
    taken += [f"template.spec.domain.firmware.{key}" for key in _FIRMWARE if firmware.pop(key, None) is not None]
    if "firmware" in domain and not firmware:
        del domain["firmware"]
    interfaces = _part(domain, "devices").get("interfaces")
    for index, each in enumerate(interfaces if isinstance(interfaces, list) else []):
        if isinstance(each, dict) and each.pop("macAddress", None) is not None:
            taken.append(f"template.spec.domain.devices.interfaces[{index}].macAddress")
    taken += [f"template.metadata.annotations.{key}" for key in _LAYOUT if annotations.pop(key, None) is not None]
    return found, tuple(taken)


def _part(value: Any, path: str) -> Manifest:
    """The mapping at a dotted path; an empty one that belongs to nothing if there is none."""
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}
