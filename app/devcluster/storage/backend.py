"""What the controllers ask of that which keeps the data of volumes and snapshots.

A call returns at once; its outcome comes by a callback, on the event loop. `key` is the uid of the object that the work is
for. Asking again while the work is under way changes nothing, and no callback comes after `cancel`. Work that was done once
may be asked for again, after a restart for example: the result is the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from app.devcluster.apiserver.status import Json

Done = Callable[[], None]
Failed = Callable[[str], None]
"""Takes a sentence that says what went wrong."""


@dataclass(frozen=True, slots=True)
class Volume:
    """`handle` is the name of its PersistentVolume; `size` is in bytes."""

    handle: str
    size: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose data a new volume begins with: those of a PersistentVolume or of a VolumeSnapshotContent, named by `handle`."""

    kind: Literal["blank", "volume", "snapshot"]
    handle: str = ""


BLANK = Origin("blank")


@dataclass(frozen=True, slots=True)
class Transfer:
    """One attempt (counted from 0) of an import into a volume. `source` is a DataVolume's, with the one member `kind`.

    `done` is the percentage that has been told already, `stop` the one at which an ordered fault ends this attempt.
    """

    volume: Volume
    kind: str
    source: Json
    attempt: int
    done: float
    stop: float


@dataclass(frozen=True, slots=True)
class TransferFailure:
    """Why an attempt failed, in CDI's words: `reason` and `message` of the condition. `fatal`: another attempt cannot help."""

    message: str
    reason: str = "Error"
    fatal: bool = False


Progress = Callable[[float | None], None]
"""Takes the percentage that is done; 100 comes last, and once. None: the work has begun, how far it is cannot be known."""


class StorageBackend(Protocol):
    def refusal(self, kind: str) -> str:
        """Why DataVolumes cannot be filled from this kind of source; empty where they can."""
        ...

    def make(self, key: str, volume: Volume, origin: Origin, done: Done, failed: Failed) -> None:
        """Make the volume of a claim."""
        ...

    def transfer(self, key: str, transfer: Transfer, told: Progress, failed: Callable[[TransferFailure], None]) -> None:
        """Import into a volume that exists."""
        ...

    def clone(
        self, key: str, volume: Volume, origin: Origin, strategy: str, done: float, told: Progress, failed: Failed
    ) -> None:
        """Give a volume that exists the data of `origin`. `strategy` is CDI's, `done` the percentage told already."""
        ...

    def freeze(self, key: str, content: str, volume: str, done: Done, failed: Failed) -> None:
        """Keep the present data of a volume as those of a snapshot. `content` and `volume` are handles."""
        ...

    def cancel(self, key: str) -> None:
        """Forget what was asked for under this key."""
        ...

    def discard(self, handle: str) -> None:
        """The claim or snapshot is gone, and its data are no longer wanted. An unknown handle is fine."""
        ...

    def stop(self) -> None:
        """Call nobody any more."""
        ...
