"""Writing preloads: the cluster is asked first, with no transaction open; what must then be done there is derived from the rows."""

import hashlib
import re
from dataclasses import dataclass

import structlog

from app.compute.gateway import Gateway
from app.compute.preloads import PreloadOrder
from app.compute.vms import VmTemplate
from app.domain.paths import ImageKind, ImageRef
from app.domain.preloads import PreloadSpec
from app.errors import Conflict, PreloadBeingDeleted, PreloadInUse, PreloadNotFound
from app.ids import new_id
from app.services.pools.service import Written
from app.store import events
from app.store.database import Database, Tx
from app.store.notices import Topic, notify
from app.store.preloads import rows as preload_rows
from app.store.preloads.rows import PreloadRow

_DEFAULT_SIZE = "10Gi"
_HASH = 10
_LONGEST_WORD = 40
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PutPreload:
    """`preload` is None where a dry run would create it."""

    preload: PreloadRow | None
    outcome: Written


async def put_preload(
    db: Database, gateway: Gateway, name: str, spec: PreloadSpec, *, dry_run: bool = False, automatic: bool = False
) -> PutPreload:
    """Creates the preload, or brings it to `spec`; the same spec again changes nothing, and so does a `dry_run`.

    What is to be imported otherwise is imported anew; where it is another image than before, nothing serves until then.
    `automatic`: it is collected when it is unused. Raises PreloadRefused, PreloadBeingDeleted, ClusterError (no CDI),
    ClusterUnavailable (nothing is stored then).
    """
    image = gateway.preloads.reference(spec)
    async with db.begin() as tx:
        before = await preload_rows.get(tx, name)
    _refuse_deleting(before)
    if before is None or not before.spec.same_import(spec):
        generation = before.generation + 1 if before is not None else 1
        order = PreloadOrder(before.id if before is not None else new_id(), name, generation, spec)
        if spec.policy != "Never" or spec.is_container:
            await gateway.preloads.check(order)
    if dry_run:
        return PutPreload(before, _outcome(before, spec, automatic=automatic))

    async with db.begin() as tx:
        preload = await preload_rows.get(tx, name, lock=True)
        _refuse_deleting(preload)
        outcome = _outcome(preload, spec, automatic=automatic)
        if outcome is Written.UNCHANGED:
            return PutPreload(preload, outcome)
        if preload is None:
            preload_id = new_id()
            if not await preload_rows.insert(
                tx, preload_id=preload_id, name=name, spec=spec, image=image, automatic=automatic
            ):
                raise Conflict(
                    f"preload {name!r} was written by somebody else at the same moment; read it and try again"
                )
        else:
            preload_id = preload.id
            await preload_rows.replace(tx, preload_id, spec=spec, image=image, automatic=automatic)
            if not preload.spec.same_import(spec):
                await preload_rows.begin_anew(tx, preload_id, keep_serving=image == preload.image)
        await events.record(tx, f"preload.{outcome}", preload=name, image=image.reference)
        await notify(tx, Topic.PRELOAD)
        written = await preload_rows.get_by_id(tx, preload_id)
    log.info("preload.written", preload=name, outcome=outcome)
    return PutPreload(written, outcome)


async def refresh_preload(db: Database, name: str) -> PreloadRow:
    """Imports or pulls the image anew; what serves now goes on until that is ready.

    Where the policy goes by what stands in the namespace already, that is looked at anew. Raises PreloadNotFound.
    """
    async with db.begin() as tx:
        preload = await existing(tx, name, lock=True)
        _refuse_deleting(preload)
        await preload_rows.begin_anew(tx, preload.id)
        await events.record(tx, "preload.refresh", preload=name)
        await notify(tx, Topic.PRELOAD)
        written = await preload_rows.get_by_id(tx, preload.id)
    return written if written is not None else preload


