"""The images of container disks: which of them are disks that can be booted here, and their data."""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Mapping

from app.devcluster.guests.disks.disks import Disks
from app.devcluster.guests.disks.qemu_img import QemuImg
from app.devcluster.guests.file_storage import Fetch


class ContainerImages:
    """`mapped` gives images that are here or can be fetched: names of images, with or without a tag, to paths or URLs."""

    def __init__(self, disks: Disks, qemu_img: QemuImg, fetch: Fetch, mapped: Mapping[str, str]) -> None:
        self._disks = disks
        self._qemu_img = qemu_img
        self._fetch = fetch
        self._mapped = mapped
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def find(self, image: str) -> str | None:
        """Where the data of an image are; None: it stands for the built-in guest."""
        name = image.removeprefix("docker://")
        return self._mapped.get(name) or self._mapped.get(_without_version(name))

    async def overlay(self, volume: str, reference: str) -> None:
        """A new volume with the data of the image at a path or URL. Raises ImageError or DiskError."""
        base = f"image-{hashlib.sha256(reference.encode()).hexdigest()[:16]}"
        async with self._turns[base]:
            if base not in self._disks.names():
                image = await self._fetch(reference, on_progress=_unheard, checksum=None)
                info = await self._qemu_img.info(image.path, image.format)
                await self._disks.import_image(base, image.path, info.size, _unheard, format_name=image.format)
        await self._disks.overlay(volume, base)


def _unheard(_percent: float | None) -> None:
    return


def _without_version(image: str) -> str:
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]
