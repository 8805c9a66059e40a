"""From the name of a snapshot or preload to what a VM is to start from, as it stands at this moment."""

from dataclasses import dataclass
from datetime import datetime

from app.compute.vms import VmTemplate
from app.domain.paths import ImageRef, Start, StartPath
from app.domain.pools import StartFrom
from app.errors import FieldProblem, InvalidRequest
from app.store.database import Tx
from app.store.preloads import sources as preloads
from app.store.snapshots import rows as snapshot_rows
from app.store.snapshots import sources as snapshots


@dataclass(frozen=True, slots=True)
class NotYet:
    """Its source is not ready; `reason` says what is waited for, in words."""

    reason: str


async def resolve_start(
    tx: Tx, path: StartPath, source: str | None, *, asked_at: datetime | None = None
) -> Start | NotYet:
    """What a VM of that path starts from now. Where its source is no more it starts from its template alone.

    `asked_at`: when the cluster was first asked for it, so that asking again is asking for the same.
    """
    if source is None:
        return None
    found: Start | str
    if path is StartPath.SNAPSHOT:
        found = await snapshots.start_of(tx, source, asked_at=asked_at)
    else:
        found = await preloads.start_of(tx, source)
    return NotYet(found) if isinstance(found, str) else found


async def note_on_start(tx: Tx, path: StartPath, source: str | None) -> tuple[str, ...]:
    """What keeps VMs of that path from their source, in words for whoever looks at their pool; empty: nothing does."""
    start = await resolve_start(tx, path, source)
    if isinstance(start, NotYet):
        return (f"waits: {start.reason}",)
    if start is None and source is not None:
        return (f"{path} {source!r} was deleted: new VMs start cold",)
    return ()


async def require_source(tx: Tx, start_from: StartFrom | None, template: VmTemplate | None = None) -> None:
    """Raises InvalidRequest, with the field, where what VMs are to start from does not exist; until `tx` ends it stays.

    One that is not ready yet will do: they wait for it. A preload whose image is none that a VM of the `template` boots from
    is refused, too.
    """
    if start_from is None:
        return
    if start_from.snapshot is not None:
        if not await snapshot_rows.hold(tx, start_from.snapshot):
            raise _refused("snapshot", f"there is no snapshot {start_from.snapshot!r}; POST /v1/snapshots takes one")
    elif await preloads.hold(tx, start_from.source) is None:
        raise _refused(
            "preload", f"there is no preload {start_from.source!r}; PUT /v1/preloads/{start_from.source} makes one"
        )
    elif template is not None:
        await require_use(tx, start_from, template)


async def require_use(tx: Tx, start_from: StartFrom | None, template: VmTemplate) -> None:
    """Raises InvalidRequest where a preload's image has nothing to do with the template: it has disks, and none is of it."""
    if start_from is None or start_from.preload is None:
        return
    image = await preloads.hold(tx, start_from.preload)
    if image is not None:
        refuse_other_image(start_from.preload, image, template)


def refuse_other_image(preload: str, image: ImageRef, template: VmTemplate) -> None:
    """Raises InvalidRequest where the image that the preload holds is none that a VM of the template boots from."""
    if image in template.images or not template.has_own_disk:
        return
    theirs = ", ".join(each.reference for each in template.images) or "nothing that could be preloaded"
    raise _refused(
        "preload",
        f"preload {preload!r} holds {image.reference}, and the template's disks are made from {theirs}: "
        "name that image in the template, or leave its disk out",
    )


def _refused(field: str, message: str) -> InvalidRequest:
    field = f"start_from.{field}"
    return InvalidRequest(f"{field}: {message}. Nothing was changed", problems=[FieldProblem(field, message)])
