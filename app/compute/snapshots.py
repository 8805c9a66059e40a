"""Snapshots of the disks of VMs, and of their memory where the cluster keeps it."""

from collections.abc import Iterable
from typing import Protocol

from app.compute.vms import VmTemplate
from app.domain.paths import SnapshotDisk
from app.domain.snapshots import SnapshotStatus, SourceVm, VolumeVerdict
from app.domain.templates import VmSpec
from app.errors import FieldProblem


class SnapshotGateway(Protocol):
    """The caller names the objects. They carry our labels and the id of the take that they belong to."""

    def judge(self, spec: VmSpec) -> tuple[VolumeVerdict, ...]:
        """Which volumes of a VM can be in a snapshot, and why the others cannot. No network.

        What only the cluster knows (whether a storage class has a snapshot class) is assumed to be fine.
        """
        ...

    def judge_memory(self, spec: VmSpec) -> tuple[str, ...]:
        """Why the memory of a VM cannot be kept, in words; empty: it can. No network."""
        ...

    def memory_differences(
        self, template: VmTemplate, kept: VmSpec, disks: Iterable[SnapshotDisk]
    ) -> tuple[FieldProblem, ...]:
        """Where a VM of the template is not the one whose memory was kept, which had the spec `kept` and these disks in its snapshot.
        Empty: its memory may be restored. No network.

        A template without a disk of its own gets those of the snapshot.
        """
        ...

    async def source(self, name: str) -> SourceVm | None:
        """The VM of that name, whoever created it; None if there is none."""
        ...

    async def stop(self, *, name: str, uid: str) -> None:
        """Shuts exactly that VM down and keeps it from starting again. Raises ClusterNotFound, ClusterConflict (another UID)."""
        ...

    async def take(
        self, *, name: str, snapshot: str, take_id: str, vm: str, deadline_seconds: int, memory: bool = False
    ) -> SnapshotStatus:
        """Creates a snapshot of the VM, or finds the one that an earlier attempt created (same name, same take).

        `memory`: with the memory of the VM, which runs, at the moment of its disks. A cluster without `Capability.MEMORY` takes the disks.
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
