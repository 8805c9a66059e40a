"""The folder of the disks: its index, its lock, its files, and what a crash may have left in it."""

import asyncio
import contextlib
import fcntl
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, Final, Self

import structlog

from app.devcluster.guests.disks.chains import Chains
from app.devcluster.guests.disks.errors import DiskError, NoSpace

_INDEX: Final = "index.json"
_LOCK: Final = "lock"
_NUMBERED: Final = re.compile(r"disk-(\d+)\.qcow2")
_log = structlog.get_logger(__name__)


class DiskFolder:
    """One process at a time. A file counts only once the index has it; the index is replaced in one step."""

    def __init__(self, path: Path, lock: IO[str], chains: Chains) -> None:
        self.path = path
        self.chains = chains
        self._lock = lock
        self._writing = asyncio.Lock()
        self._made = max((int(found[1]) for name in chains.files if (found := _NUMBERED.fullmatch(name))), default=0)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Make the folder or take it up: files that the index does not have are removed, names whose files are missing are
        forgotten. Raises DiskError where another process has it, or where its index cannot be read.
        """
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)
        lock = (path / _LOCK).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder = cls(path, lock, _read(path / _INDEX))
            folder._sweep()
        except BlockingIOError as error:
            lock.close()
            told = f"the disks in {path} are in use by another dev cluster"
            raise DiskError(f"{told}: stop it, or name another folder") from error
        except BaseException:
            lock.close()
            raise
        return folder

    def close(self) -> None:
        self._lock.close()

    async def change(self, change: Callable[[Chains], None], *, removes: bool = False) -> None:
        """Change the chains and the index, then remove the files that are garbage now. Once begun it is not cancelled.

        `removes`: the change only takes names away, so that it can be made where the file system has no room for the index.
        """
        await uninterrupted(self._change(change, removes=removes))

    @asynccontextmanager
    async def new_file(self) -> AsyncIterator[str]:
        """The name of a new file. If the block fails before the index has it, the file is removed."""
        self._made += 1
        file = f"disk-{self._made:06}.qcow2"
        try:
            yield file
        except BaseException:
            if file not in self.chains.files:
                await asyncio.to_thread(self._unlink, [file])
            raise

    async def _change(self, change: Callable[[Chains], None], *, removes: bool) -> None:
        async with self._writing:
            chains = self.chains.copy()
            change(chains)
            garbage = chains.take_garbage()
            try:
                await asyncio.to_thread(self._write, chains)
            except OSError as error:
                if not removes:
                    raise NoSpace(f"the list of disks in {self.path} cannot be written: {error.strerror}") from error
                # If we die between these two, the next start finds the names without files, and forgets them.
                await asyncio.to_thread(self._unlink, garbage)
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(self._write, chains)
            self.chains = chains
            await asyncio.to_thread(self._unlink, garbage)

    def _write(self, chains: Chains) -> None:
        partial = self.path / f"{_INDEX}.part"
        with partial.open("w") as file:
            json.dump(chains.to_json(), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path / _INDEX)

    def _unlink(self, files: list[str]) -> None:
        for file in files:
            (self.path / file).unlink(missing_ok=True)

    def _sweep(self) -> None:
        present = {each.name for each in self.path.iterdir()}
        broken = self.chains.take_broken(present)
        if broken:
            _log.error("disks_missing", folder=str(self.path), disks=broken)
        self.chains.take_garbage()
        self._unlink(sorted(present - {_INDEX, _LOCK, *self.chains.files}))
        self._write(self.chains)


async def uninterrupted(work: Coroutine[Any, Any, None]) -> None:
    """Await it to its end, also when cancelled meanwhile, which is raised after it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # so that nobody is told of an error that nobody awaits
        raise


def _read(index: Path) -> Chains:
    try:
        return Chains.from_json(json.loads(index.read_bytes()))
    except FileNotFoundError:
        return Chains()
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        told = f"{index} cannot be read ({error}): without it nobody knows which disk is which"
        raise DiskError(f"{told}. Restore it, or remove its folder and the saved state of the dev cluster") from error
