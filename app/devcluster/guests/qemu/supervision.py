"""Our end of the supervisor: starts it when it is needed, hands it orders, and tells the end of each process."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from app.devcluster.guests.qemu import supervisor
from app.devcluster.guests.qemu.errors import MachineGone, StartFailed
from app.devcluster.guests.qemu.supervisor import FILES_AT_ONCE, Launch

_STOP_SECONDS: Final = 10
_FULL_SECONDS: Final = 0.01
_LOST: Final = -signal.SIGKILL

_log = structlog.get_logger(__name__)


@dataclass
class Child:
    """One process of the supervisor's."""

    name: str
    pid: int
    ended: asyncio.Future[int]
    """Its exit code, negative for a signal."""
    lost: bool = False
    """The supervisor died, and took the process with it."""


class Supervision:
    """The one supervisor. A new one is started for the next launch after it died."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._reading: asyncio.Task[None] | None = None
        self._started: dict[str, asyncio.Future[int]] = {}
        self._children: dict[str, Child] = {}
        self._orders = asyncio.Lock()
        self._closing = False
        self._killing: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def launch(self, order: Launch, files: Sequence[int]) -> Child:
        """Starts a process, which gets copies of `files`. Raises StartFailed."""
        if len(files) > FILES_AT_ONCE:
            raise StartFailed(f"{order['launch']} needs {len(files)} open files; {FILES_AT_ONCE} can be handed over.")
        name, loop = order["launch"], asyncio.get_running_loop()
        started = self._started[name] = loop.create_future()
        ended: asyncio.Future[int] = loop.create_future()
        child = self._children[name] = Child(name, 0, ended)
        try:
            await self._send(dict(order), files)
            child.pid = await started
        except BaseException:
            # It may have been started: whoever gave up on it must not leave it running.
            self.kill(name)
            self._children.pop(name, None)
            raise
        finally:
            self._started.pop(name, None)
        return child

    def kill(self, name: str) -> None:
        """SIGKILL. Nothing happens if there is none of this name."""
        if self._channel is not None:
            killing = asyncio.create_task(self._send_kill(name), name=f"kill-{name}")
            self._killing.add(killing)
            killing.add_done_callback(self._killing.discard)

    async def close(self) -> None:
        """Ends all processes and removes the folders."""
        if self._process is None:
            return
        self._closing = True
        if self._channel is not None:
            with suppress(OSError):
                self._channel.shutdown(socket.SHUT_WR)
        await asyncio.to_thread(_wait, self._process)
        if self._reading is not None:
            await self._reading

    async def _send_kill(self, name: str) -> None:
        with suppress(OSError):  # the supervisor died, and the process with it
            if self._channel is not None:
                await self._send({"kill": name}, ())

    async def _send(self, order: dict[str, Any], files: Sequence[int]) -> None:
        async with self._orders:
            channel = self._running()
            data = json.dumps(order).encode() + b"\n"
            sent = await _send_files(channel, data, files)
            await asyncio.get_running_loop().sock_sendall(channel, data[sent:])

    def _running(self) -> socket.socket:
        if self._channel is not None:
            return self._channel
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own file
                [sys.executable, "-I", "-S", supervisor.__file__, *map(str, self._folders)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C at the terminal is for us, who ends it in order
            )
        ours.setblocking(False)
        self._channel = ours
        self._reading = asyncio.create_task(self._read(ours), name="guest-supervisor")
        return ours

    async def _read(self, channel: socket.socket) -> None:
        loop, unread = asyncio.get_running_loop(), b""
        with suppress(OSError):
            while data := await loop.sock_recv(channel, 65536):
                *lines, unread = (unread + data).split(b"\n")
                for line in lines:
                    self._hear(json.loads(line))
        channel.close()
        self._channel = None
        self._lose_all()

    def _hear(self, answer: dict[str, Any]) -> None:
        if "ended" in answer:
            child = self._children.pop(answer["ended"], None)
            if child is not None and not child.ended.done():
                child.ended.set_result(answer["code"])
            return
        started = self._started.get(answer.get("launched") or answer["refused"])
        if started is None or started.done():
            return
        if "launched" in answer:
            started.set_result(answer["pid"])
        else:
            started.set_exception(StartFailed(f"QEMU could not be started: {answer['reason']}."))

    def _lose_all(self) -> None:
        """The supervisor is gone. On Linux its processes are as well; elsewhere they are ended here, before anybody takes their numbers."""
        if self._children and not self._closing:
            _log.error("the supervisor of the guests died", guests=len(self._children))
        for started in self._started.values():
            if not started.done():
                started.set_exception(
                    MachineGone("The supervisor of the guests died while this one was started; start it again.")
                )
        children, self._children = self._children, {}
        for child in children.values():
            child.lost = True
            with suppress(ProcessLookupError, PermissionError):
                if sys.platform != "linux" and child.pid:
                    os.kill(child.pid, signal.SIGKILL)
            if not child.ended.done():
                child.ended.set_result(_LOST)


async def _send_files(channel: socket.socket, data: bytes, files: Sequence[int]) -> int:
    while True:
        try:
            return socket.send_fds(channel, [data], list(files))
        except BlockingIOError:
            await asyncio.sleep(_FULL_SECONDS)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
