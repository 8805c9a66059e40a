"""One guest that runs: what was asked of it, what its machine tells, and what its listener has been told."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from app.devcluster.apiserver.conditions import holds
from app.devcluster.apiserver.status import Json
from app.devcluster.guests.disks.errors import DiskError
from app.devcluster.guests.guest_disks import VolumeMissing
from app.devcluster.guests.images.errors import ImageError
from app.devcluster.guests.memory import MISMATCH, NOT_RESTORED, restored_from
from app.devcluster.guests.planning import NotBootable, Planned
from app.devcluster.guests.qemu import errors
from app.devcluster.guests.qemu.ends import End as MachineEnd
from app.devcluster.guests.qemu.facts import Facts
from app.devcluster.guests.qemu.machine import Machine
from app.devcluster.guests.qemu.machines import Machines
from app.devcluster.guests.qemu.memory_image import MemoryImage
from app.devcluster.guests.readiness import Probe
from app.devcluster.guests.runtime import AgentFacts, Domain, End, Guest, GuestListener

SSH: Final = "guests.emberpool.io/ssh"
SSH_HOST_KEY: Final = "guests.emberpool.io/ssh-host-key"
_HOST_KEY_FILE: Final = "/etc/ssh/ssh_host_ed25519_key.pub"
_SYNC_FAILED: Final = "Synchronizing with the Domain failed."
_RETRY_SECONDS: Final = 2.0
_MACHINE_TYPE: Final = "q35"
_SHUT_DOWN: Final = "The VirtualMachineInstance was shut down."
_CRASHED: Final = "The VirtualMachineInstance crashed."
_LATER: Final = (errors.NoRoom, VolumeMissing, ImageError)
"""What may be otherwise in a moment: it is tried again. Anything else ends the guest."""
_NEVER: Final = (errors.MachineError, DiskError, NotBootable)
_log = structlog.get_logger(__name__)


class Maker(Protocol):
    """Makes the plan of a guest with its disks, and takes them away. `remove` lets claims go too."""

    async def plan(self, guest: Guest) -> Planned: ...

    async def remove(self, uid: str) -> None: ...


class RealGuest:
    """Lives from the start of a VMI's machine until the VMI or its pod is gone. It outlives its machine: the console stays."""

    def __init__(self, guest: Guest, machines: Machines, maker: Maker, listener: GuestListener) -> None:
        self.guest = guest
        self.machine: Machine | None = None
        self._machines = machines
        self._maker = maker
        self._listener = listener
        self._planned: Planned | None = None
        self._held = False
        self._runs = False
        self._has_agent = False
        self._is_heard = True
        self._told_connected = False
        self._over = False
        self._is_stopping = False
        self._is_killed = False
        self._probe: Probe | None = None
        self._nodes: dict[Path, str] = {}
        self._is_saving = False
        self._work: set[asyncio.Task[None]] = set()
        self._starting: asyncio.Task[None] | None = None
        self._connecting: asyncio.Task[None] | None = None

    @property
    def node(self) -> str:
        return self.guest.node

    @property
    def over(self) -> bool:
        """Its machine has ended, or never came to be."""
        return self._over

    # What is asked of it

    def start(self, guest: Guest, *, held: bool) -> None:
        self.guest, self._held = guest, held
        if self._starting is None:
            self._starting = self._begin(self._start())
        elif self.machine is not None and not held and not self._runs:
            self._begin(self._resume(self.machine))

    def attend(self, guest: Guest, *, heard: bool) -> None:
        self.guest, self._is_heard = guest, heard
        self._told_connected = holds(guest.vmi["status"].get("conditions"), "AgentConnected")
        self._follow_agent()

    def probe(self, spec: Json, *, ready: bool) -> None:
        """Look at its readiness again and again, beginning now unless that is under way."""
        if self._probe is None and self.machine is not None and not self._over:
            self._probe = Probe(self.machine, spec, self._tell_probed)
            self._probe.begin(ready=ready)

    def leave_unprobed(self) -> None:
        if self._probe is not None:
            self._probe.stop()
            self._probe = None

    def shut_down(self, grace_seconds: float) -> None:
        if self.machine is None:
            self._cancel_start()
            self._end(End(failed=False, message=_SHUT_DOWN))
        elif not self._is_stopping:
            self._is_stopping = True
            self._begin(self.machine.shut_down(grace_seconds))

    def kill(self) -> None:
        self._is_killed = True
        if self.machine is None:
            self._cancel_start()
            self._end(End(failed=True, message=_CRASHED))
        else:
            self._begin(self.machine.kill())

    async def forget(self) -> None:
        """Ends what is left of it, and tells nothing more."""
        self._over = True
        self.leave_unprobed()
        for task in tuple(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        if self.machine is not None:
            with suppress(errors.MachineError):
                await self.machine.kill()
            self._machines.forget(self.machine.name)
        await self._maker.remove(self.guest.uid)

    async def pivot(self, disk: Path, overlay: Path) -> bool:
        """Let it write to `overlay` instead of `disk`; False where it has no such disk open."""
        node = self._nodes.get(disk)
        if node is None or self.machine is None:
            return False
        frozen = await self._freeze(self.machine)
        try:
            await self.machine.snapshot_disk(node, overlay)
        finally:
            if frozen:
                with suppress(errors.MachineError):
                    await self.machine.thaw_filesystems()
        self._nodes[overlay] = self._nodes.pop(disk)
        return True

    async def save_memory(self, target: Path, freeze: Callable[[], Awaitable[None]]) -> MemoryImage:
        """Keep its memory in the folder `target`, and what `freeze` keeps of the same moment. Raises MachineError or DiskError."""
        if self.machine is None or self._over:
            raise errors.MachineGone("The guest is gone.")

        async def freeze_disks() -> Mapping[str, str]:
            await freeze()
            return {}

        self._is_saving = True
        try:
            return await self.machine.save_memory(target, freeze_disks)
        finally:
            self._is_saving = False

    # What its machine tells

    def running(self) -> None:
        self._runs = True
        self._tell_started()

    def agent(self, connected: bool) -> None:  # noqa: FBT001  # as the machine calls it
        self._has_agent = connected
        self._follow_agent()

    def stalled(self, sentence: str) -> None:
        if not self._over:
            self._listener.stalled(self.guest.key, sentence)

    def ended(self, end: MachineEnd) -> None:
        switched_off = end.reason == "shutdown" or (end.reason == "killed" and not self._is_killed)
        message = _SHUT_DOWN if switched_off else " ".join(filter(None, (_CRASHED, end.detail)))
        self._end(End(failed=not switched_off, message=message))

    # How

    async def _start(self) -> None:
        try:
            while True:
                if await self._try_to_start():
                    return
                await asyncio.sleep(_RETRY_SECONDS)
        except _NEVER as error:
            self._end(End(failed=True, message=_sentence(error), reason=self._reason(error)))
        except Exception as error:  # noqa: BLE001  # whatever it is, the VMI must not wait for ever
            _log.exception("guest_failed", guest=self.guest.key)
            self._end(End(failed=True, message=f"{type(error).__name__}: {error}", reason=_SYNC_FAILED))

    def _reason(self, error: Exception) -> str:
        if restored_from(self.guest.vmi) is None:
            return _SYNC_FAILED
        return MISMATCH if isinstance(error, errors.MemoryMismatch) else NOT_RESTORED

    async def _try_to_start(self) -> bool:
        """False: not now."""
        try:
            self._planned = await self._maker.plan(self.guest)
            held = self._held
            machine = await self._machines.start(replace(self._planned.plan, paused=held), self)
        except _LATER as error:
            self._listener.refused(self.guest.key, _sentence(error))
            return False
        self.machine = machine
        self._nodes = {disk.path: disk.node for disk in self._planned.plan.disks}
        if held and not self._held:
            await machine.resume()
        self._tell_started()
        self._follow_agent()
        return True

    async def _resume(self, machine: Machine) -> None:
        await machine.resume()

    def _tell_started(self) -> None:
        if self._over or self.machine is None or self._planned is None or not self._runs or self._held:
            return
        notes = dict(self._planned.annotations)
        endpoint = self.machine.endpoint(22)
        if endpoint is not None:
            notes[SSH] = f"{endpoint.host}:{endpoint.port}"
        domain = Domain(self.machine.address, self._planned.macs, _MACHINE_TYPE, notes)
        self._listener.started(self.guest.key, domain)

    def _follow_agent(self) -> None:
        if self._over:
            return
        if not self._has_agent:
            if self._told_connected:
                self._told_connected = False
                self._listener.disconnected(self.guest.key)
        elif self._is_heard and not self._told_connected and self.machine is not None and not self._is_connecting:
            self._connecting = self._begin(self._connect(self.machine))

    @property
    def _is_connecting(self) -> bool:
        return self._connecting is not None and not self._connecting.done()

    async def _connect(self, machine: Machine) -> None:
        facts = await machine.facts()
        if not self._has_agent or not self._is_heard or self._over:
            return
        self._told_connected = True
        named = {interface.mac: interface.name for interface in facts.interfaces}
        self._listener.connected(self.guest.key, AgentFacts(_system(facts), named))
        shown = await machine.run("/bin/cat", _HOST_KEY_FILE)
        if shown.code == 0 and not self._over:
            self._listener.noted(self.guest.key, {SSH_HOST_KEY: shown.out.decode().strip()})

    async def _freeze(self, machine: Machine) -> bool:
        """Whether the guest's file systems are at rest. A guest without an agent is as one that loses its power."""
        if self._is_saving or not self._has_agent:
            return False
        try:
            await machine.freeze_filesystems()
        except (errors.AgentSilent, errors.GuestRefused) as error:
            _log.info("guest_not_frozen", guest=self.guest.key, problem=str(error))
            return False
        return True

    def _tell_probed(self, healthy: bool) -> None:  # noqa: FBT001  # a callback's one value
        if not self._over:
            self._listener.probed(self.guest.key, healthy=healthy)

    def _end(self, end: End) -> None:
        if self._over:
            return
        self._over = True
        self.leave_unprobed()
        self._begin(self._maker.remove(self.guest.uid))
        self._listener.ended(self.guest.key, end)

    def _cancel_start(self) -> None:
        if self._starting is not None:
            self._starting.cancel()

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._quietly(work))
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    async def _quietly(self, work: Awaitable[None]) -> None:
        """A machine that ends or does not answer meanwhile tells so itself."""
        try:
            await work
        except (errors.MachineError, DiskError) as error:
            _log.info("guest_did_not_follow", guest=self.guest.key, problem=str(error))


def _system(facts: Facts) -> Json:
    os = facts.os
    told = {
        "id": os.id,
        "kernelRelease": os.kernel_release,
        "kernelVersion": os.kernel_version,
        "machine": os.machine,
        "name": os.name,
        "prettyName": os.pretty_name,
        "version": os.version,
        "versionId": os.version_id,
    }
    return {name: value for name, value in told.items() if value}


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:]