async def delete_preload(db: Database, name: str, *, force: bool) -> PreloadRow:
    """Begins its end: its objects are removed from the cluster; a volume that was there before it stays.

    Raises PreloadNotFound, and PreloadInUse where a pool starts from it or a VM is being made from it, but for `force`:
    such VMs start cold from then on. Asking again is allowed.
    """
    async with db.begin() as tx:
        preload = await existing(tx, name, lock=True)
        if preload.deleting_at is None:
            pools, making = await preload_rows.users(tx, name)
            if (pools or making) and not force:
                raise PreloadInUse(f"preload {name!r} {_usage(pools, making)}; delete it with ?force=true all the same")
            await preload_rows.begin_delete(tx, preload.id)
            await events.record(tx, "preload.deleting", preload=name, force=force)
            await notify(tx, Topic.PRELOAD)
        deleted = await preload_rows.get_by_id(tx, preload.id)
    log.info("preload.deleting", preload=name, force=force)
    return deleted if deleted is not None else preload


async def ensure_preload(
    db: Database,
    gateway: Gateway,
    image: ImageRef,
    *,
    automatic: bool = True,
    size: str | None = None,
    storage_class: str | None = None,
) -> PreloadRow | None:
    """The preload that brings `image` near: one that there is, or a new one; None for a PVC, which is near already.

    A disk image goes into a volume of `size` (10 GiB where none is given). Raises as `put_preload` does.
    """
    if image.kind is ImageKind.PVC:
        return None
    source = image.reference if image.kind is ImageKind.CONTAINER else {"url": image.reference}
    body: dict[str, object] = {"image": {str(image.kind): source}}
    if image.kind is not ImageKind.CONTAINER:
        body |= {"size": size or _DEFAULT_SIZE, "storage_class": storage_class}
    return await _ensure(db, gateway, PreloadSpec.model_validate(body), automatic=automatic)


async def ensure_preloads(
    db: Database, gateway: Gateway, template: VmTemplate, *, automatic: bool = True
) -> list[PreloadRow]:
    """One for each image that the template's disks are made from, as large as the template asks. Raises as `put_preload` does."""
    specs = gateway.preloads.found_in(template)
    return [await _ensure(db, gateway, spec, automatic=automatic) for spec in specs]


async def existing(tx: Tx, name: str, *, lock: bool = False) -> PreloadRow:
    """Raises PreloadNotFound."""
    preload = await preload_rows.get(tx, name, lock=lock)
    if preload is None:
        raise PreloadNotFound(
            f"no preload is named {name!r}; GET /v1/preloads lists them, PUT /v1/preloads/{name} makes one"
        )
    return preload


async def _ensure(db: Database, gateway: Gateway, spec: PreloadSpec, *, automatic: bool) -> PreloadRow:
    image = gateway.preloads.reference(spec)
    async with db.begin() as tx:
        found = await preload_rows.get_by_image(tx, image)
    if found is not None:
        return found
    try:
        put = await put_preload(db, gateway, _name_for(image), spec, automatic=automatic)
    except Conflict:  # another claim for the same image came first
        async with db.begin() as tx:
            found = await preload_rows.get_by_image(tx, image)
        if found is None:
            raise
        return found
    assert put.preload is not None  # noqa: S101 - only a dry run gives none
    return put.preload


def _name_for(image: ImageRef) -> str:
    """For people the image's last word, and of the whole of it a hash."""
    word = re.sub(r"[^a-z0-9]+", "-", image.reference.lower().rstrip("/").rpartition("/")[2]).strip("-")
    digest = hashlib.sha256(f"{image.kind} {image.reference}".encode()).hexdigest()[:_HASH]
    return f"{word[:_LONGEST_WORD].strip('-') or 'image'}-{digest}"


def _outcome(before: PreloadRow | None, spec: PreloadSpec, *, automatic: bool) -> Written:
    if before is None:
        return Written.CREATED
    return Written.UNCHANGED if before.spec == spec and (automatic or not before.automatic) else Written.CHANGED


def _usage(pools: list[str], making: int) -> str:
    parts = []
    if pools:
        parts.append(
            f"is what pool{'s' if len(pools) > 1 else ''} {', '.join(pools)} start{'' if len(pools) > 1 else 's'} from"
        )
    if making:
        parts.append(f"is what {making} VM{'s' if making > 1 else ''} being made start{'' if making > 1 else 's'} from")
    return " and ".join(parts)


def _refuse_deleting(preload: PreloadRow | None) -> None:
    if preload is not None and preload.deleting_at is not None:
        raise PreloadBeingDeleted(
            f"preload {preload.name!r} is being deleted, and its name is free once the cluster has let go of it"
        )
