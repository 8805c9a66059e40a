"""What is at the beginning of a disk: something that firmware can boot, a file system, or nothing."""

import asyncio
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from enum import Enum
from pathlib import Path

from app.devcluster.guests.disks.errors import DiskError

_LOOKED_AT = 2048
_BOOT_SIGNATURE = (510, b"\x55\xaa")
_EXT4_MAGIC = (1024 + 56, b"\x53\xef")


class Beginning(Enum):
    BOOTABLE = "a boot sector"
    FILE_SYSTEM = "a file system of Linux"
    BLANK = "nothing"
    UNKNOWN = "something that is neither"


async def look_at(path: Path) -> Beginning:
    """Look at a qcow2 file. Raises DiskError."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "head"
        options = ("dd", "-U", "-f", "qcow2", "-O", "raw", f"bs={_LOOKED_AT}", "count=1", f"if={path}", f"of={target}")
        process = await asyncio.create_subprocess_exec("qemu-img", *options, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE)
        _, problem = await process.communicate()
        if process.returncode:
            raise DiskError(f"the disk {path.name} cannot be read: {problem.decode(errors='replace').strip()}")
        return judge(target.read_bytes())


def judge(head: bytes) -> Beginning:
    """Judge a disk by its first bytes."""
    for (place, mark), found in ((_BOOT_SIGNATURE, Beginning.BOOTABLE), (_EXT4_MAGIC, Beginning.FILE_SYSTEM)):
        if head[place : place + len(mark)] == mark:
            return found
    return Beginning.UNKNOWN if any(head) else Beginning.BLANK
