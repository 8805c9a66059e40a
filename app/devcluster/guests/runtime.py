"""What virt-handler may ask of guests, and what it is told about them.

Every request returns at once and may be repeated: it names what should be, and asking again for what is already under way
changes nothing. What comes of it is told to the listener on the event loop, so that a controller simply looks at the
VMI again. A guest is known by the UID of its VMI.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from app.devcluster.apiserver.objects import Key
from app.devcluster.apiserver.status import Json
from app.devcluster.guests.memory import MemoryOutcome


@dataclass(frozen=True, slots=True)
class Guest:
    """A VMI whose pod runs on a node, both as they are stored now."""

    key: Key
    vmi: Json
    pod: Json

    @property
    def uid(self) -> str:
        return str(self.vmi["metadata"]["uid"])

    @property
    def node(self) -> str:
        return str(self.pod["spec"].get("nodeName", ""))


@dataclass(frozen=True, slots=True)
class Domain:
    """A guest whose virtual machine runs. `address` is that of its first interface, `macs` those of all by their names in
    the spec, `machine` the type of the virtual machine. The VMI gets the `annotations`.
    """

    address: str
    macs: Mapping[str, str]
    machine: str
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What the guest agent tells: `system` as `status.guestOSInfo`, `interfaces` the names in the guest by MAC address."""

    system: Json
    interfaces: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class End:
    """Why a guest ended. `failed` where it was not shut down; `message` is a sentence that says how it ended.

    A guest that could not even start has a `reason` too, which the VMI's condition Synchronized gets.
    """

    failed: bool
    message: str
    reason: str = ""


class GuestListener(Protocol):
    """Is told what becomes of guests, each named by the key of its VMI."""

    def started(self, key: Key, domain: Domain) -> None: ...

    def refused(self, key: Key, message: str) -> None:
        """It cannot start now, for the reason that the message says; it is tried again."""

    def connected(self, key: Key, facts: AgentFacts) -> None: ...

    def disconnected(self, key: Key) -> None: ...

    def noted(self, key: Key, annotations: Mapping[str, str]) -> None:
        """Something became known of a running guest: the VMI gets these annotations."""

    def stalled(self, key: Key, message: str) -> None:
        """It stands still because of an error of a disk, as the message says, until it is unpaused."""

    def probed(self, key: Key, *, healthy: bool) -> None:
        """The readiness probe succeeded, or failed as often as it may."""

    def ended(self, key: Key, end: End) -> None: ...


class Console(Protocol):
    def read(self, *, lines: int | None, follow: bool) -> AsyncGenerator[bytes]:
        """The last `lines` (None: all that is kept), and with `follow` what comes, until the guest has ended."""


class GuestRuntime(Protocol):
    @property
    def keeps_memory(self) -> bool:
        """Whether the memory of guests can be kept and restored."""

    def listen(self, listener: GuestListener) -> None:
        """Tell this listener, and it alone, what becomes of guests. Called once, before any guest starts."""

    def stop(self) -> None:
        """Tell nothing more: the controllers are gone."""

    # A guest's life, in the order of the calls

    def start(self, guest: Guest, *, held: bool, fails: bool) -> None:
        """Start the virtual machine of a scheduled VMI. One that is `held` does not begin to run before it is asked for
        without; one that `fails` ends instead.
        """

    def attend(self, guest: Guest, *, heard: bool) -> None:
        """Follow a running guest. One that is not `heard` must not connect: its agent's answers are ignored."""

    def probe(self, guest: Guest, *, ready: bool) -> None:
        """Look at the readiness of a guest whose VMI has a probe; `ready` is what was told of it last."""

    def leave_unprobed(self, uid: str) -> None: ...

    def probe_needs_agent(self, vmi: Json) -> bool:
        """Whether the readiness probe of the VMI can only succeed while the agent is connected."""

    def shut_down(self, guest: Guest) -> None:
        """Let the guest shut itself down, and end it when its grace period is over."""

    def kill(self, guest: Guest) -> None:
        """End the guest at once, as a crash."""

    def forget(self, uid: str) -> None:
        """The VMI or its pod is gone: end what is left of the guest, and tell nothing of it."""

    def switch_off(self, node: str) -> None:
        """The node lost its power, and its guests with it."""

    def console(self, uid: str) -> Console | None:
        """What the guest has printed, also once it has ended; None where it has no console: it is not there yet, or runs nothing."""

    # Memory

    def memory_fingerprint(self, vmi: Json) -> str | None:
        """What memory must have been kept with to be restored into this VMI; None: that is found out at its start.

        A guest whose VMI asks for memory (`guests.memory.RESTORE`) begins in it, and its agent connects once it has an identity of
        its own. Where that is not possible it ends with one of the reasons of `guests.memory`.
        """

    def save_memory(
        self, guest: Guest, handle: str, disks: Mapping[str, str], done: Callable[[MemoryOutcome], None]
    ) -> None:
        """Keep the memory of a running guest under `handle`, and its disks of the same moment; the guest goes on.

        `disks`: by the name of each PersistentVolume that of the VolumeSnapshotContent which it becomes. `done` is called once, on
        the event loop. Asked once for each handle.
        """

    def remove_memory(self, handle: str) -> None:
        """Forget what was kept, if anything was."""

    # Verbs of a request, which waits for them

    async def pause(self, guest: Guest) -> None: ...

    async def unpause(self, guest: Guest) -> None: ...

    async def reboot(self, guest: Guest) -> None:
        """Have the guest restart itself; its agent is lost while it does."""
