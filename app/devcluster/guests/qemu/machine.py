"""One running machine: what is asked of it, and what it tells by itself."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic, time, time_ns
from typing import Final

from app.devcluster.guests.qemu.addresses import Endpoint
from app.devcluster.guests.qemu.agent import Ran
from app.devcluster.guests.qemu.command import AGENT_PORT
from app.devcluster.guests.qemu.disks import OpenDisks
from app.devcluster.guests.qemu.ends import PANIC, EndReason, Listener, describe_end, describe_stall
from app.devcluster.guests.qemu.errors import (
    AgentSilent,
    GuestRefused,
    MachineError,
    MachineGone,
    MemoryBroken,
    StartFailed,
)
from app.devcluster.guests.qemu.facts import Facts, ask_facts
from app.devcluster.guests.qemu.keeping import Freeze, Kept, prepare_guest, write_image
from app.devcluster.guests.qemu.memory_image import MemoryImage, check_target
from app.devcluster.guests.qemu.migration import load_state
from app.devcluster.guests.qemu.monitor import Json
from app.devcluster.guests.qemu.plan import Errand, MachinePlan
from app.devcluster.guests.qemu.process import QemuProcess
from app.devcluster.guests.qemu.room import BootSlot

_GREET_SECONDS: Final = 30.0
_AGAIN_SECONDS: Final = 1.0
_RESTORED_SECONDS: Final = 60.0
_ERRAND_SECONDS: Final = 60.0
_QUIT_SECONDS: Final = 5.0
_BOOT_SECONDS: Final = 60.0


class Machine:
    def __init__(
        self,
        plan: MachinePlan,
        process: QemuProcess,
        disks: OpenDisks,
        endpoints: tuple[Endpoint, ...],
        *,
        parts: Mapping[str, str],
        listener: Listener,
        slot: BootSlot,
    ) -> None:
        self.plan = plan
        self.endpoints = endpoints
        self.agent_connected = False
        self.stages: dict[str, float] = {}
        """Seconds from the order to start until: `qemu` takes commands, the memory is `loaded`, the agent has `answered`, and
        the guest has its `identity` (the last three in a restore); the guest is `running`; its agent is `connected`."""
        self._process = process
        self._disks = disks
        self._parts = parts
        self._listener = listener
        self._slot = slot
        self._is_up = False
        self._was_running = False
        self._paused = plan.paused
        self._why: EndReason | None = None
        self._one_at_a_time = asyncio.Lock()
        self._greeting: asyncio.Task[None] | None = None
        self._clock: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def pid(self) -> int:
        return self._process.child.pid

    @property
    def console(self) -> Path:
        """A file of at most 4 MiB with what the guest prints; what was before is in one with `.1` at its end."""
        return self._process.console.path

    @property
    def address(self) -> str:
        return self.endpoints[0].host if self.endpoints else ""

    def endpoint(self, guest_port: int) -> Endpoint | None:
        return next((one for one in self.endpoints if one.guest_port == guest_port), None)

    async def pause(self) -> None:
        """Raises MachineGone."""
        async with self._one_at_a_time:
            await self._process.monitor.execute("stop")
            self._paused = True

    async def resume(self) -> None:
        """The guest's clock, which stood still, is set if its agent answers. Raises MachineGone."""
        async with self._one_at_a_time:
            await self._process.monitor.execute("cont")
            self._paused = False
        self._tell_running()
        if self.agent_connected:
            self._clock = asyncio.create_task(self._set_clock(), name=f"clock-of-{self.name}")

    async def shut_down(self, grace_seconds: float) -> None:
        """Asks the guest to switch itself off, and ends it after that time. Returns when it has ended."""
        with suppress(MachineError):
            if self._paused:
                await self.resume()
            await self._ask_to_switch_off()
        if not await self._ends_within(grace_seconds):
            self._why = self._why or "killed"
            await self._process.monitor.quit()
        if not await self._ends_within(_QUIT_SECONDS):
            await self.kill()

    async def kill(self) -> None:
        """Returns when it has ended."""
        self._why = self._why or "killed"
        self._process.kill()
        await self._process.wait()

    async def facts(self) -> Facts:
        """Raises AgentSilent."""
        return await ask_facts(self._process.agent)

    async def run(self, path: str, *arguments: str, stdin: bytes = b"", seconds: float = 30) -> Ran:
        """Runs a program in the guest, through its agent. Raises AgentSilent or GuestRefused."""
        return await self._process.agent.run(path, *arguments, stdin=stdin, seconds=seconds)

    async def ping(self, seconds: float = 10) -> None:
        """Returns when the agent answers. Raises AgentSilent."""
        await self._process.agent.sync(seconds)

    async def freeze_filesystems(self) -> None:
        """For a snapshot of the disks alone. Raises AgentSilent or GuestRefused."""
        await self._process.agent.call("guest-fsfreeze-freeze")

    async def thaw_filesystems(self) -> None:
        """Raises AgentSilent or GuestRefused."""
        await self._process.agent.call("guest-fsfreeze-thaw")

    async def snapshot_disk(self, node: str, overlay: Path) -> None:
        """From now on the guest writes to `overlay`, an empty qcow2 file whose backing file is the disk's present top.

        Raises BadPlan, MonitorFailed (the guest goes on with the present top then) or MachineGone.
        """
        await self._disks.snapshot(self._process.monitor, node, overlay)

    async def reboot(self) -> None:
        """By the guest itself if its agent is there, else as by the machine's reset button. Raises AgentSilent or MachineGone."""
        if self.agent_connected:
            await self._process.agent.tell("guest-shutdown", {"mode": "reboot"})
        else:
            await self._process.monitor.execute("system_reset")

    async def save_memory(self, target: Path, freeze: Freeze, *, go_on: bool = True) -> MemoryImage:
        """Keeps the guest's memory in the folder `target`, which must not exist; clones of this moment start from it.

        `freeze` is called while the guest stands still, to freeze its disks at the same moment. With `go_on` the guest runs on
        (unless it was paused). Raises BadPlan, AgentSilent, GuestRefused, MonitorFailed, MachineGone, MemoryBroken or what `freeze` raises;
        the target does not exist then, and the guest goes on.
        """
        async with self._one_at_a_time:
            check_target(target)
            was_paused = self._paused
            if was_paused:
                await self._process.monitor.execute("cont")
            try:
                await prepare_guest(self._process, self.plan.helper)
            except BaseException:
                if was_paused:
                    await self._process.monitor.execute("stop")
                raise
            await self._process.monitor.execute("stop")
            self._paused = was_paused or not go_on

            async def let_go() -> None:
                if not self._paused:
                    await self._process.monitor.execute("cont")

            return await write_image(Kept(self._process, self._parts, self.plan.memory_bytes), target, freeze, let_go)

    async def bring_up(self) -> None:
        """The first thing to be called. Raises StartFailed and what a restore raises; the process has ended then."""
        try:
            await self._process.open(self._hear)
            self._reached("qemu")
            if self.plan.restore is not None:
                await self._restore(self.plan.restore)
            elif not self.plan.paused:
                await self._process.monitor.execute("cont")
        except MachineGone as error:
            raise StartFailed(f"{error} It said: {self._process.last_words() or 'nothing'}") from error
        self._is_up = True
        if not self.plan.paused:
            self._tell_running()
        if self.plan.restore is not None:
            self._greeted()
        asyncio.get_running_loop().call_later(_BOOT_SECONDS, self._slot.give_back)

    async def finish(self, forget: Callable[[], None]) -> None:
        """Waits for the end of the process, and tells it if the machine was ever up; its place is free then (`forget`)."""
        code = await self._process.wait()
        await self._process.close()
        for task in (self._greeting, self._clock):
            if task is not None:
                task.cancel()
        if self._is_up:
            self._slot.give_back()
            forget()
            self._listener.ended(describe_end(self._process, self._why, code))

    def expect_end(self) -> None:
        """All machines are about to be ended."""
        self._why = self._why or "killed"

    async def _restore(self, image: MemoryImage) -> None:
        try:
            await load_state(self._process.monitor, self.name, image.state, ram_apart=image.shared)
        except MemoryBroken as error:
            raise MemoryBroken(f"{error} QEMU said: {self._process.last_words() or 'nothing'}") from error
        self._reached("loaded")
        await self._process.monitor.execute("cont")
        await self._process.agent.sync(_RESTORED_SECONDS)
        self._reached("answered")
        for errand in self.plan.identity:
            await self._do(errand)
        self._reached("identity")

    async def _do(self, errand: Errand) -> None:
        ran = await self._process.agent.run(
            errand.path, *errand.arguments, stdin=errand.make_input(time()), seconds=_ERRAND_SECONDS
        )
        if ran.code:
            raise GuestRefused(
                f"The restored guest {self.name} could not get an identity of its own: {errand.explain(ran.code, ran.out)}"
            )

    async def _set_clock(self) -> None:
        with suppress(MachineError):
            await self._process.agent.call("guest-set-time", {"time": time_ns()})

    def _hear(self, event: Json) -> None:
        data = event.get("data", {})
        match event["event"]:
            case "SHUTDOWN":
                self._shut_down(data.get("reason", ""))
            case "RESET" if data.get("guest"):
                self._reset()
            case "GUEST_PANICKED":
                self._why = "panicked"
            case "BLOCK_IO_ERROR" if data.get("action") == "stop":
                self._listener.stalled(describe_stall(self.name, data))
            case "VSERPORT_CHANGE" if data.get("id") == AGENT_PORT:
                self._agent_changed(opened=bool(data.get("open")))

    def _shut_down(self, reason: str) -> None:
        if reason == "guest-shutdown":
            self._why = self._why or "shutdown"
        elif reason == "guest-panic":
            self._why = "panicked"

    def _reset(self) -> None:
        """A guest that panics resets itself (panic=-1), and would do so for ever."""
        if PANIC in self._process.console.tail():
            self._why = "panicked"
            self._process.kill()
        else:
            self._process.console.begin_boot()

    def _agent_changed(self, *, opened: bool) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
            self._greeting = None
        if opened and self._may_greet():
            self._greeting = asyncio.create_task(self._greet(), name=f"agent-of-{self.name}")
        elif not opened and self.agent_connected:
            self.agent_connected = False
            self._listener.agent(False)

    def _may_greet(self) -> bool:
        """A restored guest counts as there when it has its identity, and not before."""
        return self.plan.restore is None or self._is_up

    async def _greet(self) -> None:
        while True:
            try:
                await self._process.agent.sync(_GREET_SECONDS)
            except AgentSilent:
                await asyncio.sleep(_AGAIN_SECONDS)  # the machine may just be ending
            else:
                break
        self._greeted()

    def _greeted(self) -> None:
        self._slot.give_back()
        if not self.agent_connected:
            self.agent_connected = True
            self._reached("connected")
            self._listener.agent(True)

    def _reached(self, stage: str) -> None:
        self.stages.setdefault(stage, monotonic() - self._process.began)

    def _tell_running(self) -> None:
        if not self._was_running:
            self._was_running = True
            self._reached("running")
            self._listener.running()

    async def _ask_to_switch_off(self) -> None:
        if self.agent_connected:
            await self._process.agent.tell("guest-shutdown", {"mode": "powerdown"})
        else:
            await self._process.monitor.execute("system_powerdown")  # a guest with an ACPI daemon hears it

    async def _ends_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()
                return True
        return False
