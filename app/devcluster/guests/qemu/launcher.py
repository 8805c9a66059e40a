"""From a plan to a QEMU process: what it opens, as whom it runs, and its bounds."""

import os
import shutil
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final, TypedDict

from app.devcluster.guests.qemu.addresses import Addresses
from app.devcluster.guests.qemu.agent import GuestAgent
from app.devcluster.guests.qemu.command import RAM_ATTRIBUTES, Wiring, machine_command
from app.devcluster.guests.qemu.console import Console
from app.devcluster.guests.qemu.detect import Found, kvm_groups
from app.devcluster.guests.qemu.disks import OpenDisks
from app.devcluster.guests.qemu.ends import Listener
from app.devcluster.guests.qemu.handles import Handles, new_memory
from app.devcluster.guests.qemu.machine import Machine
from app.devcluster.guests.qemu.monitor import Monitor
from app.devcluster.guests.qemu.plan import KernelBoot, MachinePlan
from app.devcluster.guests.qemu.process import QemuProcess
from app.devcluster.guests.qemu.room import BootSlot
from app.devcluster.guests.qemu.supervision import Supervision
from app.devcluster.guests.qemu.supervisor import Launch

_NOBODY: Final = 65534
_PROCESS_BYTES: Final = 4 * 2**30  # what QEMU maps beside the guest's memory
_OPEN_FILES: Final = 256


class Launcher:
    def __init__(self, folder: Path, found: Found, supervision: Supervision, *, file_bytes: int) -> None:
        self.folder = folder
        self.found = found
        self.supervision = supervision
        self._file_bytes = file_bytes
        self._user = _NOBODY if os.getuid() == 0 else None
        self._addresses = Addresses()
        if self._user is not None:
            folder.chmod(folder.stat().st_mode | 0o011)  # it is the guests' working directory

    def run_folder(self, name: str) -> Path:
        return self.folder / "run" / name

    async def launch(self, plan: MachinePlan, listener: Listener, slot: BootSlot, parts: Mapping[str, str]) -> Machine:
        """Raises StartFailed, NoRoom, BadPlan or OSError."""
        began = monotonic()
        run = self.run_folder(plan.name)
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        disks = OpenDisks(plan.disks, self.folder, self._user)
        endpoints = self._addresses.take(plan.nics)
        with Handles(self._user) as handles, ExitStack() as undo:
            ends = _Ends.open(handles)
            undo.callback(ends.close)
            memory = self._memory(plan, handles, ends, run)
            files = _files(plan, handles, disks)
            command = machine_command(plan, self.found, Wiring(endpoints=endpoints, **ends.numbers, **memory, **files))
            child = await self.supervision.launch(self._order(plan, command, handles), handles.files)
            undo.pop_all()
        process = QemuProcess(
            name=plan.name,
            child=child,
            supervision=self.supervision,
            monitor=Monitor(plan.name, ends.monitor),
            agent=GuestAgent(plan.name, ends.agent),
            console=Console(run / "console", ends.console),
            ram=ends.ram,
            errors=run / "errors",
            began=began,
        )
        flat = tuple(end for of_nic in endpoints for end in of_nic)
        return Machine(plan, process, disks, flat, parts=parts, listener=listener, slot=slot)

    def _memory(self, plan: MachinePlan, handles: Handles, ends: "_Ends", run: Path) -> "_Memory":
        image = plan.restore
        if image is None or not image.shared:
            ends.ram = new_memory(plan.name, run)
            os.ftruncate(ends.ram, plan.memory_bytes)
            return {"ram": handles.path(os.dup(ends.ram)), "kept": False}
        # An older QEMU opens it for writing, although it maps pages of its own and writes none of the file's.
        read_only = self.found.version >= RAM_ATTRIBUTES
        if self._user is not None:
            image.ram.chmod(0o644 if read_only else 0o666)
        return {"ram": handles.path(os.open(image.ram, os.O_RDONLY if read_only else os.O_RDWR)), "kept": True}

    def _order(self, plan: MachinePlan, command: list[str], handles: Handles) -> Launch:
        return {
            "launch": plan.name,
            "command": command,
            "files": len(handles.files),
            "folder": str(self.folder),
            "errors": str(self.run_folder(plan.name) / "errors"),
            "user": self._user,
            "groups": kvm_groups() if self.found.acceleration == "kvm" else [],
            "limits": {
                "RLIMIT_AS": plan.memory_bytes + _PROCESS_BYTES,
                "RLIMIT_NOFILE": _OPEN_FILES,
                "RLIMIT_FSIZE": self._file_bytes,
                "RLIMIT_CORE": 0,
            },
        }


class _Memory(TypedDict):
    ram: str
    kept: bool


class _Files(TypedDict, total=False):
    kernel: str
    initrd: str
    firmware: str
    variables: str
    seed: str
    disks: tuple[str, ...]


class _Numbers(TypedDict):
    monitor: str
    agent: str
    console: str


@dataclass
class _Ends:
    """Our ends of the channels into a process, and its memory."""

    monitor: socket.socket
    agent: socket.socket
    console: socket.socket
    numbers: _Numbers
    ram: int | None = None

    @classmethod
    def open(cls, handles: Handles) -> "_Ends":
        (monitor, first), (agent, second), (console, third) = handles.pair(), handles.pair(), handles.pair()
        return cls(monitor, agent, console, {"monitor": first, "agent": second, "console": third})

    def close(self) -> None:
        for channel in (self.monitor, self.agent, self.console):
            channel.close()
        if self.ram is not None:
            os.close(self.ram)


def _files(plan: MachinePlan, handles: Handles, disks: OpenDisks) -> _Files:
    """Everything that QEMU reads or writes, as it names it. The guest's own disks become its user's."""
    for disk in plan.disks:
        if not disk.read_only:
            disks.hand_over(disk.path)
    files: _Files = {"disks": tuple(disks.relative(disk.path) for disk in plan.disks)}
    if plan.seed is not None:
        files["seed"] = handles.readable(plan.seed)
    boot = plan.boot
    if isinstance(boot, KernelBoot):
        files |= {"kernel": handles.readable(boot.kernel), "initrd": handles.readable(boot.initrd)}
    elif boot.code is not None and boot.variables is not None:
        disks.hand_over(boot.variables)
        files |= {"firmware": handles.readable(boot.code), "variables": disks.relative(boot.variables)}
    return files
