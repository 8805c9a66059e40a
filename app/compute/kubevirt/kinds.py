"""The kinds of objects that we read or write, and their paths on the API server."""

from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

from typing_extensions import override

from app.domain.templates import VmSpec

Manifest = dict[str, Any]
"""An object of the Kubernetes API, or a part of one, as JSON."""


def opened(spec: VmSpec) -> Manifest:
    """What a VM's spec is here: the `spec` of a VirtualMachine, expanded and checked."""
    return cast("Manifest", spec)


@dataclass(frozen=True, slots=True)
class Kind:
    """`group` is empty for the core API. Its text form is the plural, for messages."""

    group: str
    version: str
    plural: str
    name: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str, name: str | None = None) -> str:
        """The path of one object, or of all objects in the namespace (in the cluster, if the kind has no namespace)."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"
        where = f"/namespaces/{quote(namespace, safe='')}" if self.namespaced else ""
        return f"{root}{where}/{self.plural}" + (f"/{quote(name, safe='')}" if name is not None else "")

    def manifest(self, metadata: Manifest, spec: Manifest) -> Manifest:
        return {"apiVersion": self.api_version, "kind": self.name, "metadata": metadata, "spec": spec}

    @override
    def __str__(self) -> str:
        return self.plural


VMS = Kind("kubevirt.io", "v1", "virtualmachines", "VirtualMachine")
VMIS = Kind("kubevirt.io", "v1", "virtualmachineinstances", "VirtualMachineInstance")
VM_POOLS = Kind("pool.kubevirt.io", "v1beta1", "virtualmachinepools", "VirtualMachinePool")
"""KubeVirt 1.7 and later serve this version; earlier ones serve v1alpha1 only."""
PVCS = Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
VM_SNAPSHOTS = Kind("snapshot.kubevirt.io", "v1beta1", "virtualmachinesnapshots", "VirtualMachineSnapshot")
VM_SNAPSHOT_CONTENTS = Kind(
    "snapshot.kubevirt.io", "v1beta1", "virtualmachinesnapshotcontents", "VirtualMachineSnapshotContent"
)
VOLUME_SNAPSHOTS = Kind("snapshot.storage.k8s.io", "v1", "volumesnapshots", "VolumeSnapshot")
SECRETS = Kind("", "v1", "secrets", "Secret")
DATA_VOLUMES = Kind("cdi.kubevirt.io", "v1beta1", "datavolumes", "DataVolume")
DATA_IMPORT_CRONS = Kind("cdi.kubevirt.io", "v1beta1", "dataimportcrons", "DataImportCron")
DAEMON_SETS = Kind("apps", "v1", "daemonsets", "DaemonSet")
LEASES = Kind("coordination.k8s.io", "v1", "leases", "Lease")
PODS = Kind("", "v1", "pods", "Pod")
NAMESPACES = Kind("", "v1", "namespaces", "Namespace", namespaced=False)
NODES = Kind("", "v1", "nodes", "Node", namespaced=False)
ALL_PODS = Kind("", "v1", "pods", "Pod", namespaced=False)
"""Pods of every namespace, which use capacity of the nodes. We only list and watch them."""
