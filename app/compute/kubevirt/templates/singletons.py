"""What exists once and what identifies one machine: neither can be in the template of VMs that are interchangeable. Pure.

Facts of KubeVirt v1.9.0: a volume that names a PersistentVolumeClaim (PVC) or a DataVolume gives the VM that very disk; an
`ephemeral` volume writes to a layer of its own above it; a CD-ROM is read-only unless it says otherwise; `shareable` lets several
VMs write to a disk; a file system (virtiofs) is a folder that may be mounted many times.
"""

import base64
import binascii
import ipaddress
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import yaml

from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.templates.manifests import data_volume_specs
from app.domain.templates import Exclusive
from app.errors import FieldProblem

Locate = Callable[[str], str]
"""Turns a field of a VirtualMachine into the place where its author wrote it."""

_VMI: Final = "spec.template.spec"
_DISK_ADVICE: Final = (
    "each VM needs a disk of its own: use dataVolumeTemplates, whose source may be a PVC to copy, or a preload "
    "(a disk that is meant for several VMs says shareable: true)"
)
_BY_NAME: Final = {
    "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
    "memoryDump": ("PersistentVolumeClaim", "claimName"),
    "dataVolume": ("PersistentVolumeClaim", "name"),  # CDI's PVC has the name of its DataVolume
    "hostDisk": ("host disk", "path"),
}
"""By the kind of a volume: what exists once, and the field that names it."""
_READ_ONLY_BY_NATURE: Final = frozenset({"cdrom"})
_SHARED_CONTENT: Final = frozenset(
    {
        "cloudInitConfigDrive",
        "cloudInitNoCloud",
        "configMap",
        "downwardAPI",
        "downwardMetrics",
        "secret",
        "serviceAccount",
        "sysprep",
    }
)
"""Volumes whose content is the same for every VM: a serial number on their disk is how the guest finds it, no identity."""
_IDENTITY: Final = (
    (f"{_VMI}.hostname", "is the name of one machine"),
    (f"{_VMI}.domain.firmware.uuid", "identifies one machine"),
    (f"{_VMI}.domain.firmware.serial", "identifies one machine"),
    (f"{_VMI}.domain.chassis.serial", "identifies one machine"),
    (f"{_VMI}.domain.chassis.asset", "identifies one machine"),
)
_ADDRESS_KEYS: Final = frozenset(
    {
        "cni.cilium.io/mac-address",
        "cni.projectcalico.org/floatingIPs",
        "cni.projectcalico.org/hwAddr",
        "cni.projectcalico.org/ipAddrs",
        "cni.projectcalico.org/ipAddrsNoIpam",
        "ipam.antrea.io/pod-ips",
        "k8s.ovn.org/primary-udn-ipamclaim",
        "network.kubevirt.io/addresses",
    }
)
"""Annotations that give one pod a fixed address, as each network plugin documents them. The last two are those of OVN-Kubernetes,
the first of them for an IPAMClaim, which holds the addresses of one VM.
"""
_OVN_PREFIX: Final = "ovn.kubernetes.io"
_OVN_ADDRESSES: Final = frozenset({"ip_address", "mac_address"})
"""Kube-OVN: `ovn.kubernetes.io/ip_address`, and `NETWORK.NAMESPACE.ovn.kubernetes.io/ip_address` for further networks."""
_MULTUS_KEYS: Final = frozenset({"k8s.v1.cni.cncf.io/networks", "v1.multus-cni.io/default-network"})
_MULTUS_ADDRESSES: Final = frozenset({"ips", "mac", "infiniband-guid", "ipam-claim-reference"})
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_MASQUERADED: Final = (ipaddress.ip_network("10.0.2.0/24"), ipaddress.ip_network("fd10:0:2::/120"))
"""What KubeVirt v1.9.0 uses inside each VM's own pod unless its network says otherwise: all VMs may have the same address there."""
_STATIC: Final = frozenset({"static", "static6"})


