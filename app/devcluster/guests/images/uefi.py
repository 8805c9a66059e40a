"""Where distributions put OVMF, the UEFI firmware for machines of QEMU: the image, and the variables that a new machine starts with.

Without Secure Boot, because nothing here gives a guest keys. SeaBIOS is a part of QEMU and need not be looked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PAIRS: Final = (
    ("usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd"),  # Debian, Ubuntu
    ("usr/share/OVMF/OVMF_CODE.fd", "usr/share/OVMF/OVMF_VARS.fd"),  # the same, older
    ("usr/share/edk2/ovmf/OVMF_CODE.fd", "usr/share/edk2/ovmf/OVMF_VARS.fd"),  # Fedora
    ("usr/share/edk2/x64/OVMF_CODE.4m.fd", "usr/share/edk2/x64/OVMF_VARS.4m.fd"),  # Arch Linux
)


@dataclass(frozen=True, slots=True)
class Uefi:
    """`variables` is a template: each machine needs a copy of its own, which it writes to."""

    code: Path
    variables: Path


def find_uefi(root: Path = Path("/"), pairs: Sequence[tuple[str, str]] = _PAIRS) -> Uefi | None:
    """The firmware of this machine; None if there is none (Debian and Ubuntu: `apt-get install ovmf`)."""
    found = (Uefi(root / code, root / variables) for code, variables in pairs)
    return next((uefi for uefi in found if uefi.code.is_file() and uefi.variables.is_file()), None)
