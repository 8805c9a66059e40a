"""Pools of VMs that the cluster itself fills (in KubeVirt: VirtualMachinePool)."""

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from app.domain.paths import Start
from app.domain.templates import VmSpec, WrittenTemplate
from app.domain.vm_pools import Change, VmPoolStatus


@dataclass(frozen=True, slots=True)
class VmPoolOrder:
    """What the VM pool `name`, which stands behind our pool `pool`, makes its VMs from."""

    name: str
    pool: str
    pool_id: UUID
    spec: VmSpec
    revision: str
    start: Start = None


@dataclass(frozen=True, slots=True)
class FoundVmPool:
    """A VM pool that somebody else created.

    `template` makes its VMs; `members` are the names of those that it owns. `managed`: the strategies by which the cluster may
    change or delete its VMs; `heals`: autohealing is on.
    """

    status: VmPoolStatus
    template: WrittenTemplate
    members: tuple[str, ...]
    managed: tuple[str, ...]
    heals: bool


class VmPoolGateway(Protocol):
    """The cluster is allowed to do one thing with a VM pool: create VMs. Objects carry our labels and the pool's id.

    Every async method raises ClusterNotFound where the cluster has no VM pools (`Capability.VM_POOLS`).
    """

    def fingerprint(self, order: VmPoolOrder) -> str:
        """Changes when anything that VMs are made from changes. No network."""
        ...

    async def check(self, order: VmPoolOrder) -> None:
        """Tries the order without creating anything. Raises ClusterRefused with the cluster's message."""
        ...

    async def look(self, name: str) -> VmPoolStatus | None:
        """None if there is no such object."""
        ...

    async def make(self, order: VmPoolOrder, *, replicas: int, paused: bool) -> VmPoolStatus:
        """Creates it, or finds the one that an earlier attempt created. Raises ClusterConflict if the name is taken."""
        ...

    async def change(self, order: VmPoolOrder, seen: VmPoolStatus, change: Change) -> VmPoolStatus:
        """Changes the object as it was last read. Raises ClusterRefused if somebody else has written to it since."""
        ...

    async def detach(self, *, name: str, uid: str, claim_id: str | None) -> None:
        """Takes exactly that VM out of its VM pool and writes the claim's id onto it, in one step.

        It is success if the VM has no owner. Raises ClusterNotFound if it is gone, or if another VM has its name by now.
        """
        ...

    async def free(self, seen: VmPoolStatus) -> None:
        """Removes our hold on a VM pool that is being deleted, so that it can go."""
        ...

    async def remove(self, seen: VmPoolStatus) -> None:
        """Deletes exactly that object. Its VMs stay and have no owner any more."""
        ...

    async def all(self) -> tuple[VmPoolStatus, ...]:
        """Every VM pool of this installation."""
        ...

    async def find(self, name: str) -> FoundVmPool | None:
        """One that anybody created, with its VMs; None if there is none of that name."""
        ...

    async def enroll(self, order: VmPoolOrder, owner: str) -> int:
        """Puts our labels on those VMs of `owner` that lack them, so that they count as the pool's. Returns how many."""
        ...
