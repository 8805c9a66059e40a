"""A kept memory on disk: a folder with `ram` (the guest's memory), `state` (its devices) and `memory.json`, written last.

The folder gets its name when all of it is there: whoever finds it has a whole one, and a save that was killed leaves a folder
that ends in `.partial`, which the next save to the same place removes.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from app.devcluster.guests.qemu.errors import BadPlan, MemoryBroken

_FORM: Final = 1
_PARTIAL: Final = ".partial"
_MANIFEST: Final = "memory.json"
_CHUNK: Final = 256 * 1024


@dataclass(frozen=True)
class MemoryImage:
    folder: Path
    fingerprint: str
    """Short; memory with the same one can be restored in the same circumstances."""
    parts: Mapping[str, str]
    """What the fingerprint is made of."""
    disks: Mapping[str, str]
    """What the owner of the disks noted about them at the moment of the memory."""
    stood_still: float
    """Seconds for which the guest did not run."""
    shared: bool
    """`ram` has the guest's memory, and clones share what they do not change; else `state` has all of it."""

    @property
    def ram(self) -> Path:
        return self.folder / "ram"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def bytes(self) -> int:
        """What it takes on disk."""
        return sum(path.stat().st_blocks * 512 for path in (self.ram, self.state) if path.exists())

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises MemoryBroken."""
        try:
            told: dict[str, Any] = json.loads((folder / _MANIFEST).read_bytes())
            if told["form"] != _FORM:
                raise MemoryBroken(
                    f"The memory in {folder} is of a form ({told['form']}) that this version cannot read; keep it anew."
                )
            sizes = told["sizes"]
            image = cls(folder, told["fingerprint"], told["parts"], told["disks"], told["stood_still"], told["shared"])
            found = {name: (folder / name).stat().st_size for name in sizes}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MemoryBroken(f"There is no whole memory in {folder} ({error}); keep it anew.") from error
        if found != sizes:
            raise MemoryBroken(
                f"The memory in {folder} is not whole: its files have {found} bytes, not {sizes}; keep it anew."
            )
        return image


def check_target(target: Path) -> None:
    """Raises BadPlan if something is there."""
    if target.exists():
        raise BadPlan(f"{target} is there already; keep the memory elsewhere.")


def begin_image(target: Path) -> Path:
    """An empty folder beside the target. What an earlier try left there is removed."""
    partial = target.with_name(target.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def finish_image(image: MemoryImage, target: Path) -> MemoryImage:
    """Writes the manifest into the image's folder, and gives the folder its name. Raises OSError, and the target does not exist then."""
    files = [path for path in (image.ram, image.state) if path.exists()]
    told = {
        "form": _FORM,
        "fingerprint": image.fingerprint,
        "parts": dict(image.parts),
        "disks": dict(image.disks),
        "stood_still": image.stood_still,
        "shared": image.shared,
        "sizes": {path.name: path.stat().st_size for path in files},
    }
    (image.folder / _MANIFEST).write_text(json.dumps(told, indent=1), encoding="utf-8")
    image.folder.rename(target)
    return MemoryImage.open(target)


def drop_image(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)


def copy_memory(source: int, target: Path, size: int) -> None:
    """Copies an open file of memory without its holes. Blocks: call it off the event loop."""
    with target.open("wb") as copy:
        copy.truncate(size)
        position = 0
        while position < size:
            try:
                begin = os.lseek(source, position, os.SEEK_DATA)
            except OSError:
                return  # nothing but a hole up to the end
            end = os.lseek(source, begin, os.SEEK_HOLE)
            _copy_range(source, copy.fileno(), begin, end)
            position = end


def _copy_range(source: int, target: int, begin: int, end: int) -> None:
    os.lseek(target, begin, os.SEEK_SET)
    while begin < end:
        data = os.pread(source, min(_CHUNK, end - begin), begin)
        if not data:
            raise OSError(f"the guest's memory ended at {begin}")
        os.write(target, data)
        begin += len(data)
