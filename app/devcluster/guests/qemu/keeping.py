"""How the memory of a running machine is written down, for clones to start from."""

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from app.devcluster.guests.qemu.errors import GuestRefused, MemoryBroken
from app.devcluster.guests.qemu.fingerprint import fingerprint_text
from app.devcluster.guests.qemu.memory_image import MemoryImage, begin_image, copy_memory, drop_image, finish_image
from app.devcluster.guests.qemu.migration import write_state
from app.devcluster.guests.qemu.plan import Helper
from app.devcluster.guests.qemu.process import QemuProcess

Freeze = Callable[[], Awaitable[Mapping[str, str]]]
"""Makes the layers that belong to the memory, while the guest stands still; what it returns is noted with the memory."""


@dataclass(frozen=True)
class Kept:
    """What of a machine is needed to keep its memory."""

    process: QemuProcess
    parts: Mapping[str, str]
    memory_bytes: int


async def prepare_guest(process: QemuProcess, helper: Helper | None) -> None:
    """Puts the errands' program into the guest, and makes its memory small. Raises AgentSilent or GuestRefused."""
    if helper is not None:
        path = shlex.quote(helper.path)
        script = f"test -x {path} || {{ cat > {path} && chmod 700 {path}; }}"
        ran = await process.agent.run("/bin/sh", "-c", script, stdin=helper.program)
        if ran.code:
            raise GuestRefused(
                f"The guest {process.name} could not keep {helper.path}: {ran.errors.decode(errors='replace').strip()}."
            )
    await process.agent.run("/bin/sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches")


async def write_image(kept: Kept, target: Path, freeze: Freeze, go_on: Callable[[], Awaitable[None]]) -> MemoryImage:
    """For a machine that stands still since this moment. `go_on` is called as soon as the guest may run again, also after a failure.

    Raises MonitorFailed, MachineGone, MemoryBroken or what `freeze` raises; the target does not exist then.
    """
    since, partial = monotonic(), begin_image(target)
    try:
        try:
            disks = await freeze()
            await _write_files(kept, partial)
        finally:
            await go_on()
        image = MemoryImage(
            folder=partial,
            fingerprint=fingerprint_text(kept.parts),
            parts=kept.parts,
            disks=disks,
            stood_still=round(monotonic() - since, 4),
            shared=kept.process.ram is not None,
        )
        return await asyncio.to_thread(finish_image, image, target)
    except OSError as error:
        raise MemoryBroken(f"The memory of {kept.process.name} could not be kept in {target}: {error}.") from error
    finally:
        drop_image(partial)


async def _write_files(kept: Kept, folder: Path) -> None:
    apart = kept.process.ram is not None
    await write_state(kept.process.monitor, kept.process.name, folder / "state", ram_apart=apart)
    if kept.process.ram is not None:
        await asyncio.to_thread(copy_memory, kept.process.ram, folder / "ram", kept.memory_bytes)
