"""Preload rows: written by name, leased by reconcilers and written while the lease holds, and deleted when unused."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from app.domain.paths import ImageKind, ImageRef
from app.domain.preload_lifecycle import NodePull, OnNodes, PreloadState, PullState, Serving, Status, Step, Volume
from app.domain.preloads import PreloadSpec
from app.store.database import Tx, any_row, first, mappings, run
from app.store.leases import ACQUIRE, IS_FREE, RELEASE, RowLeases

LEASES = RowLeases("preload")
_AS_IT_IS = ("phase", "bytes_total", "restarts", "trouble", "failure")
"""The fields of a status that are stored as they are."""

_COLUMNS = """
    p.id, p.name, p.spec, p.generation, p.state, p.state_since, p.image_kind, p.image, p.status, p.reason, p.used_at, p.uses,
    p.automatic, p.ready_at, p.created_at, p.updated_at, p.deleting_at, p.due_at, p.attempts
"""
_BY_NAME = f"SELECT {_COLUMNS} FROM preload p WHERE p.name = :name AND p.deleted_at IS NULL"
_BY_ID = text(f"SELECT {_COLUMNS} FROM preload p WHERE p.id = :id")
_PAGE = text(
    f"SELECT {_COLUMNS} FROM preload p WHERE p.deleted_at IS NULL AND p.name > :after ORDER BY p.name LIMIT :limit"
)
_BY_IMAGE = text(f"""
    SELECT {_COLUMNS} FROM preload p
    WHERE p.image = :image AND p.image_kind = :kind AND p.deleting_at IS NULL AND p.deleted_at IS NULL
    ORDER BY p.automatic, p.created_at LIMIT 1
""")
_KNOWN_AS = text(f"""
    SELECT {_COLUMNS} FROM preload p
    WHERE (p.name = ANY(CAST(:names AS text[])) OR p.spec->>'data_source' = ANY(CAST(:names AS text[])))
      AND p.deleting_at IS NULL AND p.deleted_at IS NULL
    ORDER BY p.created_at, p.id
""")
_INSERT = text("""
    INSERT INTO preload (id, name, spec, image_kind, image, automatic) VALUES (:id, :name, :spec, :kind, :image, :automatic)
    ON CONFLICT (name) WHERE deleted_at IS NULL DO NOTHING RETURNING id
""").bindparams(bindparam("spec", type_=JSONB))
_REPLACE = text(f"""
    UPDATE preload SET spec = :spec, image_kind = :kind, image = :image, updated_at = now(), automatic = :automatic,
        due_at = now(), {RELEASE}
    WHERE id = :id
""").bindparams(bindparam("spec", type_=JSONB))
_BEGIN_ANEW = text(f"""
    UPDATE preload SET generation = generation + 1, state = 'planned', state_since = now(), attempts = 0, reason = NULL,
        status = status - '{{phase,bytes_total,restarts,trouble,moved_at,samples}}'::text[], due_at = now(), updated_at = now(),
        {RELEASE}
    WHERE id = :id
""")
_DROP_SERVING = text("UPDATE preload SET status = status - 'volume' - 'on', ready_at = NULL WHERE id = :id")
_BEGIN_DELETE = text(f"""
    UPDATE preload SET deleting_at = now(), state = 'deleting', state_since = now(), due_at = now(), attempts = 0, reason = :reason,
        {RELEASE}
    WHERE id = :id AND deleting_at IS NULL RETURNING id
""")
_ACQUIRE_DUE = text(f"""
    WITH due AS (
        SELECT id FROM preload WHERE deleted_at IS NULL AND due_at <= now() AND {IS_FREE}
        ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED),
    p AS (
        UPDATE preload SET {ACQUIRE}
        FROM due WHERE preload.id = due.id RETURNING preload.*)
    SELECT {_COLUMNS} FROM p ORDER BY p.id
