"""Real guests put together: their machines, disks, images and memory, opened and closed as one."""

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.devcluster.apiserver.store import Store
from app.devcluster.guests.container_images import ContainerImages
from app.devcluster.guests.disks.qemu_img import QemuImg
from app.devcluster.guests.file_storage import FileStorage
from app.devcluster.guests.guest_disks import DiskMaker
from app.devcluster.guests.images.built_in import BuiltInGuest, built_in_guest, own_guest
from app.devcluster.guests.images.sources import Fetched, fetch
from app.devcluster.guests.planning import Planner
from app.devcluster.guests.qemu.detect import probe_machines
from app.devcluster.guests.qemu.machines import open_machines
from app.devcluster.guests.qemu.room import Limits, available_memory
from app.devcluster.guests.real import QemuGuests
from app.devcluster.guests.settings import RealGuests

_PER_CORE = 25
_OVERHEAD = 96 * 2**20
_KEPT_FREE = 512 * 2**20


@dataclass(frozen=True, slots=True)
class OpenGuests:
    """`most` is how many guests this machine holds."""

    runtime: QemuGuests
    storage: FileStorage
    most: int


@asynccontextmanager
async def open_guests(settings: RealGuests, store: Store, wanted: Iterable[str]) -> AsyncIterator[OpenGuests]:
    """Until the block ends. Of the disks in the folder only the `wanted` ones are kept. Raises DiskError, MachineError."""
    found, most = settings.found or await probe_machines(), most_guests(settings)
    volumes, disks, memory = (settings.folder / name for name in ("volumes", "disks", "memory"))
    if not settings.keeps_disks:
        shutil.rmtree(disks, ignore_errors=True)
        shutil.rmtree(memory, ignore_errors=True)
    shutil.rmtree(volumes, ignore_errors=True)
    settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = None if settings.keeps_disks else settings.folder
    async with open_machines(settings.folder, found, Limits(guests=most), ephemeral=temporary) as machines:
        runtime = QemuGuests(machines, memory)
        storage = FileStorage(disks, _fetch, runtime.pivot)
        await storage.open(wanted)
        try:
            images = ContainerImages(storage.disks, QemuImg(), _fetch, settings.images)
            maker = DiskMaker(store, storage.disks, images, volumes)
            runtime.use(Planner(maker, _built_in(settings), settings.memory, memory), storage.freeze_all)
            yield OpenGuests(runtime, storage, most)
        finally:
            await runtime.close()
            await storage.close()


def most_guests(settings: RealGuests) -> int:
    """As many as the memory and the processors of this machine carry, or as many as the settings say."""
    by_memory = max(1, (available_memory() - _KEPT_FREE) // (settings.memory + _OVERHEAD))
    by_cores = _PER_CORE * (os.cpu_count() or 1)
    return min(settings.most or by_cores, by_memory)


async def _fetch(reference: str, /, *, on_progress: Callable[[float | None], None], checksum: str | None) -> Fetched:
    """Bring an image here, and tell how much of it is here in percent."""

    def tell(done: int, total: int | None) -> None:
        on_progress(100 * done / total if total else None)

    return await fetch(reference, on_progress=tell, checksum=checksum or "")


def _built_in(settings: RealGuests) -> Callable[[], Awaitable[BuiltInGuest]]:
    made: list[BuiltInGuest] = []

    async def give() -> BuiltInGuest:
        if not made:
            kernel, initrd = settings.kernel, settings.initrd
            made.append(own_guest(kernel, initrd) if kernel and initrd else await built_in_guest())
        return made[0]

    return give
