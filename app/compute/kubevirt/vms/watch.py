"""What happens to our VMs: lists and watches of VMs and VMIs, put together. A VM that is missing from a list is reported as Gone."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from app.compute.kubevirt.kinds import VMIS, VMS, Kind, Manifest
from app.compute.kubevirt.rounds import Round, Sleep, follow
from app.compute.kubevirt.vms.inventory import Change, Inventory
from app.compute.vms import ClusterEvent, Listed


@dataclass(frozen=True, slots=True)
class Listing:
    """One list of both kinds, the VMs first: so a VMI in it has its VM in it too, unless that VM is newer than the list."""

    vms: list[Manifest]
    vmis: list[Manifest]
    vm_version: str
    vmi_version: str
    began_at: datetime


class Source(Protocol):
    """Where lists and watch events come from."""

    async def listing(self) -> Listing: ...

    def watch(self, kind: Kind, resource_version: str) -> AsyncGenerator[Manifest, None]: ...


def observe(
    source: Source, *, relist_seconds: float, sleep: Sleep = asyncio.sleep
) -> AsyncGenerator[ClusterEvent, None]:
    """See `Gateway.observe`."""
    inventory = Inventory()

    def apply(kind: Kind, what: str, item: Manifest) -> list[Change]:
        return inventory.apply_vm(what, item) if kind == VMS else inventory.apply_vmi(what, item)

    async def list_all() -> Round[Listed | Change]:
        listing = await source.listing()
        gone = inventory.replace(listing.vms, listing.vmis)
        listed = Listed(inventory.observations(), listing.began_at)
        return Round([*gone, listed], {VMS: listing.vm_version, VMIS: listing.vmi_version}, apply)

    return follow(list_all, source.watch, relist_seconds=relist_seconds, sleep=sleep)