""")
_WRITE = text(f"""
    UPDATE preload SET state = :state, state_since = CASE WHEN state = :state THEN state_since ELSE now() END,
        status = :status, reason = :reason, generation = :generation, attempts = :attempts,
        ready_at = CASE WHEN NOT :usable THEN NULL WHEN :fresh THEN now() ELSE coalesce(ready_at, now()) END,
        deleted_at = CASE WHEN :state = 'deleted' THEN now() END,
        due_at = now() + make_interval(secs => :seconds), {RELEASE}
    WHERE id = :id AND lease_token = :token AND deleted_at IS NULL RETURNING id
""").bindparams(bindparam("status", type_=JSONB))
_RETRY = text(f"""
    UPDATE preload SET due_at = now() + make_interval(secs => :seconds), reason = :reason, {RELEASE}
    WHERE id = :id AND lease_token = :token
""")
_LIVE = text("SELECT id FROM preload WHERE id = ANY(CAST(:ids AS uuid[])) AND deleted_at IS NULL")
_NOTE_USE = text("""
    UPDATE preload SET used_at = now(), uses = uses + 1 WHERE name = :name AND deleted_at IS NULL
""")
_POOLS = text("""
    SELECT name FROM pool WHERE path = 'preload' AND source = :name AND deleted_at IS NULL AND deleting_at IS NULL AND kind = 'pool'
    ORDER BY name LIMIT 10
""")
_MAKING = """v.source = :name AND v.path = 'preload' AND v.ended_at IS NULL AND v.state IN ('creating', 'booting')"""
_VMS = text(f"SELECT count(*) FROM vm v WHERE {_MAKING}")
_STRANDED = text(
    f"SELECT v.id FROM vm v WHERE {_MAKING} AND v.asked_at <= :before AND v.node IS NULL ORDER BY v.id LIMIT 500"
)
_CLONING = text(f"SELECT 1 FROM vm v WHERE {_MAKING} AND v.asked_at <= :since LIMIT 1")
# A live VM uses its container image: the image stays on its node for its next start.
_UNUSED = """
    p.deleting_at IS NULL AND p.deleted_at IS NULL AND (p.automatic OR p.spec->>'ttl_seconds' IS NOT NULL)
    AND NOT EXISTS (SELECT 1 FROM pool o WHERE o.path = 'preload' AND o.source = p.name AND o.deleted_at IS NULL)
    AND NOT EXISTS (SELECT 1 FROM vm v WHERE v.source = p.name AND v.path = 'preload' AND v.ended_at IS NULL
                    AND (p.image_kind = 'container' OR v.state IN ('planned', 'creating', 'booting')))
"""
_TOUCHED = "greatest(p.used_at, p.ready_at, p.updated_at)"
_EXPIRED = text(f"""
    SELECT {_COLUMNS} FROM preload p WHERE {_UNUSED}
      AND {_TOUCHED} < now() - make_interval(secs => coalesce((p.spec->>'ttl_seconds')::float, :keep_seconds))
    ORDER BY {_TOUCHED} LIMIT 50 FOR UPDATE SKIP LOCKED
""")
_EXCESS = text(f"""
    SELECT {_COLUMNS} FROM preload p WHERE {_UNUSED} AND p.automatic
    ORDER BY {_TOUCHED} DESC OFFSET :most LIMIT 50 FOR UPDATE SKIP LOCKED
""")
_PRUNE = text("DELETE FROM preload WHERE deleted_at < now() - make_interval(secs => :seconds)")


@dataclass(frozen=True, slots=True)
class PreloadRow:
    """Times are the database's."""

    id: UUID
    name: str
    spec: PreloadSpec
    generation: int
    state: PreloadState
    state_since: datetime
    image: ImageRef
    status: Status
    reason: str | None
    used_at: datetime | None
    uses: int
    automatic: bool
    ready_at: datetime | None
    created_at: datetime
    updated_at: datetime
    deleting_at: datetime | None
    due_at: datetime
    attempts: int


