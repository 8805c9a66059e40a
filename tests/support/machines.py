"""Real QEMU machines for tests: the QEMU there is, the built-in guest, one booted template, and clones of its memory.

A guest takes seconds to boot and a fraction of one to be restored. So a module boots one, and its tests take clones of it.
"""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest

from app.devcluster.guests.images.built_in import BuiltInGuest, built_in_guest
from app.devcluster.guests.images.errors import ImageError
from app.devcluster.guests.images.identity import HELPER_PATH, Identity, calls_to_become, new_identity
from app.devcluster.guests.qemu.detect import Found, probe_machines
from app.devcluster.guests.qemu.ends import End
from app.devcluster.guests.qemu.errors import MachinesUnavailable
from app.devcluster.guests.qemu.facts import Facts
from app.devcluster.guests.qemu.machine import Machine
from app.devcluster.guests.qemu.machines import Machines, open_machines
from app.devcluster.guests.qemu.memory_image import MemoryImage
from app.devcluster.guests.qemu.plan import Disk, Errand, KernelBoot, MachinePlan, Nic
from tests.support.patience import PATIENCE

MEMORY: Final = 128 * 2**20
BOOT_SECONDS: Final = 3 * PATIENCE
"""A guest that is emulated beside other tests."""
TEMPLATE_MAC: Final = "52:54:00:e0:00:01"
_DISK: Final = "64M"


@dataclass
class Heard:
    """A listener that keeps what a machine told."""

    told: list[str] = field(default_factory=list)
    end: End | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def running(self) -> None:
        self._add("running")

    def agent(self, connected: bool) -> None:  # noqa: FBT001 - the listener's form
        self._add("connected" if connected else "disconnected")

    def stalled(self, sentence: str) -> None:
        self._add(f"stalled: {sentence}")

    def ended(self, end: End) -> None:
        self.end = end
        self._add("ended")

    async def until(self, told: str, *, times: int = 1, seconds: float = BOOT_SECONDS) -> None:
        async with asyncio.timeout(seconds):
            while self.told.count(told) < times:
                self._changed.clear()
                await self._changed.wait()

    async def until_ended(self) -> End:
        await self.until("ended")
        assert self.end is not None
        return self.end

    def _add(self, told: str) -> None:
        self.told.append(told)
        self._changed.set()


@dataclass
class Rig:
    """Machines, and the kept memory of a guest with one disk that has booted."""

    folder: Path
    found: Found
    machines: Machines
    plan: MachinePlan
    """Of the template; it has ended."""
    image: MemoryImage
    template: Heard = field(default_factory=Heard)
    facts: Facts | None = None
    _clones: int = 0

    def clone_plan(self, image: MemoryImage | None = None, **changes: Any) -> tuple[MachinePlan, Identity]:
        """A clone of the template, or of another kept memory, with a disk over the layer that belongs to it."""
        self._clones += 1
        image = image or self.image
        name = f"clone-{self._clones}"
        identity = new_identity(name, mac=f"52:54:00:e1:{self._clones >> 8:02x}:{self._clones & 255:02x}")
        disk = overlay(self.folder, f"{name}.qcow2", image.disks["root"])
        plan = replace(
            self.plan,
            name=name,
            nics=(replace(self.plan.nics[0], mac=identity.mac or ""),),
            disks=(Disk("root", disk),),
            restore=image,
            identity=(errand_of(identity),),
        )
        return replace(plan, **changes), identity

    async def clone(self, image: MemoryImage | None = None, **changes: Any) -> tuple[Machine, Heard, Identity]:
        plan, identity = self.clone_plan(image, **changes)
        heard = Heard()
        return await self.machines.start(plan, heard), heard, identity


def find_qemu() -> Found:
    """Skips the test where there is none that works."""
    try:
        found = asyncio.run(probe_machines())
    except MachinesUnavailable as error:
        pytest.skip(str(error))
    if shutil.which("qemu-img") is None:
        pytest.skip("There is no qemu-img here. Debian and Ubuntu: apt-get install qemu-utils.")
    return found


def find_guest() -> BuiltInGuest:
    """Skips the test where the built-in guest cannot be made."""
    try:
        return asyncio.run(built_in_guest())
    except ImageError as error:
        pytest.skip(f"The built-in guest cannot be made: {error}")


@asynccontextmanager
async def open_rig(folder: Path, found: Found, guest: BuiltInGuest) -> AsyncIterator[Rig]:
    create_disk(folder, "template.qcow2")
    plan = template_plan(folder, guest)
    async with open_machines(folder, found) as machines:
        heard = Heard()
        template = await machines.start(plan, heard)
        await heard.until("connected")
        facts = await template.facts()
        image = await template.save_memory(folder / "memory", layer_of("template.qcow2"), go_on=False)
        await template.kill()
        await heard.until_ended()
        yield Rig(folder, found, machines, plan, image, heard, facts)


@asynccontextmanager
async def reopen_rig(folder: Path, found: Found, guest: BuiltInGuest) -> AsyncIterator[Rig]:
    """The folder of a rig that is closed: its template's memory, and machines anew."""
    async with open_machines(folder, found) as machines:
        yield Rig(folder, found, machines, template_plan(folder, guest), MemoryImage.open(folder / "memory"))


def template_plan(folder: Path, guest: BuiltInGuest) -> MachinePlan:
    return MachinePlan(
        "template",
        MEMORY,
        1,
        KernelBoot(guest.kernel, guest.initrd, guest.append),
        disks=(Disk("root", folder / "template.qcow2"),),
        nics=(Nic(TEMPLATE_MAC),),
    )


def errand_of(identity: Identity) -> Errand:
    """What makes a clone of the built-in guest this machine."""

    def explain(code: int, out: bytes) -> str:
        return calls_to_become(identity, now=0).failure(code, out)

    return Errand(HELPER_PATH, (), lambda now: calls_to_become(identity, now=now).encoded(), explain)


def layer_of(name: str) -> Any:
    """A `freeze` for a machine that will not write to its disk any more: the file itself is the layer."""

    async def freeze() -> Mapping[str, str]:
        return {"root": name}

    return freeze


def create_disk(folder: Path, name: str) -> Path:
    return _qemu_img(folder, "create", "-q", "-f", "qcow2", name, _DISK)


def overlay(folder: Path, name: str, base: str) -> Path:
    """A new disk over a layer, which is named relative to it."""
    return _qemu_img(folder, "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, name)


async def shell(machine: Machine, script: str) -> str:
    """What a script prints in the guest. Fails with what it says on standard error."""
    ran = await machine.run("/bin/sh", "-c", script, seconds=PATIENCE)
    assert ran.code == 0, ran.errors.decode(errors="replace")
    return ran.out.decode().strip()


def _qemu_img(folder: Path, *arguments: str) -> Path:
    subprocess.run(["qemu-img", *arguments], cwd=folder, check=True, timeout=PATIENCE)
    return folder / next(argument for argument in reversed(arguments) if argument.endswith(".qcow2"))
