"""The paths by which a claim gets its VM, and what the VM starts from.

A warm VM of a pool exists already. On the other paths a VM is made for the claim: from the memory and disks of a snapshot, from the
disks of a snapshot alone, from an image that was preloaded, or cold.
"""

from dataclasses import dataclass
from enum import StrEnum

from app.domain.templates import VmSpec


class StartPath(StrEnum):
    """How a claim gets its VM, in the order that is expected to be fastest. A VM itself starts by any path except `pool`."""

    POOL = "pool"
    MEMORY = "memory"
    SNAPSHOT = "snapshot"
    PRELOAD = "preload"
    COLD = "cold"


EXPECTED_SAVING: dict[StartPath, float] = {
    StartPath.POOL: 0.80,
    StartPath.MEMORY: 0.70,
    StartPath.SNAPSHOT: 0.70,
    StartPath.PRELOAD: 0.60,
}
"""The share of a cold start's time that each path is expected to save. Shown beside what was measured; nothing depends on it."""


class ImageKind(StrEnum):
    """Where a disk's content comes from, in KubeVirt's and CDI's words."""

    CONTAINER = "container"
    HTTP = "http"
    REGISTRY = "registry"
    S3 = "s3"
    GCS = "gcs"
    PVC = "pvc"


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image that a VM boots from. `reference`: a container image, a URL, or `namespace/name` of a PVC."""

    kind: ImageKind
    reference: str

    def within(self, namespace: str) -> "ImageRef":
        """The same image; a PVC that names no namespace is in `namespace`."""
        if self.kind is ImageKind.PVC and self.reference.startswith("/"):
            return ImageRef(self.kind, f"{namespace}{self.reference}")
        return self


@dataclass(frozen=True, slots=True)
class SnapshotDisk:
    """One disk of a snapshot: the VM's volume of that name starts with the content of the VolumeSnapshot.

    `size` is a Kubernetes quantity, large enough for the content.
    """

    volume: str
    volume_snapshot: str
    size: str
    storage_class: str | None
    access_modes: tuple[str, ...]
    volume_mode: str | None


@dataclass(frozen=True, slots=True)
class MemoryImage:
    """The memory of a VM, kept with its disks. `snapshot`: the snapshot's name in the cluster. `spec`: of the VM whose memory it is."""

    snapshot: str
    spec: VmSpec


@dataclass(frozen=True, slots=True)
class FromSnapshot:
    """The disks of snapshot `name` replace the template's volumes of the same names, then its images in their order; the others are
    added to them. A disk is as large as the template asks, and on the storage that it asks for.

    With `memory` the guest goes on where it was when that was kept, and does not boot.
    """

    name: str
    disks: tuple[SnapshotDisk, ...]
    memory: MemoryImage | None = None


@dataclass(frozen=True, slots=True)
class FromVolume:
    """Preload `name` has `image` in the PVC `claim`: disks that import that image are cloned from there.

    A template without a disk of its own gets one. `size` is the PVC's, a Kubernetes quantity. `is_snapshot`: `claim` names a
    VolumeSnapshot, in which CDI keeps scheduled imports on some storage.
    """

    name: str
    image: ImageRef
    claim: str
    size: str
    storage_class: str | None
    access_modes: tuple[str, ...]
    volume_mode: str | None
    is_snapshot: bool = False


@dataclass(frozen=True, slots=True)
class FromImage:
    """Preload `name` keeps the container image `image` on the nodes: a template without a disk of its own gets one from it."""

    name: str
    image: str


Start = FromSnapshot | FromVolume | FromImage | None
"""What a VM starts from; None: from its template alone, cold."""
