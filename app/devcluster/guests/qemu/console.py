"""The serial console of a guest, as a file that stays small."""

import asyncio
import socket
from pathlib import Path
from typing import Final

_LARGEST: Final = 4 * 2**20
_TAIL: Final = 8192


class Console:
    """Writes what the guest prints to `path`. At 4 MiB that becomes `path` with `.1` at its end, and a new one begins."""

    def __init__(self, path: Path, channel: socket.socket, *, largest: int = _LARGEST) -> None:
        self.path = path
        self._channel = channel
        self._largest = largest
        self._file = path.open("wb", buffering=0)
        self._size = 0
        self._tail = b""

    def open(self) -> None:
        asyncio.get_running_loop().add_reader(self._channel, self.drain)

    def drain(self) -> None:
        """Takes all that the guest has printed up to now."""
        while self._channel.fileno() >= 0:
            try:
                data = self._channel.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            self._write(data)

    def close(self) -> None:
        if self._channel.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._channel.close()
            self._file.close()

    def tail(self) -> str:
        """The last lines of this boot."""
        self.drain()
        return self._tail.decode(errors="replace")

    def begin_boot(self) -> None:
        self._tail = b""

    def _write(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-_TAIL:]
        if self._size + len(data) > self._largest and self._size:
            self._file.close()
            self.path.replace(self.path.with_name(self.path.name + ".1"))
            self._file, self._size = self.path.open("wb", buffering=0), 0
        self._file.write(data)
        self._size += len(data)
