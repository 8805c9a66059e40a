"""Events: written in the transaction of each change, read as pages and as a stream."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from typing_extensions import override

from app.store.database import Tx, first, mappings, run

_RECORD = text("""
    INSERT INTO event (type, pool_id, vm_id, claim_id, data) VALUES (:type, :pool_id, :vm_id, :claim_id, :data)
""").bindparams(bindparam("data", type_=JSONB))

_SELECT = """SELECT e.xid::text AS xid, e.id, e.at, e.type, e.pool_id, CASE WHEN p.kind = 'pool' THEN p.name END AS pool, e.vm_id, e.claim_id, e.data
    FROM event e LEFT JOIN pool p ON p.id = e.pool_id"""
# Only events of transactions that are older than all running ones: no event can appear before them later.
_FOUND = """
    (e.xid, e.id) {beyond} (CAST(CAST(:xid AS text) AS xid8), :id) AND e.xid < pg_snapshot_xmin(pg_current_snapshot())
      AND (CAST(:pool AS text) IS NULL OR (p.name = :pool AND p.kind = 'pool'))
      AND (CAST(:kind AS text) IS NULL OR e.type LIKE :kind || '.%')
"""
_PAGE = text(f"{_SELECT} WHERE {_FOUND.format(beyond='>')} ORDER BY e.xid, e.id LIMIT :limit")
_PAGE_BACK = text(f"{_SELECT} WHERE {_FOUND.format(beyond='<')} ORDER BY e.xid DESC, e.id DESC LIMIT :limit")
_LATEST = text("""
    SELECT e.xid::text AS xid, e.id FROM event e
    WHERE e.xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY e.xid DESC, e.id DESC LIMIT 1
""")
_OF_VM = text(f"{_SELECT} WHERE e.vm_id = :vm_id ORDER BY e.id LIMIT :limit")
# Only the oldest few are read: the order of transaction ids is about the order of time.
_PRUNE = text("""
    DELETE FROM event WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM (SELECT ctid, at FROM event ORDER BY xid, id LIMIT :limit) oldest
        WHERE at < now() - make_interval(secs => :seconds)))
""")
_CURSOR = re.compile(r"([0-9]{1,20})-([0-9]{1,19})")


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A position in the events. Clients send its text back, as a page's cursor or a stream's Last-Event-ID."""

    xid: int = 0
    id: int = 0

    @override
    def __str__(self) -> str:
        return f"{self.xid}-{self.id}"

    @classmethod
    def parse(cls, value: str) -> "Cursor":
        """Raises ValueError if `value` is not the text of a cursor."""
        found = _CURSOR.fullmatch(value)
        if found is None or int(found[1]) >= 2**64 or int(found[2]) >= 2**63:
            raise ValueError(f"{value!r} is not a cursor of an event")
        return cls(int(found[1]), int(found[2]))


_END = Cursor(2**64 - 1, 2**63 - 1)


@dataclass(frozen=True, slots=True)
class EventRow:
    cursor: Cursor
    at: datetime
    type: str
    pool_id: UUID | None
    pool: str | None
    vm_id: UUID | None
    claim_id: UUID | None
    data: dict[str, Any]


async def record(
    tx: Tx,
    type_: str,
    *,
    pool_id: UUID | None = None,
    vm_id: UUID | None = None,
    claim_id: UUID | None = None,
    **data: object,
) -> None:
    await run(tx, _RECORD, type=type_, pool_id=pool_id, vm_id=vm_id, claim_id=claim_id, data=data)


async def page(
    tx: Tx, *, after: Cursor, limit: int, pool: str | None = None, kind: str | None = None
) -> list[EventRow]:
    """Up to `limit` events after a cursor, oldest first. `kind`: the part of the type before the dot, for example `pool` or `vm`."""
    return [
        _read(row)
        for row in await mappings(tx, _PAGE, xid=str(after.xid), id=after.id, limit=limit, pool=pool, kind=kind)
    ]


async def page_back(
    tx: Tx, *, before: Cursor | None, limit: int, pool: str | None = None, kind: str | None = None
) -> list[EventRow]:
    """Up to `limit` events before a cursor (None: the last ones), newest first. See `page`."""
    start = before or _END
    return [
        _read(row)
        for row in await mappings(tx, _PAGE_BACK, xid=str(start.xid), id=start.id, limit=limit, pool=pool, kind=kind)
    ]


async def latest(tx: Tx) -> Cursor:
    """The position of the last event: everything after it is new."""
    row = await first(tx, _LATEST)
    return Cursor(int(row["xid"]), row["id"]) if row else Cursor()


async def of_vm(tx: Tx, vm_id: UUID, *, limit: int = 200) -> list[EventRow]:
    return [_read(row) for row in await mappings(tx, _OF_VM, vm_id=vm_id, limit=limit)]


async def prune(tx: Tx, *, seconds: float, limit: int) -> int:
    """Deletes up to `limit` events that are older than `seconds`, the oldest first. Returns how many."""
    return (await run(tx, _PRUNE, seconds=seconds, limit=limit)).rowcount


def _read(row: RowMapping) -> EventRow:
    rest = {key: value for key, value in row.items() if key not in {"xid", "id"}}
    return EventRow(cursor=Cursor(int(row["xid"]), row["id"]), **rest)
