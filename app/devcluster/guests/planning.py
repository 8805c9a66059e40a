"""From a VMI to the machine that it is: size, networks, disks, and what it boots."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from app.devcluster.apiserver.objects import owners_of
from app.devcluster.apiserver.status import Json
from app.devcluster.guests.boot_sectors import Beginning, look_at
from app.devcluster.guests.guest_disks import DiskMaker, GuestDisks, host_name
from app.devcluster.guests.images.built_in import BuiltInGuest
from app.devcluster.guests.images.identity import HELPER_PATH, RELOAD_SSH, calls_to_become, new_identity
from app.devcluster.guests.images.system_calls import CallList, helper
from app.devcluster.guests.images.uefi import find_uefi
from app.devcluster.guests.memory import restored_from
from app.devcluster.guests.qemu.memory_image import MemoryImage
from app.devcluster.guests.qemu.plan import Errand, FirmwareBoot, Helper, KernelBoot, MachinePlan, Nic, Port
from app.devcluster.guests.runtime import Guest
from app.devcluster.guests.shape import Network, fit_size, networks_of

BOOT = "guests.emberpool.io/boot"
NOTES = "guests.emberpool.io/notes"
_UUIDS = uuid.UUID("6f5f2d2e-9f0f-5c0c-8a67-0d1d3b8c7a11")

_RELOAD = Errand(
    "/bin/sh", ("-c", RELOAD_SSH), lambda _: b"", lambda code, _: f"its SSH server did not reload ({code})"
)
"""For a clone of any other guest than the built-in one: its SSH server has the keys of its original in memory."""


class NotBootable(Exception):
    """The disk that the guest is to boot from has nothing to boot; the text says so."""


@dataclass(frozen=True, slots=True)
class Planned:
    """`macs` by the names of the interfaces; the VMI gets the `annotations`."""

    plan: MachinePlan
    macs: dict[str, str]
    annotations: dict[str, str]


class Planner:
    """`most_memory` (bytes) is what a guest has at most, `memory` the folder of kept memory. `built_in` gives the built-in guest, made when it is first needed."""

    def __init__(
        self, disks: DiskMaker, built_in: Callable[[], Awaitable[BuiltInGuest]], most_memory: int, memory: Path
    ) -> None:
        self._disks = disks
        self._memory = memory
        self._built_in = built_in
        self._most_memory = most_memory

    async def plan(self, guest: Guest) -> Planned:
        """Raises VolumeMissing, NotBootable, DiskError, ImageError or MemoryBroken."""
        size = fit_size(guest.vmi["spec"], self._most_memory)
        networks = networks_of(guest.vmi)
        disks = await self._disks.make(guest)
        boot = await self._choose_boot(guest.vmi, disks)
        notes = [*size.notes, *disks.notes]
        plan = MachinePlan(
            name=machine_name(guest),
            memory_bytes=size.memory,
            cpus=size.cpus,
            boot=boot,
            disks=tuple(disks.disks),
            nics=tuple(_nic(network) for network in networks),
            seed=disks.seed,
            uuid=_machine_id(guest.vmi),
            helper=Helper(HELPER_PATH, helper()),
        )
        annotations = {BOOT: "firmware" if isinstance(boot, FirmwareBoot) else "built-in"}
        handle = restored_from(guest.vmi)
        if handle is not None:
            image = await asyncio.to_thread(MemoryImage.open, self._memory / handle)
            errands = (_errand(guest, networks), *([_RELOAD] if isinstance(boot, FirmwareBoot) else []))
            plan = replace(plan, restore=image, identity=errands)
            annotations[BOOT] = "memory"
        if notes:
            annotations[NOTES] = " ".join(notes)
        return Planned(plan, {network.name: network.mac for network in networks}, annotations)

    async def remove(self, uid: str) -> None:
        """The guest has ended."""
        await self._disks.remove(uid)

    async def _choose_boot(self, vmi: Json, disks: GuestDisks) -> KernelBoot | FirmwareBoot:
        if disks.first is not None and await self._boots_itself(disks.first):
            return _firmware(vmi, disks.folder)
        own = await self._built_in()
        return KernelBoot(own.kernel, own.initrd, own.append)

    async def _boots_itself(self, disk: Path) -> bool:
        """Whether the disk has a boot sector. The built-in guest takes an empty disk, or one that it has used, as its own."""
        found = await look_at(disk)
        if found is Beginning.UNKNOWN:
            raise NotBootable(
                "No bootable device: the first disk has no boot sector, and is neither empty nor a disk of the built-in guest. "
                "Use an image that a BIOS can boot."
            )
        return found is Beginning.BOOTABLE


def _firmware(vmi: Json, folder: Path) -> FirmwareBoot:
    """A BIOS, or UEFI where the VMI says so."""
    bootloader = (vmi["spec"]["domain"].get("firmware") or {}).get("bootloader") or {}
    if "efi" not in bootloader:
        return FirmwareBoot()
    uefi = find_uefi()
    if uefi is None:
        raise NotBootable("The VM asks for UEFI, and this machine has no firmware for it: apt-get install ovmf.")
    variables = folder / "uefi-variables.fd"
    variables.write_bytes(uefi.variables.read_bytes())
    return FirmwareBoot(uefi.code, variables)


def machine_name(guest: Guest) -> str:
    return f"{guest.key[1][:40].rstrip('.-')}-{guest.uid}"


def _nic(network: Network) -> Nic:
    ports = [*(Port(port) for port in network.tcp), *(Port(port, "udp") for port in network.udp)]
    return Nic(network.mac, tuple(ports))


def _errand(guest: Guest, networks: list[Network]) -> Errand:
    """What makes a clone of kept memory a machine of its own."""
    identity = new_identity(host_name(guest), mac=networks[0].mac if networks else None)
    calls: list[CallList] = []

    def make_input(now: float) -> bytes:
        calls.append(calls_to_become(identity, now=now))
        return calls[-1].encoded()

    def explain(code: int, told: bytes) -> str:
        return calls[-1].failure(code, told)

    return Errand(HELPER_PATH, (), make_input, explain)


def _machine_id(vmi: Json) -> str:
    """What the VMI says, else the same for all guests of one VM."""
    given = (vmi["spec"]["domain"].get("firmware") or {}).get("uuid")
    owner = next((item["uid"] for item in owners_of(vmi)), vmi["metadata"]["uid"])
    return str(given or uuid.uuid5(_UUIDS, str(owner)))
