"""Open files that a QEMU process is given.

QEMU runs as a user who may see nothing of ours. What it reads (kernel, seed, kept memory) is opened here and handed over, and it
opens it again under /dev/fd, for which the rights of the file count and not those of the folders above.
"""

import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from app.devcluster.guests.qemu.supervisor import FILE_MARK


class Handles:
    """Open files for one launch, in the order in which they are handed over. Closed at the end of the block: QEMU has its own then."""

    def __init__(self, user: int | None) -> None:
        self.files: list[int] = []
        self._user = user

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self.files:
            os.close(file)

    def give(self, file: int) -> str:
        """Takes over an open file. What the command line says for its number."""
        self.files.append(file)
        return FILE_MARK.format(len(self.files) - 1)

    def pair(self) -> tuple[socket.socket, str]:
        """Our end of a new socket pair, and the number of the other."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        return ours, self.give(theirs.detach())

    def path(self, file: int) -> str:
        """Takes over an open file. A path at which QEMU opens it."""
        return f"/dev/fd/{self.give(file)}"

    def readable(self, path: Path) -> str:
        """A path at which QEMU reads this file."""
        file = os.open(path, os.O_RDONLY)
        found = os.fstat(file)
        if self._user in {None, found.st_uid} or found.st_mode & 0o004:
            return self.path(file)
        with os.fdopen(file, "rb") as source, os.fdopen(new_memory("copy", path.parent), "wb") as copy:
            shutil.copyfileobj(source, copy)
            copy.flush()
            return self.path(os.dup(copy.fileno()))


def new_memory(name: str, folder: Path) -> int:
    """An open file without a name, which is gone with the last process that has it open: in memory on Linux, else in `folder`."""
    if sys.platform == "linux":
        return os.memfd_create(name)
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())
