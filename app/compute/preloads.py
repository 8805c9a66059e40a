"""Images that are brought near before a VM needs them."""

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from app.compute.vms import VmTemplate
from app.domain.paths import ImageRef
from app.domain.preload_lifecycle import Present, Seen, Volume
from app.domain.preloads import PreloadSpec


@dataclass(frozen=True, slots=True)
class PreloadOrder:
    """What is to be made for one generation of a preload."""

    preload_id: UUID
    name: str
    generation: int
    spec: PreloadSpec


class PreloadGateway(Protocol):
    """Images brought near: as volumes by CDI, onto nodes by DaemonSets. Objects carry our labels, and the preload's id."""

    def reference(self, spec: PreloadSpec) -> ImageRef:
        """The image that it brings near; a PVC's with its namespace. No network."""
        ...

    def found_in(self, template: VmTemplate) -> tuple[PreloadSpec, ...]:
        """What would bring each image of the template near, with the size and class that the template asks for. No network."""
        ...

    async def check(self, order: PreloadOrder) -> None:
        """A server-side dry run. Raises PreloadRefused with the cluster's own message and field, ClusterError without CDI."""
        ...

    async def make(self, order: PreloadOrder) -> None:
        """Makes the generation's object, or finds the one that an earlier try made: both are success.

        Raises ClusterConflict where the name belongs to an object that is not this generation's, ClusterError without CDI.
        """
        ...

    async def look(self, preload_id: UUID) -> tuple[Seen, ...]:
        """Every object of that preload, of whichever generation."""
        ...

    async def find_present(self, name: str) -> Present:
        """What stands in the namespace under the preload's own name, made by others."""
        ...

    async def clones(self, volume: Volume) -> tuple[str, ...]:
        """Names of the volumes that are being cloned from it, whoever asked for them."""
        ...

    async def remove(self, seen: Seen) -> None:
        """Asks for the end of exactly that object. One that is gone, or is another by now, is success."""
        ...

    async def all(self) -> tuple[Seen, ...]:
        """Every object of every preload of this installation, by kind, name and preload alone: for finding those of no row."""
        ...
