"""Images that are brought near before a VM needs them."""

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from app.domain.paths import ImageRef
from app.domain.preload_lifecycle import PreloadObject, Present, Volume
from app.domain.preloads import PreloadSpec
from app.domain.templates import VmSpec


@dataclass(frozen=True, slots=True)
class PreloadOrder:
    """What to create for one generation of a preload."""

    preload_id: UUID
    name: str
    generation: int
    spec: PreloadSpec


class PreloadGateway(Protocol):
    """Disk images become volumes; container images are pulled onto nodes. Objects carry our labels and the preload's id."""

    def reference(self, spec: PreloadSpec) -> ImageRef:
        """The image that the preload brings near; a volume claim with its namespace. No network."""
        ...

    def specs_for(self, spec: VmSpec) -> tuple[PreloadSpec, ...]:
        """One preload for each image of a VM, with the size and storage class that the VM asks for. No network."""
        ...

    async def check(self, order: PreloadOrder) -> None:
        """Tries the order without creating anything. Raises PreloadRefused with the cluster's message and field, and
        ClusterError if the cluster has nothing that imports disk images.
        """
        ...

    async def make(self, order: PreloadOrder) -> None:
        """Creates the generation's object, or finds the one that an earlier attempt created. Both are success.

        Raises ClusterConflict if the name belongs to an object that is not this generation's, and ClusterError as `check` does.
        """
        ...

    async def look(self, preload_id: UUID) -> tuple[PreloadObject, ...]:
        """Every object of the preload, of any generation."""
        ...

    async def find_present(self, name: str) -> Present:
        """What others created in the namespace under the preload's own name."""
        ...

    async def clones(self, volume: Volume) -> tuple[str, ...]:
        """Names of the volumes that are being cloned from it, whoever asked for them."""
        ...

    async def remove(self, seen: PreloadObject) -> None:
        """Deletes exactly that object. It is success if it is gone, or if another object has its name by now."""
        ...

    async def all(self) -> tuple[PreloadObject, ...]:
        """Every object of every preload of this installation, with its kind, name and preload only: to find those without a row."""
        ...
