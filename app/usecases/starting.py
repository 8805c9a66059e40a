"""From the name of a snapshot or preload to what a VM is to start from, as it stands at this moment."""

from dataclasses import dataclass

from app.domain.paths import Path, Start
from app.domain.pools import StartFrom
from app.errors import FieldProblem, InvalidRequest
from app.store import preloads, snapshot_rows, snapshots
from app.store.database import Tx


@dataclass(frozen=True, slots=True)
class NotYet:
    """Its source is not ready; `reason` says what is waited for, in words."""

    reason: str


async def resolve_start(tx: Tx, path: Path, source: str | None) -> Start | NotYet:
    """What a VM of that path starts from now. Where its source is no more it starts from its template alone."""
    if source is None:
        return None
    found: Start | str
    if path is Path.SNAPSHOT:
        found = await snapshots.start_of(tx, source)
    else:
        found = await preloads.start_of(tx, source)
    return NotYet(found) if isinstance(found, str) else found


async def note_on_start(tx: Tx, path: Path, source: str | None) -> tuple[str, ...]:
    """What keeps VMs of that path from their source, in words for whoever looks at their pool; empty: nothing does."""
    start = await resolve_start(tx, path, source)
    if isinstance(start, NotYet):
        return (f"waits: {start.reason}",)
    if start is None and source is not None:
        return (f"{path} {source!r} was deleted: new VMs start cold",)
    return ()


async def require_source(tx: Tx, start_from: StartFrom | None) -> None:
    """Raises InvalidRequest, with the field, where what VMs are to start from does not exist; until `tx` ends it stays.

    One that is not ready yet will do: they wait for it.
    """
    if start_from is None or start_from.snapshot is None:
        return
    if not await snapshot_rows.hold(tx, start_from.snapshot):
        message = f"there is no snapshot {start_from.snapshot!r}; POST /v1/snapshots takes one"
        raise InvalidRequest(
            f"start_from.snapshot: {message}. Nothing was changed",
            problems=[FieldProblem("start_from.snapshot", message)],
        )
