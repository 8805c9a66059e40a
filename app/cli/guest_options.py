"""What the VMs of the embedded dev cluster run: nothing (`simulated`), or real guests in QEMU. The options of `up` and `demo`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from app.embedded.folder import DataFolder

_QUANTITY: Final = re.compile(r"[1-9]\d*(Ki|Mi|Gi)")
_URL: Final = re.compile(r"[a-z]+://")


class Guests(StrEnum):
    SIMULATED = "simulated"
    QEMU = "qemu"
    AUTO = "auto"


GuestsOption = Annotated[
    Guests,
    typer.Option(
        "--guests",
        help="What the VMs run: nothing, real guests in QEMU, or these only where QEMU works on this machine.",
    ),
]
GuestImage = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=IMAGE",
        help="With real guests: the file or URL of a disk image (qcow2 or raw) to boot for the image NAME. May be repeated.",
    ),
]
GuestMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="With real guests: the most memory that a VM gets, whatever it asks for; such as 128Mi."
    ),
]


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """Checked. `images` are NAME=IMAGE, those of files with their whole path."""

    guests: Guests
    images: tuple[str, ...] = ()
    memory: str | None = None

    @property
    def may_be_real(self) -> bool:
        return self.guests is not Guests.SIMULATED

    def arguments(self, folder: DataFolder) -> list[str]:
        """For `python -m app.devcluster`, whose guests' files and logs are kept in the data folder."""
        if not self.may_be_real:
            return []
        memory = ["--guest-memory", self.memory] if self.memory is not None else []
        images = [argument for image in self.images for argument in ("--guest-image", image)]
        return ["--guests", self.guests, "--guest-folder", str(folder.guests), *memory, *images]


def read_guests(guests: Guests, images: Sequence[str] | None, memory: str | None) -> GuestOptions:
    """A usage error for what does not fit together, or is no such thing."""
    if guests is Guests.SIMULATED and (images or memory is not None):
        flag = "--guest-image" if images else "--guest-memory"
        raise typer.BadParameter(f"{flag} is for real guests: add --guests qemu, or auto")
    if memory is not None and not _QUANTITY.fullmatch(memory):
        raise typer.BadParameter(f"--guest-memory: {memory!r} is no size; write one such as 128Mi or 1Gi")
    return GuestOptions(guests, tuple(map(_read_image, images or ())), memory)


def _read_image(given: str) -> str:
    name, equals, image = given.rpartition("=")  # a URL as NAME may have one too
    if not (name and equals and image):
        raise typer.BadParameter(f"--guest-image: {given!r} is not NAME=IMAGE, such as fedora=/var/images/fedora.qcow2")
    if _URL.match(image):
        return given
    path = Path(image).expanduser().resolve()
    if not path.is_file():
        raise typer.BadParameter(f"--guest-image: {path} is not a file")
    return f"{name}={path}"
