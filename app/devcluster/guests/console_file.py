"""What a guest that runs has printed: read from the file that its machine writes, which is replaced by a new one when it is full."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import BinaryIO

_LOOK_SECONDS = 0.2
_PIECE = 65536


class ConsoleFile:
    """`is_over` tells whether the guest has ended, after which it prints nothing more."""

    def __init__(self, path: Path, is_over: Callable[[], bool]) -> None:
        self._path = path
        self._is_over = is_over

    async def read(self, *, lines: int | None, follow: bool) -> AsyncGenerator[bytes]:
        """The last `lines` (None: all that is kept), and with `follow` what comes, until the guest has ended."""
        try:
            file: BinaryIO = self._path.open("rb")
        except FileNotFoundError:
            return
        try:
            if kept := _last(self._before() + file.read(), lines):
                yield kept
            while follow:
                over = self._is_over()
                while piece := file.read(_PIECE):
                    yield piece
                if (newer := self._replaced(file)) is not None:
                    yield file.read()
                    file.close()
                    file = newer
                elif over:
                    return
                else:
                    await asyncio.sleep(_LOOK_SECONDS)
        finally:
            file.close()

    def _before(self) -> bytes:
        """What was printed before the present file began."""
        try:
            return self._path.with_name(f"{self._path.name}.1").read_bytes()
        except FileNotFoundError:
            return b""

    def _replaced(self, file: BinaryIO) -> BinaryIO | None:
        """The file that took the place of this one, opened; None while it is the present one."""
        try:
            newer = self._path.open("rb")
        except FileNotFoundError:
            return None
        if _number(newer) == _number(file):
            newer.close()
            return None
        return newer


def _number(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_ino


def _last(data: bytes, lines: int | None) -> bytes:
    return data if lines is None else b"".join(data.splitlines(keepends=True)[-lines:] if lines else ())
