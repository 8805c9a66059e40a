"""Finds what a VM starts from, given the name of a snapshot or preload."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from app.compute.gateway import Gateway
from app.compute.vms import VmTemplate
from app.domain.paths import FromSnapshot, ImageRef, Start, StartPath
from app.domain.pools import StartFrom
from app.domain.snapshots import UNDER_WAY
from app.errors import FieldProblem, InvalidRequest, TemplateRefused
from app.store.database import Tx
from app.store.preloads import sources as preloads
from app.store.snapshots import rows as snapshot_rows
from app.store.snapshots import sources as snapshots
from app.store.snapshots.sources import StaleMemory

FROM_SNAPSHOT = frozenset({StartPath.MEMORY, StartPath.SNAPSHOT})
"""Which of the two it is, the snapshot says when the VM is made."""
NO_STATE = (
    "the template has a persistent TPM or EFI, and a VM from a snapshot does not get its state: leave `persistent` out, or start "
    "from the image"
)
NO_LABELS = (
    "the template takes its instance type or preference from the labels of a volume (`inferFromVolume`), which a disk from a "
    "snapshot or a preload does not have: name the instance type and the preference, or start from the image"
)


@dataclass(frozen=True, slots=True)
class NotYet:
    """The source is not ready. `reason` says what the VM waits for. `for_good`: it does not become ready by itself."""

    reason: str
    for_good: bool = False


async def resolve_start(
    tx: Tx, path: StartPath, source: str | None, *, asked_at: datetime | None = None
) -> Start | NotYet:
    """What a VM of that path starts from now. If its source was deleted, it starts from its template alone (None).

    `asked_at`: when the VM was first requested from the cluster, so that a repeated request is for the same content.
    """
    if source is None:
        return None
    found: Start | StaleMemory | str
    if path in FROM_SNAPSHOT:
        found = await snapshots.start_of(tx, source, asked_at=asked_at)
    else:
        found = await preloads.start_of(tx, source)
    if isinstance(found, StaleMemory):
        return await _stale(tx, found)
    return NotYet(found) if isinstance(found, str) else found


async def path_of(tx: Tx, start_from: StartFrom) -> StartPath:
    """How VMs start from there: a snapshot that keeps memory is never started without it."""
    if start_from.snapshot is not None and await snapshots.keeps_memory(tx, start_from.snapshot):
        return StartPath.MEMORY
    return start_from.path


async def note_on_start(tx: Tx, path: StartPath, source: str | None) -> tuple[str, ...]:
    """Why VMs of that path cannot start from their source at the moment, as notes for their pool; empty if they can."""
    start = await resolve_start(tx, path, source)
    if isinstance(start, NotYet):
        return (f"waits: {start.reason}",)
    if start is None and source is not None:
        return (f"{path} {source!r} was deleted: new VMs start cold",)
    return ()


async def require_source(tx: Tx, start_from: StartFrom | None, template: VmTemplate | None = None) -> None:
    """Raises InvalidRequest, with the field, if the source of VMs does not exist, or is a preload of another image than the
    template's. The source cannot be deleted until `tx` ends.

    The source need not be ready: VMs wait for it.
    """
    if start_from is None:
        return
    if start_from.snapshot is not None:
        if not await snapshot_rows.lock(tx, start_from.snapshot):
            raise _refused("snapshot", f"there is no snapshot {start_from.snapshot!r}; POST /v1/snapshots takes one")
    elif (image := await preloads.lock(tx, start_from.source)) is None:
        raise _refused(
            "preload", f"there is no preload {start_from.source!r}; PUT /v1/preloads/{start_from.source} creates it"
        )
    elif template is not None:
        refuse_other_image(start_from.source, image, template)


async def require_use(tx: Tx, start_from: StartFrom | None, template: VmTemplate) -> None:
    """Raises InvalidRequest if the source is a preload, and the template has disks of its own but none of the preload's image."""
    if start_from is None or start_from.preload is None:
        return
    image = await preloads.lock(tx, start_from.preload)
    if image is not None:
        refuse_other_image(start_from.preload, image, template)


async def refuse_preloaded_disk(tx: Tx, template: VmTemplate) -> None:
    """Raises TemplateRefused if a VM of the template would write to the volume that a preload's VMs are cloned from."""
    disks = {each.name: each.field for each in template.exclusives if each.volume is not None}
    found = await preloads.on_claims(tx, list(disks)) if disks else None
    if found is not None:
        preload, claim = found
        raise TemplateRefused.of_field(
            disks[claim],
            f"PersistentVolumeClaim {claim} holds the image of preload {preload!r}, and a VM would change it: start from the "
            f'preload with {{"start_from": {{"preload": "{preload}"}}}}, and leave this disk out',
        )


async def refuse_other_memory(tx: Tx, gateway: Gateway, start_from: StartFrom | None, template: VmTemplate) -> None:
    """Raises TemplateRefused, with each field, if the source is a snapshot with the memory of another VM than the template's. A
    snapshot that has no memory yet refuses nothing: what is made from it is checked again.
    """
    if start_from is None or start_from.snapshot is None:
        return
    start = await snapshots.start_of(tx, start_from.snapshot)
    if isinstance(start, FromSnapshot) and (problems := memory_problems(gateway, template, start)):
        raise TemplateRefused(other_memory(start.name, problems), problems=problems)


def memory_problems(gateway: Gateway, template: VmTemplate, start: FromSnapshot) -> tuple[FieldProblem, ...]:
    """Why a VM of the template cannot start from the memory of the snapshot; empty where it can, or where there is none."""
    if start.memory is None:
        return ()
    return gateway.snapshots.memory_differences(template, start.memory.spec, start.disks)


def other_memory(snapshot: str, problems: Sequence[FieldProblem]) -> str:
    """The same in a sentence."""
    told = "; ".join(f"{each.field}: {each.message}" for each in problems)
    return (
        f"snapshot {snapshot!r} keeps the memory of another VM, and memory fits only the machine that it was taken of. {told}. "
        "Describe that VM, or start from a snapshot without memory"
    )


async def _stale(tx: Tx, memory: StaleMemory) -> NotYet:
    told = f"the memory of snapshot {memory.name!r} cannot be restored any more: {memory.reason}"
    row = await snapshot_rows.get(tx, memory.name)
    takes = (await snapshot_rows.takes_of(tx, [row.id]))[row.id] if row is not None else []
    if any(take.state in UNDER_WAY for take in takes) or (row is not None and row.spec.refresh):
        return NotYet(f"{told}; it is taken again")
    advice = f"take it again with POST /v1/snapshots/{memory.name}/refresh, or start from something else"
    return NotYet(f"{told}; {advice}", for_good=True)


def refuse_lossy_start(start_from: StartFrom | None, template: VmTemplate) -> None:
    """Raises InvalidRequest if VMs of the template would lack something because they start from this: the state that they are to
    keep, or the labels from which their instance type is read.
    """
    if start_from is None:
        return
    if template.infers:
        raise _refused("snapshot" if start_from.snapshot is not None else "preload", NO_LABELS)
    if start_from.snapshot is not None and template.keeps_state:
        raise _refused("snapshot", NO_STATE)


def refuse_other_image(preload: str, image: ImageRef, template: VmTemplate) -> None:
    """Raises InvalidRequest if the template has disks of its own but none of the preload's image."""
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
