"""Snapshots of the disks of VMs."""

from typing import Protocol

from app.compute.vms import VmTemplate
from app.domain.paths import SnapshotDisk
from app.domain.snapshots import Sight, SourceVm, VolumeVerdict


class SnapshotGateway(Protocol):
    """Snapshots of VMs' disks. Objects are named by the caller, and carry our labels and the id of the take that they are of."""

    def judge(self, template: VmTemplate) -> tuple[VolumeVerdict, ...]:
        """Which volumes of a template's VMs could ever be in a snapshot, and why not each other. No network.

        What only the cluster knows (has its storage class a snapshot class?) is taken to be well.
        """
        ...

    async def source(self, name: str) -> SourceVm | None:
        """The VM of that name, whoever made it; None: there is none."""
        ...

    async def stop(self, *, name: str, uid: str) -> None:
        """Lets exactly that VM shut down, and not start again. Raises ClusterNotFound, ClusterConflict (another UID)."""
        ...

    async def take(self, *, name: str, snapshot: str, take_id: str, vm: str, deadline_seconds: int) -> Sight:
        """Asks for a snapshot of the VM, or finds the one that an earlier try asked for (same name and label).

        Raises ClusterConflict where the name belongs to an object that is not this take's.
        """
        ...

    async def look(self, name: str) -> Sight | None:
        """None: there is no such object."""
        ...

    async def disks(self, sight: Sight) -> tuple[SnapshotDisk, ...]:
        """The disks of a snapshot that is ready, each large enough for what it holds."""
        ...

    async def remove(self, *, name: str, uid: str | None, take_id: str) -> bool:
        """Asks for the end of the snapshot and all that it holds. True: it is still going; False: there is none (any more).

        With `uid` None the name decides. An object that is not this take's is left alone and counts as gone.
        """
        ...

    async def all(self) -> tuple[Sight, ...]:
        """Every snapshot of this installation."""
        ...
