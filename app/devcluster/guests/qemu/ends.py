"""What a machine tells by itself: that it runs, stands still or has ended, and why, in words."""

import signal
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from app.devcluster.guests.qemu.monitor import Json
from app.devcluster.guests.qemu.process import QemuProcess

PANIC: Final = "Kernel panic - not syncing"
"""What a Linux kernel prints before it gives up."""

EndReason = Literal["shutdown", "panicked", "crashed", "killed", "lost"]


@dataclass(frozen=True)
class End:
    reason: EndReason
    """`shutdown`: the guest switched itself off; `crashed`: QEMU died; `killed`: by us; `lost`: with the supervisor of all guests."""
    detail: str
    """A sentence."""


class Listener(Protocol):
    """Called on the event loop; a call must not block."""

    def running(self) -> None:
        """Once, when the guest runs; a restored one when it has its own identity. For a paused plan: when it is first resumed."""

    def agent(self, connected: bool) -> None: ...  # noqa: FBT001 - a state

    def stalled(self, sentence: str) -> None:
        """QEMU stopped the guest because a disk cannot be written. `resume` tries again."""

    def ended(self, end: End) -> None:
        """Once, if the machine was started at all."""


def describe_end(process: QemuProcess, why: EndReason | None, code: int) -> End:
    """`why` is what was known before the process ended with `code`."""
    name = process.name
    match why:
        case "shutdown":
            return End("shutdown", f"The guest {name} switched itself off.")
        case "panicked":
            return End("panicked", f"The kernel of the guest {name} panicked: {describe_panic(process.console.tail())}")
        case "killed":
            return End("killed", f"The machine {name} was ended.")
    if process.child.lost:
        return End("lost", f"The supervisor of all guests died, and {name} with it.")
    said = process.last_words()
    return End("crashed", f"The machine {name} crashed: {describe_exit(code)}." + (f" It said: {said}" if said else ""))


def describe_exit(code: int) -> str:
    """How a process ended that should not have, in half a sentence."""
    if code >= 0:
        return f"QEMU ended with code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
    return f"QEMU was ended by {name}{hint}"


def describe_panic(console: str) -> str:
    return next(
        (line[line.index(PANIC) :].strip() for line in console.splitlines() if PANIC in line), "see its console."
    )


def describe_stall(name: str, data: Json) -> str:
    """For a BLOCK_IO_ERROR after which QEMU stopped the guest."""
    disk, reason = data.get("node-name") or data.get("device"), data.get("reason", "an I/O error")
    if data.get("nospace"):
        return f"The guest {name} stands still: no space is left for its disk {disk}. Make room on this host and resume it."
    return f"The guest {name} stands still: its disk {disk} cannot be written ({reason})."
