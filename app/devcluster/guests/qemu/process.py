"""One QEMU process and the channels into it."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.devcluster.guests.qemu.agent import GuestAgent
from app.devcluster.guests.qemu.console import Console
from app.devcluster.guests.qemu.errors import MachineGone, StartFailed
from app.devcluster.guests.qemu.monitor import Json, Monitor
from app.devcluster.guests.qemu.supervision import Child, Supervision

_TAIL_BYTES: Final = 4096
_TAIL_LINES: Final = 5


@dataclass
class QemuProcess:
    name: str
    child: Child
    supervision: Supervision
    monitor: Monitor
    agent: GuestAgent
    console: Console
    ram: int | None
    """The open file that is the guest's memory, to be kept from; None if its memory is a kept one with pages of its own."""
    errors: Path
    """What QEMU itself said."""
    began: float
    """When its start was ordered, on the monotonic clock."""

    async def open(self, hear: Callable[[Json], None]) -> None:
        """Returns when QEMU takes commands. Raises StartFailed."""
        self.console.open()
        try:
            await self.monitor.open(hear)
        except MachineGone as error:
            self.kill()
            await self.wait()
            raise StartFailed(f"{error} It said: {self.last_words() or 'nothing'}") from error

    def kill(self) -> None:
        self.supervision.kill(self.name)

    async def wait(self) -> int:
        """Its exit code, as soon as it has ended; negative for a signal."""
        return await asyncio.shield(self.child.ended)

    async def close(self) -> None:
        """After its end: takes what it told last, and closes everything."""
        await self.monitor.close()
        self.console.drain()
        self.console.close()
        self.agent.close()
        if self.ram is not None:
            os.close(self.ram)
            self.ram = None

    def last_words(self) -> str:
        with suppress(OSError), self.errors.open("rb") as file:
            file.seek(max(0, self.errors.stat().st_size - _TAIL_BYTES))
            return "\n".join(file.read().decode(errors="replace").strip().splitlines()[-_TAIL_LINES:])
        return ""
