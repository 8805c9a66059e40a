"""Writes preloads: first checks them with the cluster, without a transaction, then writes them. The reconciler does the rest."""

import hashlib
import re
from dataclasses import dataclass

import structlog

from app.compute.gateway import Gateway
from app.compute.preloads import PreloadOrder
from app.compute.vms import VmTemplate
from app.domain.paths import ImageRef
from app.domain.preloads import PreloadSpec
from app.errors import Conflict, PreloadBeingDeleted, PreloadInUse, PreloadNotFound
from app.ids import new_id
from app.services.writes import IfMatch, WriteOutcome, overtaken, prepare_and_commit
from app.store import events
from app.store.database import Database, Tx
from app.store.notices import Topic, notify
from app.store.preloads import rows as preload_rows
from app.store.preloads.rows import PreloadRow

_HASH = 10
_LONGEST_WORD = 40
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WrittenPreload:
    preload: PreloadRow
    outcome: WriteOutcome


@dataclass(frozen=True, slots=True)
class PreparedPreload:
    """A preload that may be written. `before` is the preload as it was found."""

    name: str
    spec: PreloadSpec
    image: ImageRef
    automatic: bool
    before: PreloadRow | None

    @property
    def outcome(self) -> WriteOutcome:
        before = self.before
        if before is None:
            return WriteOutcome.CREATED
        same = before.spec == self.spec and (self.automatic or not before.automatic)
        return WriteOutcome.UNCHANGED if same else WriteOutcome.CHANGED


async def prepare_preload(
    db: Database,
    gateway: Gateway,
    name: str,
    spec: PreloadSpec,
    *,
    automatic: bool = False,
    if_match: IfMatch | None = None,
) -> PreparedPreload:
    """Checks the preload without writing anything. The cluster is asked only if the image would be imported again.

    `automatic`: it is deleted when it is unused. Raises PreloadRefused, PreloadBeingDeleted, PreconditionFailed, ClusterError
    (no CDI), ClusterUnavailable.
    """
    image = gateway.preloads.reference(spec)
    async with db.begin() as tx:
        before = await preload_rows.get(tx, name)
    _refuse_deleting(before)
    if if_match is not None:
        if_match.check(f"the ETag of preload {name!r}", version_of(before) if before is not None else None)
    if before is None or not before.spec.same_import(spec):
        generation = before.generation + 1 if before is not None else 1
        order = PreloadOrder(before.id if before is not None else new_id(), name, generation, spec)
        if spec.policy != "Never" or spec.is_container:
            await gateway.preloads.check(order)
    return PreparedPreload(name, spec, image, automatic, before)


async def commit_preload(db: Database, prepared: PreparedPreload) -> WrittenPreload:
    """Writes what was prepared. Raises Overtaken. If the image must be imported again, the reconciler does that.

    If it is another image than before, VMs do not start from the preload until it is imported.
    """
    name, spec, image, automatic = prepared.name, prepared.spec, prepared.image, prepared.automatic
    async with db.begin() as tx:
        preload = await preload_rows.get(tx, name, lock=True)
        _refuse_deleting(preload)
        before = prepared.before
        if (preload and version_of(preload)) != (before and version_of(before)):
            raise overtaken(f"preload {name!r}")
        if preload is not None and prepared.outcome is WriteOutcome.UNCHANGED:
            return WrittenPreload(preload, WriteOutcome.UNCHANGED)
        if preload is None:
            preload_id = new_id()
            if not await preload_rows.insert(
                tx, preload_id=preload_id, name=name, spec=spec, image=image, automatic=automatic
            ):
                raise overtaken(f"preload {name!r}")
        else:
            preload_id = preload.id
            await preload_rows.replace(tx, preload_id, spec=spec, image=image, automatic=automatic)
            if not preload.spec.same_import(spec):
                await preload_rows.begin_anew(tx, preload_id, keep_serving=image == preload.image)
        await events.record(tx, f"preload.{prepared.outcome}", preload=name, image=image.reference)
        await notify(tx, Topic.PRELOAD)
        written = await preload_rows.get_by_id(tx, preload_id)
        assert written is not None  # noqa: S101 - this transaction has written it
    log.info("preload.written", preload=name, outcome=prepared.outcome)
    return WrittenPreload(written, prepared.outcome)


