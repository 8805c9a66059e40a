"""Pools of VMs that the cluster itself fills: VirtualMachinePools."""

from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from app.compute.vms import VmTemplate
from app.domain.paths import Start
from app.domain.vm_pools import Change, VmPoolSight


@dataclass(frozen=True, slots=True)
class VmPoolOrder:
    """What the VirtualMachinePool `name` of a pool is to make VMs from."""

    name: str
    pool: str
    pool_id: UUID
    template: VmTemplate
    revision: str
    start: Start = None


@dataclass(frozen=True, slots=True)
class FoundVmPool:
    """A VirtualMachinePool that somebody made. `template` makes its VMs, of which it owns `members`, by name. `managed`: by
    which strategies the cluster may change or delete its VMs; `heals`: it has autohealing.
    """

    sight: VmPoolSight
    template: dict[str, Any]
    members: tuple[str, ...]
    managed: tuple[str, ...]
    heals: bool


class VmPoolGateway(Protocol):
    """VirtualMachinePools, of which the cluster is let do one thing: create VMs. Objects carry our labels, and the pool's id."""

    def fingerprint(self, order: VmPoolOrder) -> str:
        """Changes with all that VMs are made from. No network."""
        ...

    async def check(self, order: VmPoolOrder) -> None:
        """A server-side dry run. Raises ClusterRefused in the cluster's own words, ClusterNotFound where no such kind is served."""
        ...

    async def look(self, name: str) -> VmPoolSight | None:
        """None: there is no such object. Raises ClusterNotFound where the cluster does not know the kind."""
        ...

    async def make(self, order: VmPoolOrder, *, replicas: int, paused: bool) -> VmPoolSight:
        """Makes it, or finds the one that an earlier try made. Raises ClusterConflict where the name is another's."""
        ...

    async def change(self, order: VmPoolOrder, seen: VmPoolSight, change: Change) -> VmPoolSight:
        """Writes the change to exactly what was seen. Raises ClusterRefused where somebody else wrote since."""
        ...

    async def detach(self, *, name: str, uid: str, claim_id: str | None) -> None:
        """Takes exactly that VM from its VirtualMachinePool, and writes the claim's id onto it in the same patch.

        One that has no owner is success. Raises ClusterNotFound where it is gone, or another has its name by now.
        """
        ...

    async def free(self, seen: VmPoolSight) -> None:
        """Lets one that is deleted, or to be, go: it no longer waits for us."""
        ...

    async def remove(self, seen: VmPoolSight) -> None:
        """Asks for the end of exactly that object; VMs that it owns stay, and are owned by nobody."""
        ...

    async def all(self) -> tuple[VmPoolSight, ...]:
        """Every VirtualMachinePool of this installation."""
        ...

    async def find(self, name: str) -> FoundVmPool | None:
        """One that anybody made, with its VMs; None: there is none of that name."""
        ...

    async def enroll(self, order: VmPoolOrder, owner: str) -> int:
        """Puts our labels on the VMs of `owner` that lack them, so that they are seen as the pool's; on how many it did."""
        ...
