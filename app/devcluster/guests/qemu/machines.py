"""All machines of one process: how they are started, how many there may be, and that none outlives us."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from app.devcluster.guests.qemu.detect import Found
from app.devcluster.guests.qemu.ends import Listener
from app.devcluster.guests.qemu.errors import BadPlan, MemoryMismatch, StartFailed
from app.devcluster.guests.qemu.fingerprint import difference, fingerprint_parts
from app.devcluster.guests.qemu.launcher import Launcher
from app.devcluster.guests.qemu.machine import Machine
from app.devcluster.guests.qemu.plan import MachinePlan, check_plan
from app.devcluster.guests.qemu.room import BootSlot, Limits, open_boot_slots, open_room
from app.devcluster.guests.qemu.supervision import Supervision

_ADDRESS_TRIES: Final = 3
_ADDRESS_TAKEN: Final = "host forwarding rule"


@asynccontextmanager
async def open_machines(
    folder: Path, found: Found, limits: Limits | None = None, *, ephemeral: Path | None = None
) -> AsyncIterator["Machines"]:
    """Machines whose disks are below `folder`. All of them end with the block, and with this process however that ends.

    `folder`/run and `ephemeral` are removed then; what an earlier process left in `folder`/run is removed now.
    """
    machines = _open(folder, found, limits or Limits(), ephemeral)
    try:
        yield machines
    finally:
        await machines.close()


def _open(folder: Path, found: Found, limits: Limits, ephemeral: Path | None) -> "Machines":
    folder = folder.resolve()
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    temporary = (run, ephemeral) if ephemeral else (run,)
    return Machines(Launcher(folder, found, Supervision(temporary), file_bytes=limits.file_bytes), limits, temporary)


class Machines:
    def __init__(self, launcher: Launcher, limits: Limits, temporary: tuple[Path, ...]) -> None:
        self.found = launcher.found
        self._launcher = launcher
        self._temporary = temporary
        self._room = open_room(limits)
        self._slots = open_boot_slots(limits)
        self._running: dict[str, Machine] = {}
        self._finishing: set[asyncio.Task[None]] = set()

    @property
    def supervisor_pid(self) -> int | None:
        """None before the first machine."""
        return self._launcher.supervision.pid

    def all(self) -> tuple[Machine, ...]:
        """Those that have not ended, also while they are started."""
        return tuple(self._running.values())

    def room(self, memory_bytes: int) -> None:
        """Raises NoRoom if no machine with so much memory can be started now."""
        self._room.check(memory_bytes)

    async def start(self, plan: MachinePlan, listener: Listener) -> Machine:
        """Returns when the machine runs: its guest begins to boot, or is restored and has its own identity.

        Waits while as many others boot as this host has processors. Raises BadPlan, MemoryMismatch, MemoryBroken, NoRoom,
        StartFailed, AgentSilent or GuestRefused; nothing of the machine is left then.
        """
        check_plan(plan, self._launcher.folder)
        if plan.name in self._room.promised:
            raise BadPlan(f"A machine {plan.name} is there already.")
        self._room.take(plan.name, plan.memory_bytes)
        try:
            parts = await self.fingerprint(plan)
            slot = await self._slots.take()
            try:
                return await self._begin(plan, listener, slot, parts)
            except BaseException:
                slot.give_back()
                raise
        except BaseException:
            self._room.give_back(plan.name)
            raise

    async def fingerprint(self, plan: MachinePlan) -> Mapping[str, str]:
        """What memory kept of this machine is tied to. Raises MemoryMismatch if `plan.restore` is tied to something else."""
        parts = await asyncio.to_thread(fingerprint_parts, plan, self.found)
        if plan.restore is not None and (other := difference(plan.restore.parts, parts)):
            raise MemoryMismatch(
                f"The memory in {plan.restore.folder} cannot be restored here, because {other}. Keep it anew, or boot from the disks."
            )
        return parts

    def forget(self, name: str) -> None:
        """Removes the run folder, with the console, of a machine that has ended."""
        if name not in self._room.promised:
            shutil.rmtree(self._launcher.run_folder(name), ignore_errors=True)

    async def close(self) -> None:
        for machine in self._running.values():
            machine.expect_end()
        await self._launcher.supervision.close()
        if self._finishing:
            await asyncio.wait(self._finishing)
        for folder in self._temporary:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _begin(self, plan: MachinePlan, listener: Listener, slot: BootSlot, parts: Mapping[str, str]) -> Machine:
        tries = _ADDRESS_TRIES
        while True:
            machine = await self._launcher.launch(plan, listener, slot, parts)
            finishing = asyncio.create_task(machine.finish(lambda: self._gone(plan.name)), name=f"machine-{plan.name}")
            self._finishing.add(finishing)
            finishing.add_done_callback(self._finishing.discard)
            self._running[plan.name] = machine
            try:
                await machine.bring_up()
            except BaseException as error:
                await self._drop(machine, finishing)
                tries -= 1
                # Another program began to listen between our look and QEMU's start.
                if isinstance(error, StartFailed) and _ADDRESS_TAKEN in str(error) and tries:
                    continue
                raise
            return machine

    async def _drop(self, machine: Machine, finishing: asyncio.Task[None]) -> None:
        self._running.pop(machine.name, None)
        await machine.kill()
        await asyncio.wait([finishing])

    def _gone(self, name: str) -> None:
        self._running.pop(name, None)
        self._room.give_back(name)