def exclusives_of(spec: Manifest, locate: Locate) -> tuple[Exclusive, ...]:
    """What an expanded spec names that exists once and that its VM writes to."""
    return tuple(
        Exclusive(f"{what} {name}", locate(field), f"{what} {name} exists once, and {advice}", volume)
        for what, name, field, advice, volume in _find_exclusives(spec)
    )


def identity_of(spec: Manifest, locate: Locate) -> tuple[FieldProblem, ...]:
    """The fields of an expanded spec that identify one machine, and why."""
    return tuple(FieldProblem(locate(field), why) for field, why in _find_identity(spec))


def _find_exclusives(spec: Manifest) -> Iterator[tuple[str, str, str, str, str | None]]:
    """Of each: what it is, its name, the field that names it, what to do instead, and the volume that it is."""
    yield from _find_volumes(spec)
    vmi = spec["template"]["spec"]
    for index, volume in enumerate(vmi.get("utilityVolumes") or []):
        if volume.get("claimName") and not volume.get("readOnly"):
            yield "PersistentVolumeClaim", volume["claimName"], f"{_VMI}.utilityVolumes[{index}]", _DISK_ADVICE, None
    for index, each in enumerate(vmi.get("resourceClaims") or []):
        if each.get("resourceClaimName"):
            advice = "each VM needs one of its own: write resourceClaimTemplateName"
            yield "ResourceClaim", each["resourceClaimName"], f"{_VMI}.resourceClaims[{index}]", advice, None
    for index, template in enumerate(spec.get("dataVolumeTemplates") or []):
        for kind in ("pvc", "storage"):
            bound = ((template.get("spec") or {}).get(kind) or {}).get("volumeName")
            if bound:
                field = f"spec.dataVolumeTemplates[{index}].spec.{kind}.volumeName"
                yield "PersistentVolume", bound, field, "only one disk can be on it: leave it out", None


def _find_volumes(spec: Manifest) -> Iterator[tuple[str, str, str, str, str | None]]:
    vmi, own = spec["template"]["spec"], data_volume_specs(spec)
    devices = (vmi.get("domain") or {}).get("devices") or {}
    disks = {disk.get("name"): disk for disk in devices.get("disks") or []}
    folders = {each.get("name") for each in devices.get("filesystems") or []}
    for index, volume in enumerate(vmi.get("volumes") or []):
        name = volume.get("name")
        if name in folders or _is_shared(disks.get(name) or {}):
            continue
        for key, (what, field) in _BY_NAME.items():
            source = volume.get(key) or {}
            named = source.get(field)
            if named and named not in own and not source.get("readOnly") and not source.get("shared"):
                yield what, named, f"{_VMI}.volumes[{index}].{key}.{field}", _DISK_ADVICE, name


def _is_shared(disk: Manifest) -> bool:
    """Whether several VMs may have the disk at the same time, because they only read it or because it says so."""
    if disk.get("shareable"):
        return True
    for kind in ("disk", "lun", "cdrom"):
        if isinstance(device := disk.get(kind), dict):
            read_only = device.get("readonly")
            return bool(read_only) if read_only is not None else kind in _READ_ONLY_BY_NATURE
    return False


def _find_identity(spec: Manifest) -> Iterator[tuple[str, str]]:
    vmi = spec["template"]["spec"]
    for field, why in _IDENTITY:
        if _at({"spec": spec}, field):
            yield field, why
    devices = (vmi.get("domain") or {}).get("devices") or {}
    for index, interface in enumerate(devices.get("interfaces") or []):
        if interface.get("macAddress"):
            yield f"{_VMI}.domain.devices.interfaces[{index}].macAddress", "is the address of one machine"
    shared = {each.get("name") for each in vmi.get("volumes") or [] if each.keys() & _SHARED_CONTENT}
    for index, disk in enumerate(devices.get("disks") or []):
        if disk.get("serial") and disk.get("name") not in shared and not _is_shared(disk):
            yield f"{_VMI}.domain.devices.disks[{index}].serial", "identifies the disk of one machine"
    yield from ((field, "gives the address of one machine") for field in _find_addresses(spec))


