"""Rows of snapshots and of their takes: written by name, listed, and the changes of state of takes, each with its event."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from app.domain.snapshot_specs import SnapshotSpec
from app.domain.snapshots import TakeFacts, TakeState, check_take_transition
from app.domain.templates import VmSpec
from app.store.database import Tx, any_row, first, mappings, run
from app.store.rows import columns, names_of

TAKES_KEPT = 10
_LAST_BOOTS = 200


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """`memory` is in `spec` too. It has a column of its own so that an older program can read what is written of a spec."""

    id: UUID
    name: str
    spec: SnapshotSpec
    created_at: datetime
    updated_at: datetime
    deleting_at: datetime | None
    attempts: int
    memory: bool = False


@dataclass(frozen=True, slots=True)
class TakeRow:
    """`disks` and `excluded` as they are stored: fields of SnapshotDisk, and name and reason."""

    id: UUID
    snapshot_id: UUID
    number: int
    state: TakeState
    state_since: datetime
    shape: str | None
    revision: str | None
    based_at: datetime | None
    vm_name: str | None
    vm_uid: str | None
    claim_id: UUID | None
    object_uid: str | None
    disks: tuple[dict[str, Any], ...]
    excluded: tuple[dict[str, Any], ...]
    bytes: int | None
    reason: str | None
    created_at: datetime
    ready_at: datetime | None
    ended_at: datetime | None
    memory_bytes: int | None = None
    fingerprint: str | None = None
    stale_reason: str | None = None

    @property
    def facts(self) -> TakeFacts:
        return TakeFacts(**{name: getattr(self, name) for name in names_of(TakeFacts)})


@dataclass(frozen=True, slots=True)
class SnapshotUse:
    """How many VMs started from a snapshot, and when the last one did; and how long the last boots took, in seconds."""

    used: int = 0
    last_at: datetime | None = None
    boots: int = 0
    p50: float | None = None
    p95: float | None = None


_COLUMNS = columns(SnapshotRow, "s")
_TAKE_COLUMNS = columns(TakeRow, "t")
_BY_NAME = f"SELECT {_COLUMNS} FROM snapshot s WHERE s.name = :name AND s.deleted_at IS NULL"
_BY_ID = text(f"SELECT {_COLUMNS} FROM snapshot s WHERE s.id = :id AND s.deleted_at IS NULL")
_PAGE = text(f"""
    SELECT {_COLUMNS} FROM snapshot s
    WHERE s.deleted_at IS NULL AND s.name > :after
      AND (CAST(:source AS text) IS NULL OR :source IN (s.spec->'source'->>'vm', s.spec->'source'->>'pool'))
      AND (CAST(:shape AS text) IS NULL OR EXISTS (
          SELECT 1 FROM snapshot_take t WHERE t.snapshot_id = s.id AND t.state = 'ready' AND t.shape = :shape))
    ORDER BY s.name LIMIT :limit
""")
# All takes that have not ended, and the last of those that have.
_TAKES = text(f"""
    SELECT {_TAKE_COLUMNS} FROM snapshot_take t WHERE t.id = ANY(ARRAY(
        SELECT id FROM snapshot_take WHERE snapshot_id = ANY(CAST(:ids AS uuid[])) AND ended_at IS NULL
        UNION
        SELECT l.id FROM unnest(CAST(:ids AS uuid[])) AS s(id) CROSS JOIN LATERAL (
            SELECT id FROM snapshot_take WHERE snapshot_id = s.id ORDER BY number DESC LIMIT :kept) l))
    ORDER BY t.snapshot_id, t.number
""")
_TAKE_BY_ID = text(f"SELECT {_TAKE_COLUMNS} FROM snapshot_take t WHERE t.id = :id")
_LOCK = text("SELECT 1 FROM snapshot WHERE name = :name AND deleting_at IS NULL AND deleted_at IS NULL FOR KEY SHARE")
_INSERT = text("""
    INSERT INTO snapshot (id, name, spec, memory) VALUES (:id, :name, :spec, :memory)
    ON CONFLICT (name) WHERE deleted_at IS NULL DO NOTHING RETURNING id
""").bindparams(bindparam("spec", type_=JSONB))
_INSERT_TAKE = text("""
    WITH made AS (
        INSERT INTO snapshot_take (id, snapshot_id, number)
        SELECT :id, :snapshot_id, coalesce(max(number), 0) + 1 FROM snapshot_take WHERE snapshot_id = :snapshot_id
        RETURNING number),
    noted AS (
        INSERT INTO event (type, data) SELECT 'snapshot.planned', jsonb_build_object('snapshot', s.name, 'take', m.number)
        FROM made m, snapshot s WHERE s.id = :snapshot_id)
    SELECT number FROM made
""")
_BEGIN_DELETE = text("""
    UPDATE snapshot SET deleting_at = now(), updated_at = now(), due_at = now()
    WHERE id = :id AND deleting_at IS NULL RETURNING id
