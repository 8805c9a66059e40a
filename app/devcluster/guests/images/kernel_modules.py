"""The modules of a kernel that a guest loads, each after those it needs. The kernel's package has no index; each module names its own needs."""

import gzip
import io
import lzma
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from elftools.elf.elffile import ELFFile

from app.devcluster.guests.images import zstd
from app.devcluster.guests.images.errors import GuestUnavailable

_FILE: Final = re.compile(r"(?P<name>.+)\.ko(?P<compression>|\.gz|\.xz|\.zst)")
_DECOMPRESS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "": bytes,
    ".gz": gzip.decompress,
    ".xz": lzma.decompress,
    ".zst": zstd.decompress,
}


@dataclass(frozen=True, slots=True)
class KernelModule:
    name: str
    data: bytes


def modules_in_order(root: Path, wanted: Iterable[str], needed: frozenset[str]) -> list[KernelModule]:
    """The wanted modules and those they depend on, in the order in which they load.

    `root` is where the kernel's packages were unpacked. A wanted module that is not there is taken to be built in, or not of this kernel.
    Raises GuestUnavailable if one of `needed` is neither a module nor listed as built in.
    """
    files = _module_files(root)
    _check_needed(root, needed, files)
    order: dict[str, KernelModule] = {}
    for name in wanted:
        _add(name.replace("-", "_"), files, order)
    return list(order.values())


def _module_files(root: Path) -> dict[str, Path]:
    """Names are with underscores, as modules name each other."""
    found = {}
    for path in sorted(root.rglob("*.ko*")):
        if match := _FILE.fullmatch(path.name):
            found[match["name"].replace("-", "_")] = path
    return found


def _check_needed(root: Path, needed: frozenset[str], files: dict[str, Path]) -> None:
    built_in = "\n".join(path.read_text() for path in root.rglob("modules.builtin")).replace("-", "_")
    missing = [name for name in sorted(needed - files.keys()) if f"/{name}.ko" not in built_in]
    if missing:
        raise GuestUnavailable(
            f"The kernel's packages have no module {', '.join(missing)}, so the built-in guest cannot be made of them. "
            "Name another kernel and initramfs with --guest-kernel and --guest-initrd."
        )


def _add(name: str, files: dict[str, Path], order: dict[str, KernelModule]) -> None:
    if name in order or name not in files:
        return
    path = files[name]
    data = _decompressed(path)
    for other in _depends(data):
        _add(other, files, order)
    order[name] = KernelModule(name, data)


def _decompressed(path: Path) -> bytes:
    match = _FILE.fullmatch(path.name)
    assert match  # noqa: S101 -- _module_files chose it by this
    return _DECOMPRESS[match["compression"]](path.read_bytes())


def _depends(data: bytes) -> list[str]:
    """From the section .modinfo: entries KEY=VALUE that end with a null byte."""
    section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
    entries = section.data().split(b"\0") if section else []
    lists = [entry.removeprefix(b"depends=").decode() for entry in entries if entry.startswith(b"depends=")]
    return [name.replace("-", "_") for names in lists for name in names.split(",") if name]
