"""The program that runs in guests, and its installer: POSIX shell scripts that are put on each VM's identity disk."""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

from app.errors import ClusterUnavailable

FILES: Final = ("guest.sh", "install.sh", "emberpool-guest.service", "emberpool-guest.openrc")


def identity_files(ca_file: Path | None) -> dict[str, str]:
    """The files that every identity disk has, by name: the program, and the certificates that it trusts if there are any.

    Raises ClusterUnavailable where the certificates cannot be read, so that the VM is made later.
    """
    if ca_file is None:
        return dict(_program())
    try:
        return {**_program(), "ca.crt": ca_file.read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterUnavailable(
            f"EMBERPOOL_GUEST_CA_FILE ({ca_file}) cannot be read, so that the VM's guest would trust nobody: {error}"
        ) from error


@cache
def _program() -> dict[str, str]:
    folder = resources.files(__name__)
    return {name: (folder / name).read_text(encoding="utf-8") for name in FILES}