async def put_preload(
    db: Database,
    gateway: Gateway,
    name: str,
    spec: PreloadSpec,
    *,
    automatic: bool = False,
    if_match: IfMatch | None = None,
) -> WrittenPreload:
    """Creates the preload, or changes it to `spec`; the same spec again changes nothing.

    Raises what `prepare_preload` and `commit_preload` raise.
    """
    return await prepare_and_commit(
        lambda: prepare_preload(db, gateway, name, spec, automatic=automatic, if_match=if_match),
        lambda prepared: commit_preload(db, prepared),
    )


async def refresh_preload(db: Database, name: str) -> PreloadRow:
    """Imports or pulls the image again. VMs start from the present content until the new one is ready. Raises PreloadNotFound.

    If the policy uses a volume that exists in the namespace, that volume is looked up again.
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
    """Starts to delete a preload: its objects are removed from the cluster; a volume that existed before it stays. May be repeated.

    Raises PreloadNotFound, and PreloadInUse if a pool starts from it or a VM is being created from it. With `force` such VMs start
    cold from then on.
    """
    async with db.begin() as tx:
        preload = await existing(tx, name, lock=True)
        if preload.deleting_at is None:
            pools, making = await preload_rows.users(tx, name)
            if (pools or making) and not force:
                raise PreloadInUse(f"preload {name!r} {_usage(pools, making)}; use ?force=true to delete it anyway")
            await preload_rows.begin_delete(tx, preload.id)
            await events.record(tx, "preload.deleting", preload=name, force=force)
            await notify(tx, Topic.PRELOAD)
        deleted = await preload_rows.get_by_id(tx, preload.id)
    log.info("preload.deleting", preload=name, force=force)
    return deleted if deleted is not None else preload


async def ensure_preloads(db: Database, gateway: Gateway, template: VmTemplate) -> list[PreloadRow]:
    """One automatic preload for each image of the template, as large as the template asks; an existing one will do.

    Raises what `put_preload` raises.
    """
    return [await _ensure(db, gateway, spec) for spec in gateway.preloads.specs_for(template.spec)]


async def existing(tx: Tx, name: str, *, lock: bool = False) -> PreloadRow:
    """Raises PreloadNotFound."""
    preload = await preload_rows.get(tx, name, lock=lock)
    if preload is None:
        raise PreloadNotFound(
            f"no preload is named {name!r}; GET /v1/preloads lists them, PUT /v1/preloads/{name} creates it"
        )
    return preload


async def _ensure(db: Database, gateway: Gateway, spec: PreloadSpec) -> PreloadRow:
    image = gateway.preloads.reference(spec)
    async with db.begin() as tx:
        found = await preload_rows.get_by_image(tx, image)
    if found is not None:
        return found
    prepared = await prepare_preload(db, gateway, _name_for(image), spec, automatic=True)
    if prepared.before is not None:
        return prepared.before
    try:
        return (await commit_preload(db, prepared)).preload
    except Conflict:  # another claim for the same image came first
        async with db.begin() as tx:
            found = await preload_rows.get_by_image(tx, image)
        if found is None:
            raise
        return found


def _name_for(image: ImageRef) -> str:
    """The last part of the image's reference, for people, and a hash of all of it."""
    word = re.sub(r"[^a-z0-9]+", "-", image.reference.lower().rstrip("/").rpartition("/")[2]).strip("-")
    digest = hashlib.sha256(f"{image.kind} {image.reference}".encode()).hexdigest()[:_HASH]
    return f"{word[:_LONGEST_WORD].strip('-') or 'image'}-{digest}"


def version_of(preload: PreloadRow) -> str:
    """Changes with everything that users write, and with nothing that reconcilers do: an import is no change of the preload."""
    written = f"{preload.id} {preload.spec.model_dump_json()} {preload.automatic}"
    return hashlib.sha256(written.encode()).hexdigest()[:_HASH]


def _usage(pools: list[str], making: int) -> str:
    users = []
    if pools:
        users.append((f"pool{'s' if len(pools) > 1 else ''} {', '.join(pools)}", len(pools)))
    if making:
        users.append((f"{making} VM{'s' if making > 1 else ''} being made", making))
    return " and ".join(f"is what {words} start{'' if count > 1 else 's'} from" for words, count in users)


def _refuse_deleting(preload: PreloadRow | None) -> None:
    if preload is not None and preload.deleting_at is not None:
        raise PreloadBeingDeleted(
            f"preload {preload.name!r} is being deleted; its name is free once its objects are gone from the cluster"
        )