def _find_addresses(spec: Manifest) -> Iterator[str]:
    for key, value in ((spec["template"].get("metadata") or {}).get("annotations") or {}).items():
        if _fixes_address(key, value):
            yield f"spec.template.metadata.annotations.{key}"
    vmi = spec["template"]["spec"]
    inside = _inside(vmi)
    for index, volume in enumerate(vmi.get("volumes") or []):
        for kind in ("cloudInitNoCloud", "cloudInitConfigDrive"):
            if (field := _static_network(volume.get(kind) or {}, inside)) is not None:
                yield f"{_VMI}.volumes[{index}].{kind}.{field}"


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _fixes_address(key: str, value: str) -> bool:
    if key in _ADDRESS_KEYS:
        return bool(value)
    prefix, _, name = key.rpartition("/")
    if prefix == _OVN_PREFIX or prefix.endswith(f".{_OVN_PREFIX}"):
        return name in _OVN_ADDRESSES and bool(value)
    if key not in _MULTUS_KEYS:
        return False
    attachments = _attachments(value)
    passed_on = [args for each in attachments if isinstance(args := each.get("cni-args"), dict)]
    return any(each.get(word) for each in (*attachments, *passed_on) for word in _MULTUS_ADDRESSES)


def _attachments(value: str) -> list[Manifest]:
    """The networks of a Multus annotation in its JSON form; its other form names networks only."""
    try:
        found = json.loads(value)
    except ValueError:
        return []
    return [each for each in (found if isinstance(found, list) else [found]) if isinstance(each, dict)]


def _static_network(source: Manifest, inside: list[_Network]) -> str | None:
    """The field with cloud-init's network configuration, version 1 or 2, if that sets a fixed address, except one that is `inside`
    the VM's own pod.
    """
    texts = {"networkData": source.get("networkData"), "networkDataBase64": _decode(source)}
    for field, text in texts.items():
        try:
            config = yaml.safe_load(text) if isinstance(text, str) else None
        except (yaml.YAMLError, RecursionError, ValueError):  # a date that is none is a ValueError
            continue
        config = config.get("network", config) if isinstance(config, dict) else {}
        if isinstance(config, dict) and any(_is_static(each, inside) for each in _links(config)):
            return field
    return None


def _inside(vmi: Manifest) -> list[_Network]:
    """The networks that every VM has behind the address of its pod (masquerade)."""
    pods = [network.get("pod") for network in vmi.get("networks") or []]
    written = [
        _read_network(pod.get(key))
        for pod in pods
        if isinstance(pod, dict)
        for key in ("vmNetworkCIDR", "vmIPv6NetworkCIDR")
    ]
    return [*_MASQUERADED, *(each for each in written if each is not None)]


def _read_network(text: object) -> _Network | None:
    try:
        return ipaddress.ip_network(str(text), strict=False)
    except ValueError:
        return None


def _decode(source: Manifest) -> str | None:
    try:
        return base64.b64decode(source.get("networkDataBase64") or "").decode() or None
    except (binascii.Error, TypeError, ValueError):
        return None


def _links(config: Manifest) -> Iterator[Manifest]:
    """The network devices of a configuration: a list below `config` in version 1, mappings by kind in version 2."""
    for group in config.values():
        found = group if isinstance(group, list) else list(group.values()) if isinstance(group, dict) else []
        yield from (each for each in found if isinstance(each, dict))


def _is_static(link: Manifest, inside: list[_Network]) -> bool:
    if link.get("macaddress") or link.get("mac_address"):
        return True
    subnets = [each for each in _listed(link.get("subnets")) if isinstance(each, dict) and each.get("type") in _STATIC]
    addresses = [*_listed(link.get("addresses")), *(each.get("address") for each in subnets)]
    return any(_is_fixed(next(iter(each), None) if isinstance(each, dict) else each, inside) for each in addresses)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_fixed(text: object, inside: list[_Network]) -> bool:
    """Whether it is an address that only one machine of a network can have."""
    try:
        address = ipaddress.ip_interface(str(text)).ip
    except ValueError:
        return False
    shared = address.is_loopback or address.is_link_local
    return not shared and not any(address in network for network in inside)
