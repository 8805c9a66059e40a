"""Where disk images come from: a file of this machine, a URL, or a containerDisk in a registry. What was downloaded is kept in a cache."""

import asyncio
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from app.devcluster.guests.images.cache import Cache, Making, default_cache, facts_of
from app.devcluster.guests.images.downloads import Download, Limits, NotModified, Progress, Validators, http_client
from app.devcluster.guests.images.errors import FetchFailed
from app.devcluster.guests.images.formats import ImageInfo, decompress, image_info, opener_of
from app.devcluster.guests.images.registry import Registry
from app.devcluster.guests.images.registry_reference import parse_reference

_CHECKSUM: Final = re.compile(r"(md5|sha1|sha256|sha512):([0-9a-fA-F]+)")
_KEEP_DAYS: Final = 14.0
_DISK: Final = "disk"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A disk image. `virtual_size` is what a guest sees, in bytes. The file is not the caller's: convert it or put an overlay on it."""

    path: Path
    format: str
    virtual_size: int


@dataclass(frozen=True, slots=True)
class Request:
    """How an image is fetched. `checksum` is ALGORITHM:HEX of the file as it is served; `pull_secret` the content of .dockerconfigjson."""

    reference: str
    headers: Mapping[str, str]
    checksum: str
    pull_secret: bytes | None
    limits: Limits


def _silent(done: int, total: int | None) -> None:
    """Nobody listens to the progress."""


async def fetch(
    reference: str,
    *,
    cache: Path | None = None,
    on_progress: Progress = _silent,
    checksum: str = "",
    headers: Mapping[str, str] | None = None,
    pull_secret: bytes | None = None,
    limits: Limits | None = None,
) -> Fetched:
    """Get the image that `reference` names: /PATH or file://PATH, http(s)://..., docker://NAME or NAME of a containerDisk.

    A URL is asked again each time whether its file changed, and a registry what its tag stands for; the content comes from `cache`
    (a folder; the user's by default) if it is the same. Raises FetchFailed with a sentence; nothing is left behind then.
    """
    request = Request(reference, headers or {}, checksum, pull_secret, limits or Limits())
    if reference.startswith(("/", "file://")):
        return await _local(reference.removeprefix("file://"))
    kept = Cache((cache or default_cache()) / "images", keep_days=_KEEP_DAYS)
    try:
        if reference.startswith(("http://", "https://")):
            return await _from_url(request, kept, on_progress)
        return await _from_registry(request, kept, on_progress)
    except OSError as error:
        raise FetchFailed(
            f"Unable to transfer source data to target file: {error.strerror}: {error.filename}."
        ) from error


async def _local(name: str) -> Fetched:
    path = Path(name)
    if not await asyncio.to_thread(path.is_file):
        raise FetchFailed(f"There is no image file {name} on this machine.")
    try:
        if opener_of(path):
            raise FetchFailed(f"Image {name} is compressed: decompress it first.")
        return _fetched(path, await image_info(path, name))
    except OSError as error:
        raise FetchFailed(f"Image {name} cannot be read: {error.strerror}.") from error


async def _from_url(request: Request, kept: Cache, on_progress: Progress) -> Fetched:
    _check_known(request.checksum)
    source = _short_hash(repr((request.reference, request.checksum)))
    known = next((entry for entry in kept.entries() if entry.name.startswith(f"{source}-")), None)
    with kept.making() as making:
        path = making.folder / "download"
        try:
            async with http_client() as client:
                download = Download(client, request.reference, path, limits=request.limits)
                unless = Validators(**facts_of(known)["validators"]) if known else None
                await download.run(on_progress, headers=request.headers, unless=unless)
        except NotModified:
            return _kept_as(kept, known.name if known else "")
        await asyncio.to_thread(_check, path, request.checksum)
        await _finish(path, making, request)
        making.facts["validators"] = asdict(download.validators)
        making.key = f"{source}-{secrets.token_hex(8)}"
    return _kept_as(kept, making.key)


async def _from_registry(request: Request, kept: Cache, on_progress: Progress) -> Fetched:
    async with http_client() as client:
        registry = Registry(client, parse_reference(request.reference), request.pull_secret)
        manifest = await registry.manifest()
        key = manifest.digest.replace(":", "-")
        if known := kept.entry(key):
            return _kept(known)
        with kept.making() as making:
            path = await registry.take_disk(manifest, making.folder, request.limits, on_progress)
            await _finish(path, making, request)
            making.key = key
    return _kept_as(kept, key)


async def _finish(path: Path, making: Making, request: Request) -> None:
    """Bring what was downloaded into the form of an entry: one image, not compressed, that was looked at."""
    disk = making.folder / _DISK
    await asyncio.to_thread(_place, path, disk, request.limits.bytes)
    info = await image_info(disk, request.reference)
    making.facts |= {"reference": request.reference, "format": info.format, "virtual_size": info.virtual_size}


def _place(path: Path, disk: Path, limit_bytes: int) -> None:
    if opener_of(path):
        decompress(path, disk, limit_bytes)
        path.unlink()
    else:
        path.rename(disk)
    disk.chmod(0o444)


def _kept_as(kept: Cache, key: str) -> Fetched:
    entry = kept.entry(key)
    if entry is None:
        raise FetchFailed("The image was removed from the cache while it was asked for; try again.")
    return _kept(entry)


def _kept(entry: Path) -> Fetched:
    facts = facts_of(entry)
    return Fetched(entry / _DISK, facts["format"], facts["virtual_size"])


def _check_known(checksum: str) -> None:
    match = _CHECKSUM.fullmatch(checksum)
    if checksum and (match is None or len(match[2]) != hashlib.new(match[1]).digest_size * 2):
        raise FetchFailed(
            f"invalid checksum '{checksum}': write sha256:HEX, or md5, sha1 or sha512 with as many digits as it has"
        )


def _check(path: Path, checksum: str) -> None:
    if not checksum:
        return
    algorithm, _, wanted = checksum.partition(":")
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, algorithm).hexdigest()
    if actual != wanted.lower():
        raise FetchFailed(f"checksum validation failed: checksum mismatch: expected {wanted.lower()}, got {actual}")


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fetched(path: Path, info: ImageInfo) -> Fetched:
    return Fetched(path, info.format, info.virtual_size)
