"""The disks of one dev cluster.

A copy of a disk is an overlay: the file that both share becomes read-only, and each gets a new file on top of it. A file is unlinked
when no volume and no layer leads to it any more. No chain has more than DEEPEST files: a volume that has so many is made one file
before it is frozen again, which a running guest's cannot be.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, Self
from weakref import WeakValueDictionary

from app.devcluster.guests.disks.chains import Chains, DiskFile
from app.devcluster.guests.disks.errors import DiskBusy, DiskError, DiskMissing, DiskTooSmall, ImageRefused
from app.devcluster.guests.disks.folder import DiskFolder, uninterrupted
from app.devcluster.guests.disks.qcow2 import is_pristine
from app.devcluster.guests.disks.qemu_img import ImageInfo, QemuImg

DEEPEST: Final = 16
IMPORTED: Final = frozenset({"qcow2", "raw", "vdi", "vhdx", "vpc"})
"""The formats that an image may have, as qemu-img calls them. Each is one file; those of the others may name further files."""
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,200}[a-z0-9])?")

Pivot = Callable[[Path, Path], Awaitable[bool]]
"""Takes the file that a running guest writes to, and an empty overlay of it, to which it writes from then on. False: the guest
surely goes on with the first one. Raises where that is not known.
"""

Progress = Callable[[float], None]
"""Takes a percentage."""


def _unheard(_percent: float) -> None:
    return


async def _no_guest(_disk: Path, _overlay: Path) -> bool:
    return False


class Disks:
    """Volumes and layers by name. Operations on one name follow each other; a cancelled one has no effect.

    All raise DiskError with a sentence, and change nothing then. Sizes are in bytes.
    """

    def __init__(self, folder: DiskFolder, qemu_img: QemuImg, pivot: Pivot = _no_guest) -> None:
        self._folder = folder
        self._qemu_img = qemu_img
        self._pivot = pivot
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._holders: dict[str, set[str]] = {}

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        qemu_img: QemuImg | None = None,
        pivot: Pivot = _no_guest,
        wanted: Iterable[str] | None = None,
    ) -> Self:
        """Take up the folder. `wanted`: the only names that are kept."""
        qemu_img = qemu_img or QemuImg()
        qemu_img.find()
        disks = cls(await asyncio.to_thread(DiskFolder.open, path), qemu_img, pivot)
        if wanted is not None:
            for name in disks.names().difference(wanted):
                await disks.remove(name)
        return disks

    def close(self) -> None:
        """Let the folder go. Nothing may be under way."""
        self._folder.close()

    def names(self) -> frozenset[str]:
        return self._chains.names()

    def path(self, name: str) -> Path:
        """The file of a volume or layer as it is now."""
        return self._folder.path / self._file(name)

    def size(self, name: str) -> int:
        return self._chains.files[self._file(name)].size

    def behind(self, name: str) -> tuple[str, ...]:
        """The files of a volume or layer, from the top down."""
        return tuple(self._chains.chain(self._file(name)))

    async def attach(self, name: str, holder: str) -> Path:
        """The file that a guest may write to from now on, until `detach`. The volume is then frozen only with the guest's help."""
        async with self._locked(name):
            path = self._folder.path / self._top(name)
            self._holders.setdefault(holder, set()).add(name)
            return path

    def detach(self, holder: str) -> None:
        """The guest has ended."""
        self._holders.pop(holder, None)

    def is_attached(self, name: str) -> bool:
        return any(name in names for names in self._holders.values())

    # What makes volumes and layers

    async def blank(self, name: str, size: int) -> None:
        """The volume `name` with zeros, in place of what it was."""
        async with self._locked(name), self._replacing(name) as file:
            await self._qemu_img.create(self._folder.path / file, size)
            await self._set_volume(name, file, DiskFile(size))

    async def import_image(
        self, name: str, source: Path, size: int, on_progress: Progress, *, format_name: str = ""
    ) -> None:
        """The volume `name` with the data of an image, in place of what it was. Raises DiskTooSmall and ImageRefused too."""
        info = await self._qemu_img.info(source, format_name)
        _check_image(source, info)
        if info.size > size:
            raise DiskTooSmall(info.size, size)
        async with self._locked(name), self._replacing(name) as file:
            await self._copy(source, info.format, file, on_progress)
            if size > info.size:
                await self._qemu_img.resize(self._folder.path / file, size)
            await self._set_volume(name, file, DiskFile(size))

    async def overlay(self, name: str, base: str, size: int | None = None) -> None:
        """The volume `name` with the present data of a layer or of another volume, in place of what it was."""
        if name == base:
            raise DiskError(f"the disk {name} cannot be a copy of itself")
        async with self._locked(name, base), self._replacing(name) as file:
            held = self.size(base)
            wanted = held if size is None else size
            if wanted < held:
                raise DiskTooSmall(held, wanted)
            below = self._chains.layers.get(base) or await self._freeze_top(base)
            await self._qemu_img.create_overlay(self._folder.path / file, below, wanted)
            await self._set_volume(name, file, DiskFile(wanted, below))

    async def freeze(self, name: str, layer: str) -> None:
        """Keep the present data of a volume as the layer of this name. One that is there already stays as it is."""
        _check(layer)
        async with self._locked(name, layer):
            if layer in self._chains.volumes:
                raise DiskError(f"{layer} is a disk that is written to, and cannot be a snapshot too")
            if layer not in self._chains.layers:
                file = await self._freeze_top(name)
                await self._folder.change(lambda chains: chains.layers.update({layer: file}))

    async def remove(self, name: str) -> None:
        """A volume or layer; it is fine if there is none of this name."""
        async with self._locked(name):
            if name in self.names():
                await self._folder.change(lambda chains: chains.forget(name), removes=True)

    # How

    @property
    def _chains(self) -> Chains:
        return self._folder.chains

    def _file(self, name: str) -> str:
        file = self._chains.find(name)
        if file is None:
            raise _missing(name)
        return file

    def _top(self, name: str) -> str:
        if name not in self._chains.volumes:
            raise _missing(name)
        return self._chains.volumes[name]

    async def _set_volume(self, name: str, file: str, made: DiskFile) -> None:
        await self._folder.change(lambda chains: chains.set_volume(name, file, made))

    async def _freeze_top(self, name: str) -> str:
        """Give the volume an empty file on top, and name the one below, which has its data and is never written to again."""
        top = self._top(name)
        backing = self._chains.files[top].backing
        if not self.is_attached(name) and await self._is_unchanged(top, backing):
            return backing
        if self._chains.depth(top) >= DEEPEST:
            top = await self._flatten(name)
        async with self._folder.new_file() as file:
            await self._qemu_img.create_overlay(self._folder.path / file, top)
            await uninterrupted(self._put_on_top(name, top, file))
        return top

    async def _is_unchanged(self, top: str, backing: str) -> bool:
        files = self._chains.files
        if not backing or files[backing].size != files[top].size:
            return False
        return await asyncio.to_thread(is_pristine, self._folder.path / top)

    async def _put_on_top(self, name: str, top: str, file: str) -> None:
        # The index first: if we die before the guest has changed over, it still finds all its data below.
        await self._set_volume(name, file, DiskFile(self._chains.files[top].size, top))
        if not self.is_attached(name):
            return
        try:
            changed = await self._pivot(self._folder.path / top, self._folder.path / file)
        except Exception as error:
            # The guest may write to either. The new file stays on top: it is empty, or has what the guest wrote last.
            raise DiskError(f"the guest that uses the disk {name} may not have changed over: {error}") from error
        if not changed:
            await self._folder.change(lambda chains: chains.volumes.update({name: top}))
            raise DiskBusy(
                f"the disk {name} is in use by a guest that is just starting or ending: try again in a moment"
            )

    async def _flatten(self, name: str) -> str:
        """Make one file of the volume's chain."""
        if self.is_attached(name):
            told = f"the disk {name} was kept {DEEPEST} times while the VM ran and changed it, and cannot be kept once more"
            raise DiskBusy(f"{told} until the VM is stopped: stop it, take the snapshot, and start it again")
        async with self._folder.new_file() as file:
            await self._copy(self.path(name), "qcow2", file)
            await self._set_volume(name, file, DiskFile(self.size(name)))
        return file

    async def _copy(self, source: Path, format_name: str, file: str, on_progress: Progress = _unheard) -> None:
        target = self._folder.path / file
        await self._qemu_img.convert(source, target, format_name=format_name, on_progress=on_progress)

    @asynccontextmanager
    async def _locked(self, *names: str) -> AsyncIterator[None]:
        """In one order everywhere, so that nobody waits in a circle."""
        locks = [self._locks.setdefault(name, asyncio.Lock()) for name in sorted(set(names))]
        async with AsyncExitStack() as stack:
            for lock in locks:
                await stack.enter_async_context(lock)
            yield

    @asynccontextmanager
    async def _replacing(self, name: str) -> AsyncIterator[str]:
        """A new file that is to become the volume `name`, which the caller has locked."""
        _check(name)
        if self.is_attached(name):
            raise DiskBusy(f"the disk {name} is in use by a guest: stop it first")
        if name in self._chains.layers:
            raise DiskError(f"{name} is a snapshot and is never written to")
        async with self._folder.new_file() as file:
            yield file


def _missing(name: str) -> DiskMissing:
    return DiskMissing(f"there is no disk {name}: it was removed, or made by a dev cluster whose guests are simulated")


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise DiskError(f"'{name}' cannot be the name of a disk: use lower-case letters, digits, dots and dashes")


def _check_image(source: Path, info: ImageInfo) -> None:
    if info.format not in IMPORTED:
        told = f"{source.name} has the format {info.format}, and only {', '.join(sorted(IMPORTED))} are taken"
        raise ImageRefused(f"{told}: convert it with qemu-img")
    if info.refers_to:
        raise ImageRefused(
            f"{source.name} is incomplete: it refers to {info.refers_to}. Give an image that is one file"
        )