async def get(tx: Tx, name: str, *, lock: bool = False) -> PreloadRow | None:
    row = await first(tx, text(_BY_NAME + (" FOR UPDATE" if lock else "")), name=name)
    return _read(row) if row else None


async def get_by_id(tx: Tx, preload_id: UUID) -> PreloadRow | None:
    row = await first(tx, _BY_ID, id=preload_id)
    return _read(row) if row else None


async def get_by_image(tx: Tx, image: ImageRef) -> PreloadRow | None:
    """A preload of that image. One that a user wrote comes before one that `remember` made."""
    row = await first(tx, _BY_IMAGE, image=image.reference, kind=str(image.kind))
    return _read(row) if row else None


async def known_as(tx: Tx, names: Collection[str]) -> list[PreloadRow]:
    """Those with one of the names, or with a DataSource of such a name; the oldest first."""
    return [_read(row) for row in await mappings(tx, _KNOWN_AS, names=sorted(names))]


async def page(tx: Tx, *, after: str, limit: int) -> list[PreloadRow]:
    """Sorted by name, those after `after`."""
    return [_read(row) for row in await mappings(tx, _PAGE, after=after, limit=limit)]


async def insert(tx: Tx, *, preload_id: UUID, name: str, spec: PreloadSpec, image: ImageRef, automatic: bool) -> bool:
    """False if there is a preload of that name already."""
    return await any_row(tx, _INSERT, **_written(spec, image), id=preload_id, name=name, automatic=automatic)


async def replace(tx: Tx, preload_id: UUID, *, spec: PreloadSpec, image: ImageRef, automatic: bool) -> None:
    await run(tx, _REPLACE, **_written(spec, image), id=preload_id, automatic=automatic)


async def begin_anew(tx: Tx, preload_id: UUID, *, keep_serving: bool = True) -> None:
    """Begins the next generation. Until it is ready, VMs start from the present one if `keep_serving`."""
    if not keep_serving:
        await run(tx, _DROP_SERVING, id=preload_id)
    await run(tx, _BEGIN_ANEW, id=preload_id)


async def begin_delete(tx: Tx, preload_id: UUID, *, reason: str | None = None) -> bool:
    return await any_row(tx, _BEGIN_DELETE, id=preload_id, reason=reason)


async def acquire_due(tx: Tx, *, token: UUID, limit: int, seconds: float) -> list[PreloadRow]:
    """Preloads that are due, under a lease of `seconds`."""
    return [_read(row) for row in await mappings(tx, _ACQUIRE_DUE, token=token, limit=limit, seconds=seconds)]


async def write(
    tx: Tx,
    preload_id: UUID,
    step: Step,
    *,
    token: UUID,
    generation: int,
    attempts: int,
    usable: bool,
    fresh: bool,
    seconds: float,
) -> bool:
    """Writes what a visit found, and that the next one is due after `seconds`. False if the lease was lost: nothing is written.
    `fresh`: VMs start from something else than before.
    """
    return await any_row(
        tx,
        _WRITE,
        id=preload_id,
        token=token,
        state=str(step.state),
        status=dump_status(step.status),
        reason=step.reason,
        generation=generation,
        attempts=attempts,
        usable=usable,
        fresh=fresh,
        seconds=seconds,
    )


async def retry_later(tx: Tx, preload_id: UUID, *, token: UUID, seconds: float, reason: str) -> None:
    """The cluster could not be asked: the preload is due again after `seconds`."""
    await run(tx, _RETRY, id=preload_id, token=token, seconds=seconds, reason=reason)


async def live(tx: Tx, ids: list[UUID]) -> set[UUID]:
    """Those of `ids` that are not deleted yet."""
    return {row.id for row in await run(tx, _LIVE, ids=ids)}


async def note_use(tx: Tx, name: str) -> None:
    """A VM that starts from it was created."""
    await run(tx, _NOTE_USE, name=name)