""")
_END_DELETE = text("""
    UPDATE snapshot SET deleted_at = now() WHERE id = :id AND deleting_at IS NOT NULL AND deleted_at IS NULL
      AND NOT EXISTS (SELECT 1 FROM snapshot_take t WHERE t.snapshot_id = :id AND t.ended_at IS NULL)
    RETURNING id
""")
_MAKE_DUE = text("UPDATE snapshot SET due_at = now() WHERE id = :id AND deleted_at IS NULL")
_MOVE = """
    WITH moved AS (
        UPDATE snapshot_take t SET state = CAST(:target AS text), state_since = now(), reason = :reason,
            ready_at = CASE WHEN :target = 'ready' THEN now() ELSE t.ready_at END,
            ended_at = CASE WHEN :target IN ('retired', 'failed') THEN now() ELSE t.ended_at END{more}
        WHERE t.id = :id AND t.state = :source RETURNING t.snapshot_id, t.number),
    noted AS (
        INSERT INTO event (type, data)
        SELECT 'snapshot.' || :target, jsonb_strip_nulls(jsonb_build_object(
            'snapshot', s.name, 'take', m.number, 'from', CAST(:source AS text), 'reason', CAST(:reason AS text)))
        FROM moved m JOIN snapshot s ON s.id = m.snapshot_id)
    SELECT snapshot_id FROM moved
"""
_NOTE = text("UPDATE snapshot_take SET reason = :reason WHERE id = :id AND reason IS DISTINCT FROM :reason")
# The event's source makes pools that start from it be planned.
_MARK_STALE = text("""
    WITH marked AS (
        UPDATE snapshot_take SET stale_reason = :reason WHERE id = :id AND state = 'ready' AND stale_reason IS NULL
        RETURNING snapshot_id, number),
    noted AS (
        INSERT INTO event (type, data)
        SELECT 'snapshot.stale', jsonb_build_object('snapshot', s.name, 'take', m.number, 'reason', CAST(:reason AS text))
        FROM marked m JOIN snapshot s ON s.id = m.snapshot_id)
    SELECT snapshot_id FROM marked
""")
_WRITE_OBJECT = text("UPDATE snapshot_take SET object_uid = :uid WHERE id = :id")
_USERS = text("""
    SELECT name, vm_spec FROM pool
    WHERE source = :name AND path IN ('memory', 'snapshot') AND kind = 'pool' AND deleting_at IS NULL AND deleted_at IS NULL ORDER BY name
""")
_USERS_OF = text("""
    SELECT source, name FROM pool
    WHERE source = ANY(CAST(:names AS text[])) AND path IN ('memory', 'snapshot') AND kind = 'pool'
      AND deleting_at IS NULL AND deleted_at IS NULL ORDER BY name
""")
_USE = text("""
    SELECT s.name, s.uses, s.used_at, b.n AS boots, b.p50, b.p95 FROM snapshot s CROSS JOIN LATERAL (
        SELECT count(*) AS n, percentile_cont(0.5) WITHIN GROUP (ORDER BY boot_seconds) AS p50,
            percentile_cont(0.95) WITHIN GROUP (ORDER BY boot_seconds) AS p95
        FROM (SELECT boot_seconds FROM vm WHERE source = s.name AND path IN ('memory', 'snapshot') AND boot_seconds IS NOT NULL
              ORDER BY ready_at DESC LIMIT :last) last) b
    WHERE s.name = ANY(CAST(:names AS text[])) AND s.deleted_at IS NULL
