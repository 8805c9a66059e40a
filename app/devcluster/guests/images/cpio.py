"""Archives in the kernel's initramfs format: cpio "newc" (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

Written here because a file's owner, mode and device numbers are numbers in it: no root is needed to make a device node or a file of root's.
"""

import stat
from pathlib import PurePosixPath
from typing import Final

_TRAILER: Final = "TRAILER!!!"
_LARGEST: Final = 2**32 - 1


class CpioArchive:
    """Entries are owned by root, have no time, and keep their order; folders that are missing are added before what is in them."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = {"."}
        self._inode = 0

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def folder(self, name: str, mode: int = 0o755) -> None:
        """Add a folder unless it is there. Names have no slash at the start."""
        if name in self._names:
            return
        self._inside_its_folder(name)
        self._entry(name, stat.S_IFDIR | mode, links=2)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Raises ValueError if the name is taken, or the file has 4 GiB or more."""
        self._new(name)
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._new(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        self._new(name)
        self._entry(name, stat.S_IFCHR | mode, device=(major, minor))

    def finished(self) -> bytes:
        """The whole archive. The object can be added to, and finished again."""
        return b"".join((*self._parts, _encoded(_TRAILER, 0, 0, b"", 1, (0, 0))))

    def _new(self, name: str) -> None:
        if name in self._names:
            raise ValueError(f"the archive has '{name}' already")
        self._inside_its_folder(name)

    def _inside_its_folder(self, name: str) -> None:
        if not name or name.startswith("/"):
            raise ValueError(f"'{name}' is not a name inside of an archive")
        self.folder(str(PurePosixPath(name).parent))

    def _entry(self, name: str, mode: int, data: bytes = b"", links: int = 1, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        self._names.add(name)
        self._parts.append(_encoded(name, self._inode, mode, data, links, device))


def _encoded(name: str, inode: int, mode: int, data: bytes, links: int, device: tuple[int, int]) -> bytes:
    if len(data) > _LARGEST:
        raise ValueError(f"'{name}' has {len(data)} bytes, and a cpio archive holds files below 4 GiB")
    path = name.encode() + b"\0"
    owner, group, modified, home, check = 0, 0, 0, (0, 0), 0
    numbers = (inode, mode, owner, group, links, modified, len(data), *home, *device, len(path), check)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return _padded(header + path) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
