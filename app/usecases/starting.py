"""From the name of a snapshot or preload to what a VM is to start from, as it stands at this moment."""

from dataclasses import dataclass

from app.domain.paths import Path, Start
from app.store import preloads, snapshots
from app.store.database import Tx


@dataclass(frozen=True, slots=True)
class NotYet:
    """Its source is not ready; `reason` says what is waited for, in words."""

    reason: str


async def resolve_start(tx: Tx, path: Path, source: str | None) -> Start | NotYet:
    """What a VM of that path starts from now."""
    if source is None:
        return None
    found: Start | str
    if path is Path.SNAPSHOT:
        found = await snapshots.start_of(tx, source)
    else:
        found = await preloads.start_of(tx, source)
    return NotYet(found) if isinstance(found, str) else found
