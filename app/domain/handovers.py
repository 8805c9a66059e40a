"""What a claim hands over to the guest of its VM, and how far that is."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

MAX_DATA_BYTES: Final = 64 * 1024
"""Of the data as compact JSON in UTF-8."""
MAX_OUTPUT_BYTES: Final = 4 * 1024
"""What is kept of the output of a guest's hooks."""
DEFAULT_WAIT_SECONDS: Final = 30.0


class HandoverState(StrEnum):
    """`pending`: the guest has not got it. `taken`: it has, and its hooks run. `done`: they have run. `failed`: one of them failed, or
    the guest will never get it.
    """

    PENDING = "pending"
    TAKEN = "taken"
    DONE = "done"
    FAILED = "failed"


HANDOVER_OVER: Final = frozenset({HandoverState.DONE, HandoverState.FAILED})


@dataclass(frozen=True, slots=True)
class HandoverRequest:
    """`data` is JSON text; None: there is none, and the claim only wants to know when the hooks have run. It is in no representation,
    so that it gets into no log. `wait_seconds`: how long to wait for the hooks.
    """

    data: bytes | None = field(repr=False)
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Handover:
    """Where a hand-over stands. `reason`: what it waits for, or why it failed. Times are the database's."""

    state: HandoverState
    exit_code: int | None = None
    output: str | None = None
    taken_at: datetime | None = None
    done_at: datetime | None = None
    reason: str | None = None

    @classmethod
    def read(cls, stored: dict[str, Any]) -> "Handover":
        """From a row as JSON."""
        times = {
            name: datetime.fromisoformat(stored[name]) if stored[name] else None for name in ("taken_at", "done_at")
        }
        return cls(**{**stored, **times, "state": HandoverState(stored["state"])})


def cut_output(raw: bytes) -> str:
    """The beginning of what hooks printed, as text that can be stored."""
    return raw[:MAX_OUTPUT_BYTES].decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
