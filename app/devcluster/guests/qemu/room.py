"""How many guests this host can hold: memory that is promised to them, and how many may boot at the same moment."""

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from app.devcluster.guests.qemu.errors import NoRoom

_MIB: Final = 2**20
_OVERHEAD: Final = 96 * _MIB  # QEMU itself and the code it has translated; 50 MiB were measured for an idle guest
_KEPT_FREE: Final = 512 * _MIB


@dataclass(frozen=True)
class Limits:
    memory_bytes: int | None = None
    """What all guests may take together; None: what is available now, less what the host needs."""
    guests: int | None = None
    """How many there may be; None: as many as the memory holds."""
    boots: int | None = None
    """How many may boot at once; None: one for each processor."""
    file_bytes: int = 256 * 2**30
    """The largest file that a guest's process may write."""


@dataclass
class Room:
    """What is promised to guests, by name."""

    memory_bytes: int
    guests: int | None
    promised: dict[str, int] = field(default_factory=dict)

    def check(self, memory_bytes: int) -> None:
        """Raises NoRoom if one more guest of this size does not fit."""
        taken, needed = sum(self.promised.values()), memory_bytes + _OVERHEAD
        if self.guests is not None and len(self.promised) >= self.guests:
            raise NoRoom(
                f"No room for another guest: {_count(len(self.promised), 'runs', 'run')}, and no more than {self.guests} may. Delete a VM, or raise the limit of guests."
            )
        if taken + needed > self.memory_bytes:
            raise NoRoom(
                f"No room for another guest: it needs {_mib(needed)}, and {_count(len(self.promised), 'holds', 'hold')} {_mib(taken)} of the {_mib(self.memory_bytes)} "
                "that this host can give to guests. Delete a VM, or give guests less memory."
            )

    def take(self, name: str, memory_bytes: int) -> None:
        self.check(memory_bytes)
        self.promised[name] = memory_bytes + _OVERHEAD

    def give_back(self, name: str) -> None:
        self.promised.pop(name, None)


class BootSlots:
    """A guest that boots takes all of a processor, so that more of them at once only make each other late."""

    def __init__(self, count: int) -> None:
        self._slots = asyncio.Semaphore(count)

    async def take(self) -> "BootSlot":
        await self._slots.acquire()
        return BootSlot(self._slots)


class BootSlot:
    def __init__(self, slots: asyncio.Semaphore) -> None:
        self._slots: asyncio.Semaphore | None = slots

    def give_back(self) -> None:
        """Once; again it does nothing."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.release()


def open_room(limits: Limits) -> Room:
    available = available_memory() if limits.memory_bytes is None else limits.memory_bytes + _KEPT_FREE
    return Room(max(0, available - _KEPT_FREE), limits.guests)


def open_boot_slots(limits: Limits) -> BootSlots:
    return BootSlots(limits.boots or os.cpu_count() or 1)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that processes can still take, within this container's bound if there is one."""
    bounds = [bound for bound in (_meminfo(root), _cgroup(root)) if bound is not None]
    return min(bounds) if bounds else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _meminfo(root: Path) -> int | None:
    with suppress(OSError):
        for line in (root / "proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _cgroup(root: Path) -> int | None:
    folder = root / "sys/fs/cgroup"
    with suppress(OSError, ValueError):  # "max" is no number: no bound
        limit = int((folder / "memory.max").read_text(encoding="utf-8"))
        return limit - int((folder / "memory.current").read_text(encoding="utf-8"))
    return None


def _count(guests: int, one: str, many: str) -> str:
    return f"1 guest {one}" if guests == 1 else f"{guests} guests {many}"


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f} MiB"
