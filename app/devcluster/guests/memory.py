"""Kept memory of guests: how a VMI asks to begin in it, and what is told of its being kept."""

from dataclasses import dataclass

from app.devcluster.apiserver.objects import annotations_of
from app.devcluster.apiserver.status import Json

GROUP = "memory.emberpool.io"
RESTORE = f"{GROUP}/restore"
"""An annotation of a VMI: the handle of the memory that its guest begins in."""
NOT_FOUND = "MemorySnapshotNotFound"
MISMATCH = "MemoryFingerprintMismatch"
NOT_RESTORED = "MemoryNotRestored"


@dataclass(frozen=True, slots=True)
class MemoryOutcome:
    """`error`: why it was not kept, in words; empty: it was. `bytes`: what it takes. `fingerprint`: equal where it can be restored.
    `stood_still`: for how many seconds the guest was paused.
    """

    error: str = ""
    bytes: int = 0
    fingerprint: str = ""
    stood_still: float = 0.0


def restored_from(vmi: Json) -> str | None:
    """The handle of the memory that the VMI begins with; empty where there was no such memory; None: it boots."""
    return annotations_of(vmi).get(RESTORE)
