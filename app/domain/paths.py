"""The ways in which a VM can be had, and from what it starts.

A warm VM of a pool is there already. The other three begin when they are asked for: from a snapshot's disks, from an image
that was brought near before, or from nothing.
"""

from dataclasses import dataclass
from enum import StrEnum


class StartPath(StrEnum):
    """How a claim gets its VM, in the order that is expected to be fastest. A VM itself starts by any path except `pool`."""

    POOL = "pool"
    SNAPSHOT = "snapshot"
    PRELOAD = "preload"
    COLD = "cold"


EXPECTED_SAVING: dict[StartPath, float] = {StartPath.POOL: 0.80, StartPath.SNAPSHOT: 0.70, StartPath.PRELOAD: 0.60}
"""What the project's mission expects of each path: the share of a cold start's time that it saves. Shown beside what was
measured, and used for nothing else.
"""


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
        """The same, where a PVC that names no namespace lies in `namespace`."""
        if self.kind is ImageKind.PVC and self.reference.startswith("/"):
            return ImageRef(self.kind, f"{namespace}{self.reference}")
        return self


@dataclass(frozen=True, slots=True)
class SnapshotDisk:
    """One disk of a snapshot: the VM's volume of that name is to begin with what the VolumeSnapshot holds.

    `size` is a Kubernetes quantity, large enough for the content.
    """

    volume: str
    volume_snapshot: str
    size: str
    storage_class: str | None
    access_modes: tuple[str, ...]
    volume_mode: str | None


@dataclass(frozen=True, slots=True)
class FromSnapshot:
    """The disks of snapshot `name` take the place of the template's volumes of the same names, or are added to them."""

    name: str
    disks: tuple[SnapshotDisk, ...]


@dataclass(frozen=True, slots=True)
class FromVolume:
    """Preload `name` holds `image` in the PVC `claim`: disks that import that image are cloned from there.

    A template that has no disk of its own gets one. `size` is the PVC's, a Kubernetes quantity. `is_snapshot`: `claim` names a
    VolumeSnapshot, as CDI keeps the imports of a schedule in on some storage.
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
    """Preload `name` keeps the container image `image` on the nodes: a template that has no disk of its own gets one of it."""

    name: str
    image: str


Start = FromSnapshot | FromVolume | FromImage | None
"""What a VM starts from; None: from its template alone, cold."""
