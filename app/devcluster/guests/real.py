"""Guests that run: each is a process of QEMU. They end with the dev cluster, whatever their VMIs say when it is back."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from app.devcluster.apiserver.status import ApiError, Json
from app.devcluster.guests.console_file import ConsoleFile
from app.devcluster.guests.disks.errors import DiskError
from app.devcluster.guests.memory import MemoryOutcome
from app.devcluster.guests.qemu.errors import MachineError, MachineGone
from app.devcluster.guests.qemu.machine import Machine
from app.devcluster.guests.qemu.machines import Machines
from app.devcluster.guests.readiness import needs_agent
from app.devcluster.guests.real_guest import Maker, RealGuest
from app.devcluster.guests.runtime import End, Guest, GuestListener

_GRACE_SECONDS = 30
_GONE = End(
    failed=True,
    message="The VirtualMachineInstance crashed. Its guest ended with its node, or with an earlier dev cluster.",
)
_SHUT_DOWN = End(failed=False, message="The VirtualMachineInstance was shut down.")


Freeze = Callable[[Mapping[str, str]], Awaitable[None]]
"""Keeps the disks of volumes as those of snapshots: names of PersistentVolumes, each with that of a VolumeSnapshotContent."""


class QemuGuests:
    """A GuestRuntime over machines of QEMU. `use` gives it what makes its plans and freezes disks, before the first guest starts.

    `memory` is the folder of kept memory.
    """

    def __init__(self, machines: Machines, memory: Path) -> None:
        self._machines = machines
        self._memory = memory
        self._guests: dict[str, RealGuest] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def use(self, maker: Maker, freeze: Freeze) -> None:
        self._maker = maker
        self._freeze = freeze

    def listen(self, listener: GuestListener) -> None:
        self._listener = listener

    def stop(self) -> None:
        for uid in tuple(self._guests):
            self.forget(uid)

    async def close(self) -> None:
        """Wait until everything that was forgotten is gone."""
        self.stop()
        while self._leaving:
            await asyncio.wait(tuple(self._leaving))

    def start(self, guest: Guest, *, held: bool, fails: bool) -> None:
        if fails:
            self._listener.ended(guest.key, End(failed=True, message="The VirtualMachineInstance crashed."))
            return
        if guest.uid not in self._guests:
            self._guests[guest.uid] = RealGuest(guest, self._machines, self._maker, self._listener)
        self._guests[guest.uid].start(guest, held=held)

    def attend(self, guest: Guest, *, heard: bool) -> None:
        found = self._guests.get(guest.uid)
        if found is None:
            self._listener.ended(guest.key, _GONE)
        else:
            found.attend(guest, heard=heard)

    def probe(self, guest: Guest, *, ready: bool) -> None:
        found = self._guests.get(guest.uid)
        if found is not None:
            found.probe(guest.vmi["spec"]["readinessProbe"], ready=ready)

    def leave_unprobed(self, uid: str) -> None:
        if uid in self._guests:
            self._guests[uid].leave_unprobed()

    def probe_needs_agent(self, vmi: Json) -> bool:
        return needs_agent(vmi["spec"]["readinessProbe"])

    def shut_down(self, guest: Guest) -> None:
        found = self._guests.get(guest.uid)
        if found is None:
            self._listener.ended(guest.key, _SHUT_DOWN)
            return
        found.leave_unprobed()
        found.shut_down(float(guest.vmi["spec"].get("terminationGracePeriodSeconds", _GRACE_SECONDS)))

    def kill(self, guest: Guest) -> None:
        if guest.uid in self._guests:
            self._guests[guest.uid].kill()

    def forget(self, uid: str) -> None:
        found = self._guests.pop(uid, None)
        if found is not None:
            self._begin(found.forget())

    def switch_off(self, node: str) -> None:
        for uid, found in tuple(self._guests.items()):
            if found.node == node:
                self.forget(uid)

    def console(self, uid: str) -> ConsoleFile | None:
        """What the guest of this VMI has printed, also once it has ended; None before its machine is there."""
        found = self._guests.get(uid)
        if found is None or found.machine is None:
            return None
        return ConsoleFile(found.machine.console, lambda: found.over)

    # Memory

    @property
    def keeps_memory(self) -> bool:
        return True

    def memory_fingerprint(self, vmi: Json) -> str | None:  # noqa: ARG002  # it depends on the plan, which is made at the start
        return None

    def save_memory(
        self, guest: Guest, handle: str, disks: Mapping[str, str], done: Callable[[MemoryOutcome], None]
    ) -> None:
        self._begin(self._save(guest.uid, handle, disks, done))

    def remove_memory(self, handle: str) -> None:
        self._begin(asyncio.to_thread(shutil.rmtree, self._memory / handle, ignore_errors=True))

    async def _save(
        self, uid: str, handle: str, disks: Mapping[str, str], done: Callable[[MemoryOutcome], None]
    ) -> None:
        found = self._guests.get(uid)
        try:
            if found is None:
                raise MachineGone("The guest is gone.")
            self._memory.mkdir(exist_ok=True)
            image = await found.save_memory(self._memory / handle, lambda: self._freeze(disks))
        except (MachineError, DiskError, OSError) as error:
            done(MemoryOutcome(error=str(error)))
        else:
            done(MemoryOutcome("", image.bytes, image.fingerprint, image.stood_still))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    # Verbs

    async def pause(self, guest: Guest) -> None:
        await self._do(guest, lambda machine: machine.pause())

    async def unpause(self, guest: Guest) -> None:
        await self._do(guest, lambda machine: machine.resume())

    async def reboot(self, guest: Guest) -> None:
        await self._do(guest, lambda machine: machine.reboot())

    async def pivot(self, disk: Path, overlay: Path) -> bool:
        """Let the guest that has `disk` open write to `overlay` instead; False where none has it."""
        for found in tuple(self._guests.values()):
            if not found.over and await found.pivot(disk, overlay):
                return True
        return False

    def find(self, uid: str) -> RealGuest | None:
        """The guest of a VMI; its console stays when it has ended."""
        return self._guests.get(uid)

    async def _do(self, guest: Guest, verb: Callable[[Machine], Coroutine[Any, Any, None]]) -> None:
        """Raises ApiError where the guest has ended or does not answer."""
        found = self._guests.get(guest.uid)
        if found is None or found.machine is None:
            raise _failed("the guest is gone")
        try:
            await verb(found.machine)
        except MachineError as error:
            raise _failed(str(error)) from error


def _failed(why: str) -> ApiError:
    return ApiError(500, "InternalError", f"Internal error occurred: {why}")
