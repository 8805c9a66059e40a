"""One layer of a container image: the disk in it, and what it hides of the layers below (OCI image specification, "Layer Filesystem Changeset")."""

import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from app.devcluster.guests.images.errors import FetchFailed
from app.devcluster.guests.images.formats import BROKEN, opener_of

_FOLDER: Final = "disk"
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"


@dataclass(frozen=True, slots=True)
class Found:
    """`path` is the disk, where this layer has it. `hidden` are names in /disk that the layers below must not be asked for."""

    path: Path | None
    hidden: frozenset[str]
    hides_all: bool


def look_for_disk(layer: Path, target: Path, hidden: frozenset[str], limit_bytes: int) -> Found:
    """Read the layer; a file in /disk that is not hidden goes to `target`. Blocks.

    Raises FetchFailed if the layer is broken, has more than one such file, or one that is larger than the limit.
    """
    path: Path | None = None
    hides: set[str] = set()
    opaque = False
    try:
        with _opened(layer) as tar:
            for member in tar:
                place = PurePosixPath("/", member.name)
                opaque = opaque or place in (
                    PurePosixPath("/", _FOLDER, _OPAQUE),
                    PurePosixPath("/", f"{_WHITEOUT}{_FOLDER}"),
                )
                if place.parent != PurePosixPath("/", _FOLDER):
                    continue
                if place.name.startswith(_WHITEOUT):
                    hides.add(place.name.removeprefix(_WHITEOUT))
                elif member.isfile() and place.name not in hidden:
                    if path is not None:
                        raise FetchFailed("Cannot locate image file: image directory contains more than one file")
                    path = _extracted(tar, member, target, limit_bytes)
    except (tarfile.TarError, *BROKEN) as error:
        raise FetchFailed(f"Error reading layer: {error}.") from error
    return Found(path, frozenset(hides), opaque)


@contextmanager
def _opened(layer: Path) -> Iterator[tarfile.TarFile]:
    opener = opener_of(layer)
    with opener(layer) if opener else layer.open("rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        yield tar


def _extracted(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, limit_bytes: int) -> Path:
    if member.size > limit_bytes:
        raise FetchFailed(
            f"The disk in the container image has {member.size} bytes; an image may have {limit_bytes} here.",
            no_space=True,
        )
    content: IO[bytes] | None = tar.extractfile(member)
    assert content  # noqa: S101 -- it is a regular file
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)
    return target
