"""What a machine is to be: plain values, checked before anything is started."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from app.devcluster.guests.qemu.errors import BadPlan
from app.devcluster.guests.qemu.memory_image import MemoryImage

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,98}[a-z0-9])?")
_NODE: Final = re.compile(r"[a-z]([a-z0-9-]{0,29}[a-z0-9])?")  # QEMU's node names end at 31 characters
_MAC: Final = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")  # an odd first byte would be a group of stations
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SERIAL: Final = re.compile(r"[A-Za-z0-9_.+-]{1,20}")  # virtio-blk cuts off what is longer
_CPU: Final = re.compile(r"[A-Za-z0-9_.+=,-]+")
_MIB: Final = 2**20
_MOST_CPUS: Final = 64
_LAST_PORT: Final = 65535


@dataclass(frozen=True)
class Disk:
    node: str
    """The name of the disk within the machine."""
    path: Path
    """Below the folder of all machines. If it is qcow2, the backing files are named relative to it."""
    format: Literal["qcow2", "raw"] = "qcow2"
    read_only: bool = False
    serial: str | None = None


@dataclass(frozen=True)
class Port:
    guest: int
    protocol: Literal["tcp", "udp"] = "tcp"


@dataclass(frozen=True)
class Nic:
    """A network of the machine's own: the host answers DHCP and DNS in it, and forwards `ports` to the guest."""

    mac: str
    """Lower case, with colons."""
    ports: tuple[Port, ...] = (Port(22),)
    outward: bool = True
    """Whether the guest may open connections to the outside, this host's own loopback included."""


@dataclass(frozen=True)
class KernelBoot:
    kernel: Path
    initrd: Path
    append: str


@dataclass(frozen=True)
class FirmwareBoot:
    """The machine boots from its disks, in their order."""

    code: Path | None = None
    """The firmware image of OVMF; None: QEMU's own SeaBIOS."""
    variables: Path | None = None
    """A copy of OVMF's variables for this machine alone, below the folder of all machines. Needed with `code`."""


@dataclass(frozen=True)
class Errand:
    """One program that is run in a restored guest before it counts as ready."""

    path: str
    arguments: tuple[str, ...]
    make_input: Callable[[float], bytes]
    """Its standard input, made just before it runs from the time in seconds since 1970."""
    explain: Callable[[int, bytes], str]
    """A sentence about a failure, from the exit code (not 0) and the standard output."""


@dataclass(frozen=True)
class Helper:
    """A program that errands need, put into the guest before its memory is kept, unless it is there."""

    path: str
    program: bytes


@dataclass(frozen=True)
class MachinePlan:
    name: str
    memory_bytes: int
    cpus: int
    boot: KernelBoot | FirmwareBoot
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    seed: Path | None = None
    """A NoCloud image, attached read-only as the last disk."""
    uuid: str | None = None
    """What the firmware tells the guest as the machine's id."""
    cpu_model: str | None = None
    """QEMU's name of it; None: the host's with KVM, else a plain one that boots soonest (kernel) or can most (firmware)."""
    paused: bool = False
    """The processors stand until `resume`."""
    restore: MemoryImage | None = None
    identity: tuple[Errand, ...] = ()
    """What makes a restored guest one of its own; run in this order. Only for `restore`."""
    helper: Helper | None = None


def check_plan(plan: MachinePlan, folder: Path) -> None:
    """Raises BadPlan. Everything that becomes a part of QEMU's command line is checked here: a comma in a name would be an option."""
    _require(_NAME.fullmatch(plan.name) is not None, f"the name {plan.name!r} is no DNS name of at most 100 characters")
    _require(
        plan.memory_bytes % _MIB == 0 and plan.memory_bytes >= 16 * _MIB,
        f"{plan.memory_bytes} bytes of memory are not whole MiB, or below 16",
    )
    _require(1 <= plan.cpus <= _MOST_CPUS, f"{plan.cpus} processors are not between 1 and {_MOST_CPUS}")
    _require(plan.uuid is None or _UUID.fullmatch(plan.uuid) is not None, f"{plan.uuid!r} is no UUID")
    _require(
        plan.cpu_model is None or _CPU.fullmatch(plan.cpu_model) is not None,
        f"{plan.cpu_model!r} is no processor of QEMU",
    )
    _require(not (plan.restore and plan.paused), "a machine restored from memory runs at once")
    _check_boot(plan, folder.resolve())
    _check_disks(plan.disks, folder.resolve())
    ports = [port for nic in plan.nics for port in nic.ports]
    _require(len(set(ports)) == len(ports), "two NICs forward the same port")
    for nic in plan.nics:
        _require(_MAC.fullmatch(nic.mac) is not None, f"{nic.mac!r} is no MAC address of one station, in lower case")
        _require(all(0 < port.guest <= _LAST_PORT for port in nic.ports), "a port is not between 1 and 65535")


def _check_boot(plan: MachinePlan, folder: Path) -> None:
    boot = plan.boot
    if isinstance(boot, FirmwareBoot):
        _require((boot.code is None) == (boot.variables is None), "OVMF needs its code and its variables")
        if boot.variables is not None:
            _require_below(boot.variables, folder)
    named = (boot.kernel, boot.initrd) if isinstance(boot, KernelBoot) else (boot.code,)
    for path in (*named, plan.seed):
        _require(path is None or path.is_file(), f"there is no file {path}")


def _check_disks(disks: tuple[Disk, ...], folder: Path) -> None:
    _require(len({disk.node for disk in disks}) == len(disks), "two disks have the same name")
    for disk in disks:
        _require(_NODE.fullmatch(disk.node) is not None, f"the disk's name {disk.node!r} is none that QEMU takes")
        _require(
            disk.serial is None or _SERIAL.fullmatch(disk.serial) is not None,
            f"the serial number {disk.serial!r} is none of up to 20 letters and digits",
        )
        _require_below(disk.path, folder)


def _require_below(path: Path, folder: Path) -> None:
    _require(path.is_file(), f"there is no disk {path}")
    _require(
        path.resolve().is_relative_to(folder), f"the disk {path} is not below {folder}, where all disks of guests are"
    )


def _require(holds: bool, sentence: str) -> None:  # noqa: FBT001 - the condition itself
    if not holds:
        raise BadPlan(f"This cannot be a machine: {sentence}.")