""")
_NOTE_USE = text("UPDATE snapshot SET used_at = now(), uses = uses + 1 WHERE name = :name AND deleted_at IS NULL")
_PRUNE = text("DELETE FROM snapshot WHERE deleted_at < now() - make_interval(secs => :seconds)")


async def get(tx: Tx, name: str, *, lock: bool = False) -> SnapshotRow | None:
    """The snapshot of that name. With `lock` nobody else changes it until `tx` ends."""
    query = _BY_NAME + (" FOR UPDATE" if lock else "")
    return _snapshot(await first(tx, text(query), name=name))


async def get_by_id(tx: Tx, snapshot_id: UUID) -> SnapshotRow | None:
    return _snapshot(await first(tx, _BY_ID, id=snapshot_id))


async def page(tx: Tx, *, after: str, limit: int, shape: str | None, source: str | None) -> list[SnapshotRow]:
    """Sorted by name, those after `after`. `source`: the name of their VM or pool. `shape`: of one of their ready takes."""
    rows = await mappings(tx, _PAGE, after=after, limit=limit, shape=shape, source=source)
    return [row for row in map(_snapshot, rows) if row is not None]


async def takes_of(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, list[TakeRow]]:
    """The takes of each snapshot, oldest first. Of takes that have ended only the last few."""
    found: dict[UUID, list[TakeRow]] = {snapshot_id: [] for snapshot_id in ids}
    for row in await mappings(tx, _TAKES, ids=list(ids), kept=TAKES_KEPT):
        found[row["snapshot_id"]].append(_take(row))
    return found


async def get_take(tx: Tx, take_id: UUID) -> TakeRow | None:
    row = await first(tx, _TAKE_BY_ID, id=take_id)
    return _take(row) if row else None


async def lock(tx: Tx, name: str) -> bool:
    """Whether there is such a snapshot that is not being deleted. Nobody can delete it until `tx` ends."""
    return await any_row(tx, _LOCK, name=name)


async def insert(tx: Tx, *, snapshot_id: UUID, spec: SnapshotSpec) -> bool:
    """False if there is a snapshot of that name already."""
    written = spec.model_dump(mode="json", exclude={"memory"})
    return await any_row(tx, _INSERT, id=snapshot_id, name=spec.name, spec=written, memory=spec.memory)


async def insert_take(tx: Tx, *, snapshot_id: UUID, take_id: UUID) -> int:
    """Inserts a planned take and returns its number. The caller has locked the snapshot, or leased it."""
    number: int = (await run(tx, _INSERT_TAKE, id=take_id, snapshot_id=snapshot_id)).scalar_one()
    return number


async def begin_delete(tx: Tx, snapshot_id: UUID) -> bool:
    return await any_row(tx, _BEGIN_DELETE, id=snapshot_id)


async def end_delete(tx: Tx, snapshot_id: UUID) -> bool:
    """Deletes a snapshot that is being deleted and has no take left. Its name is free then."""
    return await any_row(tx, _END_DELETE, id=snapshot_id)


async def make_due(tx: Tx, snapshot_id: UUID) -> None:
    """The snapshot is due for its reconciler."""
    await run(tx, _MAKE_DUE, id=snapshot_id)


async def move_take(tx: Tx, take: TakeRow, target: TakeState, *, reason: str | None = None, **written: Any) -> bool:
    """Moves a take from the state of `take` to `target`, and writes what else is known now. False if it is in another state.

    `written`: shape, revision, based_at, vm_name, vm_uid, vm_spec, claim_id, disks, excluded, bytes, memory_bytes, fingerprint.
    Raises IllegalTransition.
    """
    check_take_transition(take.state, target)
    more = "".join(f", {column} = :{column}" for column in sorted(written))
    kept = [bindparam(column, type_=JSONB) for column in ("disks", "excluded", "vm_spec") if column in written]
    statement = text(_MOVE.format(more=more)).bindparams(*kept)
    return await any_row(
        tx, statement, id=take.id, source=str(take.state), target=str(target), reason=reason, **written
    )


async def note_take(tx: Tx, take_id: UUID, reason: str | None) -> None:
    """Writes what the take waits for."""
    await run(tx, _NOTE, id=take_id, reason=reason)


async def mark_stale(tx: Tx, take_id: UUID, reason: str) -> bool:
    """The memory of a ready take cannot be restored any more. False if that is known."""
    return await any_row(tx, _MARK_STALE, id=take_id, reason=reason)


async def write_object(tx: Tx, take_id: UUID, uid: str) -> None:
    """Writes the UID of the take's VirtualMachineSnapshot."""
    await run(tx, _WRITE_OBJECT, id=take_id, uid=uid)


async def pools_using(tx: Tx, name: str) -> dict[str, VmSpec]:
    """The pools whose VMs start from it, each with the spec of its VMs. On-demand pools are not among them."""
    return {row.name: row.vm_spec for row in await run(tx, _USERS, name=name)}


async def users_of(tx: Tx, names: Iterable[str]) -> dict[str, list[str]]:
    """By snapshot, the names of the pools whose VMs start from it."""
    wanted = list(names)
    found: dict[str, list[str]] = {name: [] for name in wanted}
    for row in await run(tx, _USERS_OF, names=wanted):
        found[row.source].append(row.name)
    return found


async def use_of(tx: Tx, names: Sequence[str]) -> dict[str, SnapshotUse]:
    """By snapshot, how it was used."""
    rows = await run(tx, _USE, names=list(names), last=_LAST_BOOTS)
    found = {row.name: SnapshotUse(row.uses, row.used_at, row.boots, row.p50, row.p95) for row in rows}
    return {name: found.get(name, SnapshotUse()) for name in names}


async def note_use(tx: Tx, name: str) -> None:
    """A VM that starts from it was created."""
    await run(tx, _NOTE_USE, name=name)


async def prune(tx: Tx, *, seconds: float) -> int:
    """Deletes the rows of snapshots that were deleted more than `seconds` ago, with their takes. Returns how many."""
    return (await run(tx, _PRUNE, seconds=seconds)).rowcount


def _snapshot(row: Mapping[Any, Any] | None) -> SnapshotRow | None:
    if row is None:
        return None
    return SnapshotRow(**{**row, "spec": SnapshotSpec.model_validate({**row["spec"], "memory": row["memory"]})})


def _take(row: Mapping[Any, Any]) -> TakeRow:
    return TakeRow(
        **{
            **row,
            "state": TakeState(row["state"]),
            "disks": tuple(row["disks"]),
            "excluded": tuple(row["excluded"]),
        }
    )
