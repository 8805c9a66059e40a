"""The kinds that this cluster serves, and the properties of each that the API machinery needs."""

from collections.abc import Iterator
from dataclasses import dataclass, field

_CUSTOM_VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")
_BUILT_IN_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True)
class Resource:
    """One served kind.

    `custom` kinds come from CRDs: their objects are pruned by a schema, the items of their lists have a kind, and strategic
    merge patches are refused. With `counts_generation`, changes outside metadata and the status subresource increase
    metadata.generation.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = False
    scale: bool = False
    custom: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    storage_hash: str = ""
    counts_generation: bool = True
    id: str = field(init=False, default="")

    def __post_init__(self) -> None:
        # A string key: it is hashed on every store access and written into the state file.
        object.__setattr__(self, "id", f"{self.group}/{self.plural}")

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def singular(self) -> str:
        return self.kind.lower()

    @property
    def list_kind(self) -> str:
        return f"{self.kind}List"

    @property
    def verbs(self) -> tuple[str, ...]:
        return _CUSTOM_VERBS if self.custom else _BUILT_IN_VERBS

    @property
    def qualified(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


def _core(plural: str, kind: str, *, short: str = "", **more: bool) -> Resource:
    return Resource(
        group="",
        version="v1",
        plural=plural,
        kind=kind,
        custom=False,
        short_names=(short,) if short else (),
        namespaced=more.get("namespaced", True),
        status=more.get("status", False),
        counts_generation=more.get("counts_generation", False),
    )


_ALL = ("all",)
_KUBEVIRT = "kubevirt.io"
_CDI = "cdi.kubevirt.io"
_SNAPSHOT = "snapshot.kubevirt.io"
_CSI = "snapshot.storage.k8s.io"

VIRTUAL_MACHINES = Resource(
    _KUBEVIRT, "v1", "virtualmachines", "VirtualMachine", status=True, short_names=("vm", "vms"), categories=_ALL
)
VIRTUAL_MACHINE_INSTANCES = Resource(
    _KUBEVIRT, "v1", "virtualmachineinstances", "VirtualMachineInstance", short_names=("vmi", "vmis"), categories=_ALL
)
PODS = _core("pods", "Pod", short="po", status=True)
NODES = _core("nodes", "Node", short="no", namespaced=False, status=True)
NAMESPACES = _core("namespaces", "Namespace", short="ns", namespaced=False, status=True)
SECRETS = _core("secrets", "Secret")
CONFIG_MAPS = _core("configmaps", "ConfigMap", short="cm")
EVENTS = _core("events", "Event", short="ev")
CLAIMS = _core("persistentvolumeclaims", "PersistentVolumeClaim", short="pvc", status=True)
PERSISTENT_VOLUMES = _core("persistentvolumes", "PersistentVolume", short="pv", namespaced=False, status=True)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease", custom=False, counts_generation=False)
STORAGE_CLASSES = Resource(
    "storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False, custom=False, counts_generation=False
)
DAEMON_SETS = Resource("apps", "v1", "daemonsets", "DaemonSet", status=True, custom=False, short_names=("ds",))
POOLS = Resource(
    "pool.kubevirt.io",
    "v1beta1",
    "virtualmachinepools",
    "VirtualMachinePool",
    status=True,
    scale=True,
    short_names=("vmpool", "vmpools"),
    categories=_ALL,
)
VM_SNAPSHOTS = Resource(
    _SNAPSHOT,
    "v1beta1",
    "virtualmachinesnapshots",
    "VirtualMachineSnapshot",
    status=True,
    short_names=("vmsnapshot", "vmsnapshots"),
    categories=_ALL,
)
VM_SNAPSHOT_CONTENTS = Resource(
    _SNAPSHOT,
    "v1beta1",
    "virtualmachinesnapshotcontents",
    "VirtualMachineSnapshotContent",
    status=True,
    short_names=("vmsnapshotcontent", "vmsnapshotcontents"),
    categories=_ALL,
)
VM_RESTORES = Resource(
    _SNAPSHOT,
    "v1beta1",
    "virtualmachinerestores",
    "VirtualMachineRestore",
    status=True,
    short_names=("vmrestore", "vmrestores"),
    categories=_ALL,
)
VM_CLONES = Resource(
    "clone.kubevirt.io",
    "v1beta1",
    "virtualmachineclones",
    "VirtualMachineClone",
    status=True,
    short_names=("vmclone", "vmclones"),
    categories=_ALL,
)
DATA_VOLUMES = Resource(
    _CDI, "v1beta1", "datavolumes", "DataVolume", status=True, short_names=("dv", "dvs"), categories=_ALL
)
DATA_SOURCES = Resource(_CDI, "v1beta1", "datasources", "DataSource", short_names=("das",), categories=_ALL)
DATA_IMPORT_CRONS = Resource(
    _CDI, "v1beta1", "dataimportcrons", "DataImportCron", short_names=("dic", "dics"), categories=_ALL
)
STORAGE_PROFILES = Resource(_CDI, "v1beta1", "storageprofiles", "StorageProfile", namespaced=False, status=True)
VOLUME_SNAPSHOTS = Resource(_CSI, "v1", "volumesnapshots", "VolumeSnapshot", status=True, short_names=("vs",))
VOLUME_SNAPSHOT_CLASSES = Resource(
    _CSI, "v1", "volumesnapshotclasses", "VolumeSnapshotClass", namespaced=False, short_names=("vsclass", "vsclasses")
)
VOLUME_SNAPSHOT_CONTENTS = Resource(
    _CSI,
    "v1",
    "volumesnapshotcontents",
    "VolumeSnapshotContent",
    namespaced=False,
    status=True,
    short_names=("vsc", "vscs"),
)

RESOURCES: tuple[Resource, ...] = (
    PODS,
    NODES,
    NAMESPACES,
    SECRETS,
    CONFIG_MAPS,
    EVENTS,
    CLAIMS,
    PERSISTENT_VOLUMES,
    LEASES,
    STORAGE_CLASSES,
    DAEMON_SETS,
    VIRTUAL_MACHINES,
    VIRTUAL_MACHINE_INSTANCES,
    POOLS,
    VM_SNAPSHOTS,
    VM_SNAPSHOT_CONTENTS,
    VM_RESTORES,
    VM_CLONES,
    DATA_VOLUMES,
    DATA_SOURCES,
    DATA_IMPORT_CRONS,
    STORAGE_PROFILES,
    VOLUME_SNAPSHOTS,
    VOLUME_SNAPSHOT_CLASSES,
    VOLUME_SNAPSHOT_CONTENTS,
)

_BY_PATH = {(resource.group, resource.version, resource.plural): resource for resource in RESOURCES}
_BY_ID = {resource.id: resource for resource in RESOURCES}


def find(group: str, version: str, plural: str) -> Resource | None:
    return _BY_PATH.get((group, version, plural))


def by_id(resource_id: str) -> Resource:
    return _BY_ID[resource_id]


def versions(group: str) -> list[str]:
    return sorted({resource.version for resource in RESOURCES if resource.group == group})


def served(group: str, version: str) -> Iterator[Resource]:
    return (resource for resource in RESOURCES if (resource.group, resource.version) == (group, version))


def groups() -> list[str]:
    return sorted({resource.group for resource in RESOURCES if resource.group})