async def users(tx: Tx, name: str) -> tuple[list[str], int]:
    """At most ten pools that start from it, and how many VMs are being created from it."""
    pools = [row.name for row in await run(tx, _POOLS, name=name)]
    making: int = (await run(tx, _VMS, name=name)).scalar_one()
    return pools, making


async def stranded(tx: Tx, name: str, *, before: datetime) -> list[UUID]:
    """VMs that have no node yet and were asked for before that moment, to start from the preload."""
    return [row.id for row in await run(tx, _STRANDED, name=name, before=before)]


async def is_cloned(tx: Tx, name: str, *, since: datetime) -> bool:
    """Whether a VM is being created that may still clone what served until `since`."""
    return await any_row(tx, _CLONING, name=name, since=since)


async def expired(tx: Tx, *, keep_seconds: float) -> list[PreloadRow]:
    """Preloads made by `remember`, or with `ttl_seconds`, that were unused for too long. Their rows are locked."""
    return [_read(row) for row in await mappings(tx, _EXPIRED, keep_seconds=keep_seconds)]


async def in_excess(tx: Tx, *, most: int) -> list[PreloadRow]:
    """Unused preloads made by `remember`, except the `most` that were used last. Their rows are locked."""
    return [_read(row) for row in await mappings(tx, _EXCESS, most=most)]


async def prune(tx: Tx, *, seconds: float) -> int:
    return (await run(tx, _PRUNE, seconds=seconds)).rowcount


def dump_status(status: Status) -> dict[str, Any]:
    """The status as the column stores it. Other statements read `volume` and `on`."""
    kept: dict[str, Any] = {name: getattr(status, name) for name in _AS_IT_IS}
    kept |= {
        "moved_at": status.moved_at.isoformat() if status.moved_at is not None else None,
        "samples": [[at.isoformat(), percent] for at, percent in status.samples],
        "nodes": [[each.node, str(each.state), each.reason] for each in status.nodes],
    }
    kept = {key: value for key, value in kept.items() if value not in (None, [], "", 0)}
    if (serving := status.serving) is not None:
        rest = {"generation": serving.generation, "adopted": serving.adopted, "since": serving.since.isoformat()}
        kept["volume"] = {**asdict(serving.volume), **rest}
    if status.on is not None:
        kept["on"] = asdict(status.on)
    return kept


def read_status(kept: Mapping[str, Any]) -> Status:
    serving, on, moved_at = kept.get("volume"), kept.get("on"), kept.get("moved_at")
    return Status(
        serving=_read_serving(serving) if serving else None,
        on=OnNodes(**on) if on else None,
        moved_at=datetime.fromisoformat(moved_at) if moved_at else None,
        samples=tuple((datetime.fromisoformat(at), percent) for at, percent in kept.get("samples", ())),
        nodes=tuple(NodePull(node, PullState(state), reason) for node, state, reason in kept.get("nodes", ())),
        **{name: kept[name] for name in _AS_IT_IS if name in kept},
    )


def _read_serving(kept: Mapping[str, Any]) -> Serving:
    volume = {**kept, "access_modes": tuple(kept["access_modes"])}
    generation, adopted, since = (volume.pop(name) for name in ("generation", "adopted", "since"))
    return Serving(Volume(**volume), generation, adopted, datetime.fromisoformat(since))


def _written(spec: PreloadSpec, image: ImageRef) -> dict[str, Any]:
    body = spec.model_dump(mode="json", exclude_none=True)
    return {"spec": body, "kind": str(image.kind), "image": image.reference}


def _read(row: RowMapping) -> PreloadRow:
    given = dict(row)
    image = ImageRef(ImageKind(given.pop("image_kind")), given["image"])
    spec, status = PreloadSpec.model_validate(row["spec"]), read_status(row["status"])
    return PreloadRow(**{**given, "spec": spec, "state": PreloadState(row["state"]), "image": image, "status": status})
