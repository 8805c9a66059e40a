"""Which shared libraries a program needs, from its ELF header, found among unpacked packages."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from elftools.elf.dynamic import DynamicSegment, DynamicTag
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from app.devcluster.guests.images.errors import GuestUnavailable

_FOLDERS: Final = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib64", "lib64")


def libraries_of(root: Path, programs: Iterable[Path]) -> dict[str, Path]:
    """The name under which each library is looked for, and its file below `root`; the loader of the programs is among them.

    Raises GuestUnavailable if one is in none of the packages.
    """
    found: dict[str, Path] = {}
    waiting = [(program, name) for program in programs for name in _needs(program)]
    while waiting:
        program, name = waiting.pop()
        if name not in found:
            found[name] = _library(root, name, program)
            waiting += [(found[name], needed) for needed in _needs(found[name])]
    return dict(sorted(found.items()))


def _needs(program: Path) -> list[str]:
    with program.open("rb") as file:
        segments = list(ELFFile(file).iter_segments())
        loaders = [Path(segment.get_interp_name()).name for segment in segments if isinstance(segment, InterpSegment)]
        dynamic = [segment for segment in segments if isinstance(segment, DynamicSegment)]
        return loaders + [_name(tag) for segment in dynamic for tag in segment.iter_tags("DT_NEEDED")]


def _name(tag: DynamicTag) -> str:
    return str(getattr(tag, "needed"))  # noqa: B009 -- the library sets it on tags of this kind alone


def _library(root: Path, name: str, program: Path) -> Path:
    for folder in _FOLDERS:
        path = root / folder / name
        if path.exists():
            return path.resolve()
    raise GuestUnavailable(
        f"The program {program.name} of the built-in guest needs the library {name}, which is in none of the packages that were fetched. "
        "Name your own guest with --guest-kernel and --guest-initrd."
    )
