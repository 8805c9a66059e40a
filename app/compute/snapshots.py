"""Snapshots of the disks of VMs."""

from collections.abc import Iterable
from typing import Protocol

from app.domain.paths import SnapshotDisk
from app.domain.snapshots import SnapshotStatus, SourceVm, VolumeVerdict
from app.domain.templates import VmSpec


class SnapshotGateway(Protocol):
    """The caller names the objects. They carry our labels and the id of the take that they belong to."""

    def judge(self, spec: VmSpec) -> tuple[VolumeVerdict, ...]:
        """Which volumes of a VM can be in a snapshot, and why the others cannot. No network.

        What only the cluster knows (whether a storage class has a snapshot class) is assumed to be fine.
        """
        ...

    async def source(self, name: str) -> SourceVm | None:
        """The VM of that name, whoever created it; None if there is none."""
        ...

    async def stop(self, *, name: str, uid: str) -> None:
        """Shuts exactly that VM down and keeps it from starting again. Raises ClusterNotFound, ClusterConflict (another UID)."""
        ...

    async def take(self, *, name: str, snapshot: str, take_id: str, vm: str, deadline_seconds: int) -> SnapshotStatus:
        """Creates a snapshot of the VM, or finds the one that an earlier attempt created (same name, same take).

        Raises ClusterConflict if the name belongs to an object that is not this take's.
        """
        ...

    async def look(self, name: str) -> SnapshotStatus | None:
        """None if there is no such snapshot."""
        ...

    async def disks(self, status: SnapshotStatus) -> tuple[SnapshotDisk, ...]:
        """The disks of a ready snapshot, each large enough for its content."""
        ...

    def count_bytes(self, disks: Iterable[SnapshotDisk]) -> int:
        """How much storage the disks need together when they are restored. No network."""
        ...

    async def remove(self, *, name: str, uid: str | None, take_id: str) -> bool:
        """Deletes the snapshot and its content. True: it still exists; False: it does not exist (any more).

        With `uid` None the name decides. An object that is not this take's is left alone and counts as gone.
        """
        ...

    async def all(self) -> tuple[SnapshotStatus, ...]:
        """Every snapshot of this installation."""
        ...
