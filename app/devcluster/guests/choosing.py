"""Whether guests run or are simulated: what was asked for, and what this machine can do."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from app.devcluster.guests.disks.errors import DiskError
from app.devcluster.guests.disks.qemu_img import QemuImg
from app.devcluster.guests.images.errors import ImageError
from app.devcluster.guests.qemu.detect import Found, probe_machines
from app.devcluster.guests.qemu.errors import MachineError
from app.devcluster.guests.settings import RealGuests

Kind = Literal["simulated", "qemu", "auto"]
KINDS: tuple[Kind, ...] = ("simulated", "qemu", "auto")


class GuestsUnavailable(Exception):
    """Real guests were asked for, and cannot run here; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`guests` is None where they are simulated. `name` tells what runs them; `note` is a sentence about why, or empty."""

    guests: RealGuests | None
    name: str = "simulated"
    note: str = ""


async def choose_guests(kind: Kind, wishes: RealGuests, on_progress: Callable[[str], None]) -> Choice:
    """Raises GuestsUnavailable where `qemu` was asked for and does not work; `auto` simulates then."""
    if kind == "simulated":
        return Choice(None)
    try:
        found = await probe_machines()
        real = await _prepare(found, wishes, on_progress)
    except (MachineError, DiskError, ImageError) as error:
        told = str(error)
        if kind == "qemu":
            raise GuestsUnavailable(told) from error
        return Choice(None, note=f"Guests are simulated, for real ones cannot run here. {told[:1].upper()}{told[1:]}")
    return Choice(real, f"qemu ({found.acceleration})", f"Guests run on QEMU {found.text}. {found.reason}")


async def _prepare(found: Found, wishes: RealGuests, on_progress: Callable[[str], None]) -> RealGuests:
    """Make sure of all that the first guest will need. Raises MachineError, DiskError or ImageError."""
    if importlib.util.find_spec("qemu") is None:
        raise MachineError("The library qemu.qmp is not installed: pip install 'emberpool[local]'.")
    # A plain install has not all the libraries that these need.
    from app.devcluster.guests.images.built_in import built_in_guest, own_guest  # noqa: PLC0415

    QemuImg().find()
    if wishes.kernel and wishes.initrd:
        own_guest(wishes.kernel, wishes.initrd)
    else:
        await built_in_guest(on_progress=on_progress)
    return replace(wishes, found=found)
