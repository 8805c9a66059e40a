"""CD images (ISO 9660 with Joliet and Rock Ridge) of a few files, as KubeVirt makes them of secrets, config maps and seeds."""

import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from pycdlib.pycdlib import PyCdlib
from pycdlib.pycdlibexception import PyCdlibException

from app.devcluster.guests.images.errors import SeedRefused

_LARGEST: Final = 16 * 1024 * 1024
_LONGEST_VOLUME_ID: Final = 16  # of Joliet, whose characters take two bytes


def make_iso(path: Path, files: Mapping[str, bytes], volume_id: str) -> None:
    """Write an image that has the files, named by paths with slashes, and the label `volume_id` (16 characters at most).

    `path` is replaced in one step. Raises SeedRefused if a name or the size of it all does not fit.
    """
    _check(files, volume_id)
    image = PyCdlib()
    image.new(interchange_level=4, joliet=3, rock_ridge="1.09", vol_ident=volume_id)
    try:
        folders: set[PurePosixPath] = set()
        for name, data in sorted(files.items()):
            _add_folders(image, PurePosixPath("/", name).parent, folders)
            place = f"/{name}"
            image.add_fp(
                io.BytesIO(data),
                len(data),
                place,
                rr_name=PurePosixPath(name).name,
                joliet_path=place,
                file_mode=0o100444,
            )
        _write(image, path)
    except PyCdlibException as error:
        raise SeedRefused(f"The files {', '.join(sorted(files))} cannot be put on a CD image: {error}.") from error
    finally:
        image.close()


def _check(files: Mapping[str, bytes], volume_id: str) -> None:
    if len(volume_id) > _LONGEST_VOLUME_ID:
        raise SeedRefused(f"The label '{volume_id}' of a CD image is longer than {_LONGEST_VOLUME_ID} characters.")
    size = sum(len(data) for data in files.values())
    if size > _LARGEST:
        raise SeedRefused(f"The files of a CD image have {size} bytes; they may have {_LARGEST}.")
    for name in files:
        if (
            name in ("", ".")
            or name != str(PurePosixPath(name))
            or name.startswith("/")
            or ".." in PurePosixPath(name).parts
        ):
            raise SeedRefused(f"'{name}' is not the name of a file on a CD image.")


def _add_folders(image: PyCdlib, folder: PurePosixPath, there: set[PurePosixPath]) -> None:
    for path in reversed((folder, *folder.parents)):
        if path != PurePosixPath("/") and path not in there:
            there.add(path)
            image.add_directory(str(path), rr_name=path.name, joliet_path=str(path))


def _write(image: PyCdlib, path: Path) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            image.write_fp(file)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
