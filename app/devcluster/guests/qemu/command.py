"""QEMU's command line for a plan.

The same plan gives the same devices at the same places, because kept memory is only of use to the same machine. What differs
from one start to the next is in `Wiring`; the fingerprint is the command line with a wiring that is always the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from app.devcluster.guests.qemu.addresses import Endpoint
from app.devcluster.guests.qemu.detect import SANDBOX, Found
from app.devcluster.guests.qemu.plan import Disk, FirmwareBoot, KernelBoot, MachinePlan

AGENT_PORT: Final = "agent0"
"""QEMU's id of the port through which the guest agent speaks."""
_AGENT_NAME: Final = "org.qemu.guest_agent.0"
_MIB: Final = 2**20
_TRANSLATED_MIB: Final = 256  # the bound of TCG's translated code; QEMU's own is up to 1 GiB
RAM_ATTRIBUTES: Final = (8, 2)
"""Since this version QEMU maps memory of a file that it may not write."""


@dataclass(frozen=True)
class Wiring:
    """What a command line names and a plan does not: numbers of open files, paths as QEMU sees them, addresses."""

    monitor: str
    agent: str
    console: str
    ram: str
    """The path of the file that is the guest's memory."""
    kept: bool
    """`ram` is a kept memory: it is read, and what the guest writes goes to pages of its own."""
    kernel: str = ""
    initrd: str = ""
    firmware: str = ""
    seed: str = ""
    disks: tuple[str, ...] = ()
    variables: str = ""
    endpoints: tuple[tuple[Endpoint, ...], ...] = ()


def machine_command(plan: MachinePlan, found: Found, wiring: Wiring) -> list[str]:
    """The machine stands when QEMU is up: somebody has to say `cont`, and before that load the memory of `plan.restore`."""
    return [
        *(found.binary, "-name", plan.name, "-S"),
        *(("-sandbox", SANDBOX) if found.sandbox else ()),
        *(("-incoming", "defer") if plan.restore else ()),
        *_channels(wiring),
        *(("-uuid", plan.uuid) if plan.uuid else ()),
        *_memory(plan, found, wiring),
        *device_words(plan, found, wiring),
    ]


def device_words(plan: MachinePlan, found: Found, wiring: Wiring) -> list[str]:
    """The part that is the machine itself: what a kept memory was kept of."""
    firmware = isinstance(plan.boot, FirmwareBoot) and plan.boot.code is not None
    flash = ",pflash0=code,pflash1=variables" if firmware else ""
    translated = f",tb-size={_TRANSLATED_MIB}" if found.acceleration == "tcg" else ""
    return [
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-M", f"q35,hpet=off,memory-backend=ram{flash}"),
        *("-accel", found.acceleration + translated, "-cpu", cpu_model(plan, found)),
        *("-m", f"{plan.memory_bytes // _MIB}M", "-smp", str(plan.cpus)),
        *_boot(plan, wiring),
        *("-device", "virtio-serial-pci,id=serial0"),
        *("-device", f"virtserialport,bus=serial0.0,chardev=agent,name={_AGENT_NAME},id={AGENT_PORT}"),
        *("-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"),
        *("-device", "vmgenid,guid=auto", "-device", "pvpanic", "-action", "panic=shutdown"),
        *_nics(plan, wiring),
        *_disks(plan, wiring),
    ]


def neutral(plan: MachinePlan) -> tuple[MachinePlan, Wiring]:
    """The plan and a wiring with all that may differ between a machine and the clones of its memory taken out."""
    nics = tuple(replace(nic, mac="", ports=()) for nic in plan.nics)
    wiring = Wiring(
        monitor="",
        agent="",
        console="",
        ram="",
        kept=False,
        seed="seed",
        disks=tuple(disk.node for disk in plan.disks),
        endpoints=((),) * len(nics),
    )
    return replace(plan, nics=nics), wiring


def cpu_model(plan: MachinePlan, found: Found) -> str:
    """`max` would cost a kernel that boots directly a third more time by emulation; a cloud image may need what it has."""
    if plan.cpu_model is not None:
        return plan.cpu_model
    if found.acceleration == "kvm":
        return "host"
    return "qemu64" if isinstance(plan.boot, KernelBoot) else "max"


def _channels(wiring: Wiring) -> Iterator[str]:
    for name, number in (("monitor", wiring.monitor), ("agent", wiring.agent), ("console", wiring.console)):
        yield from ("-chardev", f"socket,id={name},fd={number}")
    yield from ("-mon", "chardev=monitor,mode=control", "-serial", "chardev:console")


def _memory(plan: MachinePlan, found: Found, wiring: Wiring) -> Iterator[str]:
    share = "off" if wiring.kept else "on"
    if wiring.kept and found.version >= RAM_ATTRIBUTES:
        share += ",readonly=on,rom=off"
    yield from ("-object", f"memory-backend-file,id=ram,size={plan.memory_bytes},mem-path={wiring.ram},share={share}")


def _boot(plan: MachinePlan, wiring: Wiring) -> Iterator[str]:
    if isinstance(plan.boot, KernelBoot):
        yield from ("-kernel", wiring.kernel, "-initrd", wiring.initrd, "-append", plan.boot.append)
    elif plan.boot.code is not None:
        yield from ("-blockdev", _blockdev("code", "raw", wiring.firmware, read_only=True))
        yield from ("-blockdev", _blockdev("variables", "raw", wiring.variables, read_only=False))


def _nics(plan: MachinePlan, wiring: Wiring) -> Iterator[str]:
    for place, (nic, endpoints) in enumerate(zip(plan.nics, wiring.endpoints, strict=True)):
        forwards = "".join(f",hostfwd={end.protocol}:{end.host}:{end.port}-:{end.guest_port}" for end in endpoints)
        yield from ("-netdev", f"user,id=net{place},restrict={'off' if nic.outward else 'on'}{forwards}")
        yield from ("-device", f"virtio-net-pci,netdev=net{place},id=nic{place},mac={nic.mac},romfile=")


def _disks(plan: MachinePlan, wiring: Wiring) -> Iterator[str]:
    boots = isinstance(plan.boot, FirmwareBoot)
    for place, (disk, path) in enumerate(zip(plan.disks, wiring.disks, strict=True)):
        yield from ("-blockdev", _blockdev(disk.node, disk.format, path, read_only=disk.read_only))
        yield from ("-device", _block_device(disk, place + 1 if boots else None))
    if plan.seed is not None:
        yield from ("-blockdev", _blockdev("seed", "raw", wiring.seed, read_only=True))
        yield from ("-device", "virtio-blk-pci,drive=seed,id=disk-seed")


def _block_device(disk: Disk, boot_index: int | None) -> str:
    serial = f",serial={disk.serial}" if disk.serial else ""
    boot = f",bootindex={boot_index}" if boot_index else ""
    return f"virtio-blk-pci,drive={disk.node},id=disk-{disk.node}{serial}{boot}"


def _blockdev(node: str, form: str, path: str, *, read_only: bool) -> str:
    rights = "read-only=on" if read_only else "discard=unmap"
    return f"driver={form},node-name={node},file.driver=file,file.filename={escape(path)},{rights}"


def escape(path: str) -> str:
    """A comma in a value is written twice."""
    return path.replace(",", ",,")
