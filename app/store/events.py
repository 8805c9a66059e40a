"""Events: written in the transaction of each change, read as pages and as a stream."""

import re
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from typing_extensions import override

from app.store.database import Tx, first, mappings, run
from app.store.pools.names import ids_named

KINDS = ("pool", "vm", "claim", "snapshot", "preload")
"""The part of an event's type before the dot."""

_KIND = "split_part(type, '.', 1)"
_RECORD = text("""
    INSERT INTO event (type, pool_id, vm_id, claim_id, data) VALUES (:type, :pool_id, :vm_id, :claim_id, :data)
""").bindparams(bindparam("data", type_=JSONB))

_SELECT = """SELECT e.xid::text AS xid, e.id, e.at, e.type, e.pool_id, CASE WHEN p.kind = 'pool' THEN p.name END AS pool, e.vm_id, e.claim_id, e.data
    FROM event e LEFT JOIN pool p ON p.id = e.pool_id"""
_LATEST = text("""
    SELECT e.xid::text AS xid, e.id FROM event e
    WHERE e.xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY e.xid DESC, e.id DESC LIMIT 1
""")
_OF_VM = text(f"{_SELECT} WHERE e.vm_id = :vm_id ORDER BY e.id LIMIT :limit")
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
    return await _page(tx, after, forward=True, limit=limit, pool=pool, kind=kind)


async def page_back(
    tx: Tx, *, before: Cursor | None, limit: int, pool: str | None = None, kind: str | None = None
) -> list[EventRow]:
    """Up to `limit` events before a cursor (None: the last ones), newest first. See `page`."""
    return await _page(tx, before or _END, forward=False, limit=limit, pool=pool, kind=kind)


async def _page(
    tx: Tx, start: Cursor, *, forward: bool, limit: int, pool: str | None, kind: str | None
) -> list[EventRow]:
    pools = await ids_named(tx, pool) if pool is not None else None
    query = statement(forward=forward, pool=pool is not None, kind=kind)
    kinds = list(KINDS) if kind is None else [kind]
    rows = await mappings(tx, query, xid=str(start.xid), id=start.id, limit=limit, pools=pools, kind=kind, kinds=kinds)
    return [_read(row) for row in rows]


@cache
def statement(*, forward: bool, pool: bool, kind: str | None) -> TextClause:
    """The statement for these filters. Only events of transactions that are older than all running ones: no event can appear before
    them later.
    """
    above, below, turn = (">", "<=", "") if forward else ("<", ">=", " DESC")
    prefix = [*([("pool_id", "p.id")] if pool else []), *([(_KIND, "k.kind")] if pool or _is_indexed(kind) else [])]
    columns, values = [column for column, _ in prefix], [value for _, value in prefix]
    conditions = [
        f"({', '.join([*columns, 'xid', 'id'])}) {above} ({', '.join([*values, 'CAST(CAST(:xid AS text) AS xid8)', ':id'])})",
        "xid < pg_snapshot_xmin(pg_current_snapshot())",
        *([f"({', '.join(columns)}) {below} ({', '.join(values)})"] if prefix else []),
        *(["pool_id IS NOT NULL"] if pool else []),
        *([f"{_KIND} <> 'claim'"] if not pool and _is_indexed(kind) else []),
        *([f"{_KIND} = 'claim'"] if not pool and kind == "claim" else []),
    ]
    order = ", ".join(f"{column}{turn}" for column in [*columns, "xid", "id"])
    found = f"SELECT * FROM event WHERE {' AND '.join(conditions)} ORDER BY {order} LIMIT :limit"
    kinds, pools = "unnest(CAST(:kinds AS text[])) AS k(kind)", "unnest(CAST(:pools AS uuid[])) AS p(id)"
    if prefix:
        each = f"{kinds} CROSS JOIN {pools}" if pool else kinds
        found = f"SELECT f.* FROM {each} CROSS JOIN LATERAL ({found}) f ORDER BY xid{turn}, id{turn} LIMIT :limit"
    return text(f"{_SELECT.replace('FROM event e', f'FROM ({found}) e')} ORDER BY e.xid{turn}, e.id{turn}")


def _is_indexed(kind: str | None) -> bool:
    """Claims are in no index of kinds alone: each would cost a warm claim, and claims are in every stretch of the history."""
    return kind not in {None, "claim"}


async def latest(tx: Tx) -> Cursor:
    """The position of the last event: everything after it is new."""
    row = await first(tx, _LATEST)
    return Cursor(int(row["xid"]), row["id"]) if row else Cursor()


async def of_vm(tx: Tx, vm_id: UUID, *, limit: int = 200) -> list[EventRow]:
    return [_read(row) for row in await mappings(tx, _OF_VM, vm_id=vm_id, limit=limit)]


def _read(row: RowMapping) -> EventRow:
    rest = {key: value for key, value in row.items() if key not in {"xid", "id"}}
    return EventRow(cursor=Cursor(int(row["xid"]), row["id"]), **rest)
