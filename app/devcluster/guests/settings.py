"""What real guests are run with. Nothing here needs QEMU, or the libraries that speak to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from app.devcluster.guests.shape import DEFAULT_MEMORY

if TYPE_CHECKING:
    from app.devcluster.guests.qemu.detect import Found


@dataclass(frozen=True, slots=True)
class RealGuests:
    """`folder` has their disks, consoles and kept memory; all of it goes with the cluster unless `keeps_disks`.

    `memory` is what a guest has at most, in bytes. `images` maps names of container disks to paths or URLs. `most` is the number
    of guests; None: as many as this machine holds. `found` is the QEMU that runs them, once one was looked for. `kernel` and `initrd` are a guest of the user's own in place of the built-in one.
    """

    folder: Path
    found: "Found | None" = None
    keeps_disks: bool = False
    memory: int = DEFAULT_MEMORY
    images: Mapping[str, str] = field(default_factory=dict)
    most: int | None = None
    kernel: Path | None = None
    initrd: Path | None = None
