"""Templates and cluster objects that several tests use."""

import copy
import uuid

from app.compute.kubevirt import labels
from app.compute.kubevirt.kinds import Manifest

VM_ID = "018f3c1e-7a00-7000-8000-000000000001"
CLAIM_ID = "018f3c1e-7a00-7000-8000-0000000000c1"

SHORT: Manifest = {"image": "quay.io/containerdisks/fedora:42", "cpu": 2, "memory": "2Gi"}

VMI_TEMPLATE: Manifest = {
    "spec": {
        "domain": {"resources": {"requests": {"memory": "2Gi", "cpu": "2"}}},
        "volumes": [{"name": "bootdisk", "containerDisk": {"image": "ubuntu:22.04"}}],
    }
}

VM_SPEC: Manifest = {
    "runStrategy": "Always",
    "template": VMI_TEMPLATE,
}

WITH_DATA_VOLUME: Manifest = {
    "dataVolumeTemplates": [
        {
            "metadata": {"name": "root"},
            "spec": {
                "source": {"registry": {"url": "docker://quay.io/containerdisks/fedora:42"}},
                "storage": {"resources": {"requests": {"storage": "10Gi"}}},
            },
        }
    ],
    "template": {
        "spec": {
            "domain": {"cpu": {"cores": 1}, "memory": {"guest": "1Gi"}, "devices": {}},
            "volumes": [{"name": "rootdisk", "dataVolume": {"name": "root"}}],
        }
    },
}


def changed(document: Manifest, path: str, value: object) -> Manifest:
    """A copy with the value at a dotted path replaced, or removed where the value is `...`."""
    document = copy.deepcopy(document)
    *parents, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
    target = document
    for key in parents:
        target = target[key] if isinstance(key, int) else target.setdefault(key, {})
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return document


def vm(name: str = "vm-1", *, uid: str | None = None, status: Manifest | None = None, **metadata: object) -> Manifest:
    """A VirtualMachine as the cluster sends it."""
    own_labels = {
        labels.MANAGED_BY: labels.MANAGER,
        labels.INSTANCE: "emberpool",
        labels.POOL: "pool-a",
        labels.VM_ID: VM_ID,
    }
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid or uid_of(name),
            "creationTimestamp": "2026-11-23T04:06:22Z",
            "labels": own_labels,
            **metadata,
        },
        "spec": {"runStrategy": "Always", "template": VMI_TEMPLATE},
        "status": status or {},
    }


def vmi(
    name: str = "vm-1",
    *,
    of: str | None = None,
    phase: str = "Running",
    true: tuple[str, ...] = ("Ready", "AgentConnected"),
    status: Manifest | None = None,
    **metadata: object,
) -> Manifest:
    """The VM's instance, warm unless told otherwise. `of` is the VM's uid."""
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid_of(f"{name}-vmi"),
            "ownerReferences": [
                {"kind": "VirtualMachine", "name": name, "uid": of or uid_of(name), "controller": True}
            ],
            **metadata,
        },
        "spec": {},
        "status": {
            "phase": phase,
            "conditions": [{"type": kind, "status": "True"} for kind in true],
            "nodeName": "node1",
            "interfaces": [{"name": "default", "ipAddress": "10.244.0.2", "ipAddresses": ["10.244.0.2"]}],
            **(status or {}),
        },
    }


def uid_of(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))
