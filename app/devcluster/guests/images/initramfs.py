"""The built-in guest's root: an archive made of unpacked packages, the scripts in `guest/`, and the helper of `system_calls`."""

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.devcluster.guests.images import system_calls as calls
from app.devcluster.guests.images.cpio import CpioArchive
from app.devcluster.guests.images.errors import GuestUnavailable
from app.devcluster.guests.images.identity import HELPER_PATH
from app.devcluster.guests.images.kernel_modules import KernelModule, modules_in_order
from app.devcluster.guests.images.shared_libraries import libraries_of

GUEST_FILES: Final = Path(__file__).with_name("guest")

_PROGRAMS: Final = ("usr/bin/busybox", "usr/sbin/qemu-ga", "usr/sbin/sshd", "usr/bin/ssh-keygen", "usr/sbin/mke2fs")
_NEWER_PROGRAMS: Final = (
    "usr/lib/openssh/sshd-session",
    "usr/lib/openssh/sshd-auth",
)  # sshd's parts since OpenSSH 9.8 and 10.0
_SCRIPTS: Final = {"init": "init", "shutdown": "usr/sbin/shutdown"} | {
    name: f"usr/lib/emberpool/{name}" for name in ("setup", "shared", "dhcp", "commands", "agent", "farewell")
}
_FOLDERS: Final = {
    **dict.fromkeys(
        ("proc", "sys", "dev", "run", "disk", "newroot", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64"), 0o755
    ),
    **dict.fromkeys(("etc/ssh/sshd_config.d", "var/lib/emberpool", "var/log", "home", "mnt"), 0o755),
    **dict.fromkeys(("root", "root/.ssh"), 0o700),
    **dict.fromkeys(("tmp", "var/tmp"), 0o1777),
}
_LINKS: Final = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "var/run": "/run"}
_TEXTS: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nsshd:x:100:100::/run/sshd:/bin/false\n",
    "etc/group": "root:x:0:\nsshd:x:100:\n",
    "etc/shells": "/bin/sh\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "etc/profile": "export PATH=/usr/sbin:/usr/bin\n",
    "etc/os-release": 'ID=emberpool\nNAME="Emberpool built-in guest"\nPRETTY_NAME="Emberpool built-in guest"\nVERSION_ID="1"\n',
}

_NEEDED_MODULES: Final = ("virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "ext4", "overlay")
_OTHER_MODULES: Final = (
    "virtio_rng",
    "vmgenid",
    "virtio_balloon",
    "crc32c_generic",
    "crc32c_intel",
    "isofs",
    "af_packet",
)

_MOUNT: Final = 165
_MAKE_FOLDER: Final = 83
_MOUNTS: Final = (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("devpts", "/dev/pts"), ("tmpfs", "/run"))


@dataclass(frozen=True, slots=True)
class GuestParts:
    kernel: bytes
    initramfs: bytes


def assemble(root: Path) -> GuestParts:
    """The kernel, and the archive that it boots into, from the packages unpacked in `root`. Blocks for some seconds.

    Raises GuestUnavailable if something is missing in the packages.
    """
    archive = CpioArchive()
    for name, target in _LINKS.items():
        archive.link(name, target)
    for name, mode in _FOLDERS.items():
        archive.folder(name, mode)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    _add_own_files(archive)
    _add_programs(archive, root)
    _add_modules(archive, modules_in_order(root, (*_NEEDED_MODULES, *_OTHER_MODULES), frozenset(_NEEDED_MODULES)))
    return GuestParts(_kernel(root), archive.finished())


def _add_own_files(archive: CpioArchive) -> None:
    for script, name in _SCRIPTS.items():
        archive.file(name, (GUEST_FILES / script).read_bytes(), 0o755)
    archive.file("etc/inittab", (GUEST_FILES / "inittab").read_bytes())
    archive.file("etc/ssh/sshd_config", (GUEST_FILES / "sshd_config").read_bytes())
    for name, text in _TEXTS.items():
        archive.file(name, text.encode())
    archive.file("etc/shadow", b"root:*:19000:0:99999:7:::\nsshd:!:19000:0:99999:7:::\n", 0o600)
    archive.file(_inside(HELPER_PATH), calls.helper(), 0o755)


def _add_programs(archive: CpioArchive, root: Path) -> None:
    programs = {name: path for name in _PROGRAMS + _NEWER_PROGRAMS if (path := _unpacked(root, name))}
    if missing := [name for name in _PROGRAMS if name not in programs]:
        raise GuestUnavailable(
            f"The packages of the built-in guest have no {', '.join(missing)}; this distribution is not known to work."
        )
    for name, path in programs.items():
        archive.file(name, path.read_bytes(), 0o755)
    for name, path in libraries_of(root, programs.values()).items():
        folder = "usr/lib64" if name.startswith("ld-linux") else "usr/lib/x86_64-linux-gnu"
        archive.file(f"{folder}/{name}", path.read_bytes(), 0o755)
    for name in _applets(programs["usr/bin/busybox"]):
        if name not in archive:
            archive.link(name, "/usr/bin/busybox")


def _applets(busybox: Path) -> Iterable[str]:
    """The names under which busybox is to be found, as usr/sbin/NAME or usr/bin/NAME."""
    listed = subprocess.run([busybox, "--list-full"], capture_output=True, text=True, check=True, timeout=60)  # noqa: S603 -- from a signed package
    for applet in listed.stdout.split():
        path = Path(applet)
        yield f"usr/{'sbin' if path.parent.name == 'sbin' else 'bin'}/{path.name}"


def _add_modules(archive: CpioArchive, modules: list[KernelModule]) -> None:
    for module in modules:
        archive.file(_file_of(module), module.data)
    archive.file("usr/lib/emberpool/boot.calls", _boot_calls(modules).encoded())


def _boot_calls(modules: list[KernelModule]) -> calls.CallList:
    """What the guest does first: its mounts and modules, in one process. A module that has no device on this machine may fail."""
    boot = calls.CallList()
    boot.step("mount its file systems")
    for kind, folder in _MOUNTS:
        boot.try_call(_MAKE_FOLDER, f"{folder}\0".encode(), 0o755)
        boot.call(_MOUNT, f"{kind}\0".encode(), f"{folder}\0".encode(), f"{kind}\0".encode(), 0, b"\0")
    boot.step("load its modules")
    for module in modules:
        call = boot.call if module.name in _NEEDED_MODULES else boot.try_call
        boot.try_call(calls.CLOSE, calls.FIRST_FREE)
        call(calls.OPEN, f"/{_file_of(module)}\0".encode(), os.O_RDONLY, 0)
        call(calls.FINIT_MODULE, calls.FIRST_FREE, b"\0", 0)
    return boot


def _file_of(module: KernelModule) -> str:
    return f"usr/lib/modules/{module.name}.ko"


def _kernel(root: Path) -> bytes:
    """The kernel's file. Raises GuestUnavailable if the packages have none, or more than one."""
    found = sorted(
        {path.resolve() for pattern in ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz") for path in root.glob(pattern)}
    )
    if len(found) != 1:
        raise GuestUnavailable(f"The packages of the built-in guest have {len(found)} kernels, and it takes one.")
    return found[0].read_bytes()


def _unpacked(root: Path, name: str) -> Path | None:
    """Older packages have in /bin and /sbin what newer ones have in /usr."""
    for candidate in (root / name, root / name.removeprefix("usr/")):
        if candidate.is_file():
            return candidate
    return None


def _inside(path: str) -> str:
    return "usr" + path if path.startswith(("/bin/", "/sbin/")) else path.removeprefix("/")
