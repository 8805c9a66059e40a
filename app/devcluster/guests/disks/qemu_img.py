"""`qemu-img`, a few processes at a time. What takes long does not outlive this process; what fails may leave half a file."""

import asyncio
import json
import os
import re
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.devcluster.guests.disks.errors import DiskError, ImageRefused, NoSpace, QemuImgMissing

_LEASH: Final = Path(__file__).with_name("leash.py")
_PROGRESS: Final = re.compile(rb"\((\d+\.\d+)/100%\)")
_FULL: Final = ("No space left on device", "Disk quota exceeded", "File too large")


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """`size` is what a guest sees, in bytes. `refers_to`: another file that belongs to the image; empty where there is none."""

    format: str
    size: int
    refers_to: str = ""


class QemuImg:
    """At most `cores` processes run at once, and long ones leave room for a short one."""

    def __init__(self, program: str = "qemu-img", cores: int | None = None) -> None:
        self._program = program
        cores = cores or os.cpu_count() or 1
        self._slots = asyncio.Semaphore(cores)
        self._long = asyncio.Semaphore(max(1, cores - 1))

    def find(self) -> None:
        """Raises QemuImgMissing."""
        if shutil.which(self._program) is None:
            raise QemuImgMissing

    async def info(self, path: Path, format_name: str = "") -> ImageInfo:
        """Raises ImageRefused for a file that is no image; without `format_name` the format is found out."""
        given = ("-f", format_name) if format_name else ()
        try:
            told = json.loads(await self._run("info", "--output=json", "-U", *given, str(path)))
        except QemuImgMissing:
            raise
        except DiskError as error:
            raise ImageRefused(f"{path.name} cannot be read as a disk image: {error}") from error
        inner = (told.get("format-specific") or {}).get("data") or {}
        refers_to = told.get("backing-filename") or inner.get("data-file") or ""
        return ImageInfo(str(told["format"]), int(told["virtual-size"]), str(refers_to))

    async def create(self, target: Path, size: int) -> None:
        """An empty qcow2 file of `size` bytes."""
        await self._run("create", "-q", "-f", "qcow2", str(target), str(size))

    async def create_overlay(
        self, target: Path, base: str, size: int | None = None, base_format: str = "qcow2"
    ) -> None:
        """A qcow2 file that has the data of `base` (relative to the folder of `target`, or absolute) until it is written to.

        `size` in bytes, by default that of the base.
        """
        backing = ("-b", base, "-F", base_format)
        sized = () if size is None else (str(size),)
        await self._run("create", "-q", "-f", "qcow2", *backing, str(target), *sized)

    async def resize(self, target: Path, size: int) -> None:
        """Make a qcow2 file larger."""
        await self._run("resize", "-q", "-f", "qcow2", str(target), str(size))

    async def convert(
        self, source: Path, target: Path, *, format_name: str, on_progress: Callable[[float], None]
    ) -> None:
        """Write the data of `source` (and of what it refers to) into a new qcow2 file; `on_progress` gets percentages.

        When cancelled, or if this process dies, the conversion is killed.
        """
        arguments = ("convert", "-p", "-f", format_name, "-O", "qcow2", str(source), str(target))
        async with self._long:
            await self._run(*arguments, on_progress=on_progress)

    async def _run(self, *arguments: str, on_progress: Callable[[float], None] | None = None) -> bytes:
        leash = (sys.executable, "-I", "-S", str(_LEASH)) if on_progress else ()
        async with self._slots:
            try:
                process = await asyncio.create_subprocess_exec(
                    *leash,
                    self._program,
                    *arguments,
                    stdin=PIPE if leash else DEVNULL,
                    stdout=PIPE,
                    stderr=PIPE,
                    env={**os.environ, "LC_ALL": "C"},
                    start_new_session=True,
                    umask=0o022,
                )
            except FileNotFoundError as error:
                raise QemuImgMissing from error
            try:
                told, problem = await asyncio.gather(_follow(process, on_progress), _rest(process))
                code = await process.wait()
            except BaseException:
                await asyncio.shield(_end(process))
                raise
        if code:
            raise _failure(problem, code)
        return told


async def _follow(process: Process, on_progress: Callable[[float], None] | None) -> bytes:
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    if on_progress is None:
        return await process.stdout.read()
    while part := await process.stdout.read(4096):
        found = _PROGRESS.findall(part)
        if found:
            on_progress(float(found[-1]))
    return b""


async def _rest(process: Process) -> str:
    assert process.stderr is not None  # noqa: S101  # it is a pipe
    return (await process.stderr.read()).decode(errors="replace").strip()


async def _end(process: Process) -> None:
    """A leash kills its program when it is let go; anything else is killed by its number."""
    if process.stdin is not None:
        process.stdin.close()
    elif process.returncode is None:
        process.kill()
    await process.wait()


def _failure(problem: str, code: int) -> DiskError:
    lines = problem.splitlines() or [f"it ended with code {code} and said nothing"]
    sentence = lines[-1].removeprefix("qemu-img: ")
    if any(full in problem for full in _FULL):
        return NoSpace(f"{sentence} (qemu-img). Free some space there, or delete disks that are no longer needed")
    return DiskError(f"{sentence} (qemu-img)")
