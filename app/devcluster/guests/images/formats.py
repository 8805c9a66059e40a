"""What kind of disk image a file is, and whether it may be used: a downloaded file must not name other files of this machine.

The format is read from the file's first bytes and told to qemu-img, which is never left to guess: its guess can follow names in the file.
"""

import asyncio
import gzip
import json
import lzma
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.devcluster.guests.images import zstd
from app.devcluster.guests.images.errors import FetchFailed

Opener = Callable[[Path], gzip.GzipFile | lzma.LZMAFile | zstd.ZstdFile]

_QCOW2: Final = b"QFI\xfb"
_OTHERS: Final[Mapping[bytes, str]] = {
    b"vhdxfile": "vhdx",
    b"KDMV": "vmdk",
    b"# Disk Descript": "vmdk",
    b"conectix": "vpc",
    b"QED\0": "qed",
}
_HEADER: Final = struct.Struct(">4sIQII")  # magic, version, place and length of the backing file's name, cluster bits
_FEATURES_AT: Final = 72
_EXTERNAL_DATA: Final = 4
_OPENERS: Final[Mapping[bytes, Opener]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": zstd.ZstdFile,
}
BROKEN: Final = (EOFError, lzma.LZMAError, zstd.ZstdError, gzip.BadGzipFile)
_CHUNK: Final = 1024 * 1024
_START: Final = 80
_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """`virtual_size` is the disk's size as a guest sees it, in bytes."""

    format: str
    virtual_size: int


def opener_of(path: Path) -> Opener | None:
    """How to read a compressed file; None if it is not compressed by gzip, xz or Zstandard."""
    start = _start_of(path)
    return next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)


def decompress(source: Path, target: Path, limit_bytes: int) -> None:
    """Write the compressed file's content to `target`. Blocks. Raises FetchFailed if it is broken or would be larger than the limit."""
    opener = opener_of(source)
    assert opener  # noqa: S101 -- callers ask opener_of first
    done = 0
    try:
        with opener(source) as packed, target.open("wb") as file:
            while chunk := packed.read(_CHUNK):
                done += len(chunk)
                if done > limit_bytes:
                    raise FetchFailed(
                        f"The image is larger than {limit_bytes} bytes once it is decompressed.", no_space=True
                    )
                file.write(chunk)
    except BROKEN as error:
        raise FetchFailed(f"The compressed image is broken or cut: {error}.") from error


async def image_info(path: Path, name: str) -> ImageInfo:
    """Check the image. `name` is where it came from, for errors. Raises FetchFailed if it is not one, or refers to other files."""
    start = _start_of(path)
    if other := next((kind for magic, kind in _OTHERS.items() if start.startswith(magic)), None):
        raise FetchFailed(
            f"Invalid format {other} for image {name}: give a qcow2 or raw image, as `qemu-img convert` makes it."
        )
    kind = "qcow2" if start.startswith(_QCOW2) else "raw"
    if kind == "qcow2":
        _refuse_other_files(path, start, name)
    facts = await _qemu_img_info(path, kind, name)
    if not facts["virtual-size"]:
        raise FetchFailed(f"Image {name} is empty.")
    return ImageInfo(kind, int(facts["virtual-size"]))


def _refuse_other_files(path: Path, start: bytes, name: str) -> None:
    """Read from the header itself (QEMU, docs/interop/qcow2.txt), before a program opens what the header names."""
    if len(start) < _START:
        raise FetchFailed(f"Invalid format qcow2 for image {name}: it ends in its header.")
    _, version, backing_at, backing_length, _ = _HEADER.unpack_from(start)
    if backing_at:
        with path.open("rb") as file:
            file.seek(min(backing_at, path.stat().st_size))
            backing = file.read(min(backing_length, 1023)).decode(errors="replace")
        raise FetchFailed(
            f"Image {name} is invalid because it has invalid backing file {backing}: a disk must be one file."
        )
    if version >= 3 and start[_FEATURES_AT + 7] & _EXTERNAL_DATA:  # noqa: PLR2004 -- version 2 has no features
        raise FetchFailed(f"Image {name} is invalid because its data is in another file: a disk must be one file.")


async def _qemu_img_info(path: Path, kind: str, name: str) -> dict[str, Any]:
    program = shutil.which("qemu-img")
    if program is None:
        raise FetchFailed("The program qemu-img is missing; install qemu-utils (Debian, Ubuntu) or qemu-img (Fedora).")
    process = await asyncio.create_subprocess_exec(
        *(program, "info", "--output=json", "--force-share", "-f", kind, str(path)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), _SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        reason = errors.decode(errors="replace").strip().replace(str(path), name)
        raise FetchFailed(f"Invalid format {kind} for image {name}: {reason.removeprefix('qemu-img: ')}")
    facts: dict[str, Any] = json.loads(output)
    return facts


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_START)
