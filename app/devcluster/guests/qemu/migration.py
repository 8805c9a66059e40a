"""The state of a machine, out of one QEMU and into another one, by QEMU's migration.

With `x-ignore-shared` the guest's memory stays where it is, in the file that is mapped, and only the state of the devices is
written: 15 ms and 0.4 MiB were measured. Without it (`ram_apart=False`) the state has the memory in it; both sides must agree.
The state goes through a socket pair, which every version of QEMU takes.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from qemu.qmp import EventListener

from app.devcluster.guests.qemu.errors import MemoryBroken, MonitorFailed
from app.devcluster.guests.qemu.monitor import Monitor, next_event

_SECONDS: Final = 300.0
_CHUNK: Final = 2**20
_UNBOUNDED: Final = 1 << 40


async def write_state(monitor: Monitor, name: str, target: Path, *, ram_apart: bool) -> None:
    """Writes the state of a stopped machine. Raises MonitorFailed, MachineGone or OSError."""
    await _prepare(monitor, ram_apart=ram_apart)
    await monitor.execute("migrate-set-parameters", {"max-bandwidth": _UNBOUNDED})
    async with _channel(monitor, "state-out") as ours:
        with monitor.listen("MIGRATION") as told:
            await monitor.execute("migrate", {"uri": "fd:state-out"})
            receiving = asyncio.create_task(_receive(ours, target))
            try:
                problem = await _outcome(told, name)
                if not problem:
                    await receiving
            finally:
                receiving.cancel()
                await asyncio.gather(receiving, return_exceptions=True)
    if problem:
        raise MonitorFailed(f"QEMU could not write the state of {name}: {problem}.")


async def load_state(monitor: Monitor, name: str, source: Path, *, ram_apart: bool) -> None:
    """Loads the state into a machine that waits for it (`-incoming defer`). Raises MemoryBroken, MachineGone or OSError."""
    await _prepare(monitor, ram_apart=ram_apart)
    async with _channel(monitor, "state-in") as ours:
        with monitor.listen("MIGRATION") as told:
            await monitor.execute("migrate-incoming", {"uri": "fd:state-in"})
            sending = asyncio.create_task(_send(source, ours))
            try:
                problem = await _outcome(told, name)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
    if problem:
        raise MemoryBroken(f"QEMU cannot restore {name} from {source}: {problem}; keep the memory anew.")


async def _prepare(monitor: Monitor, *, ram_apart: bool) -> None:
    states = {"x-ignore-shared": ram_apart, "events": True}
    capabilities = [{"capability": name, "state": state} for name, state in states.items()]
    await monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})


@asynccontextmanager
async def _channel(monitor: Monitor, name: str) -> AsyncIterator[socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours:
        with theirs:
            await monitor.give_file(name, theirs.fileno())
        yield ours


async def _outcome(told: EventListener, name: str) -> str:
    """Empty when the migration is complete, else what failed."""
    while True:
        status = (await next_event(told, _SECONDS, name))["data"]["status"]
        if status == "completed":
            return ""
        if status in {"failed", "cancelled"}:
            return f"the migration {'failed' if status == 'failed' else 'was cancelled'}"


async def _receive(channel: socket.socket, target: Path) -> None:
    loop = asyncio.get_running_loop()
    with target.open("wb") as file:
        while data := await loop.sock_recv(channel, _CHUNK):
            file.write(data)


async def _send(source: Path, channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with source.open("rb") as file:
        await loop.sock_sendfile(channel, file)
    channel.shutdown(socket.SHUT_WR)
