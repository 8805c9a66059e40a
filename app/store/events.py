"""Events: written in the transaction of each change, read as pages and as a stream."""

import re
from collections.abc import Sequence
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
# Warm claims are in no index by pool: a worker lists them in `bound_event` a moment later, up to here.
_READER = """(SELECT coalesce((SELECT xid FROM event_reader WHERE name = 'plan'), '0'::xid8) AS xid,
    coalesce((SELECT id FROM event_reader WHERE name = 'plan'), 0) AS id) r"""
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
    turn = "" if forward else " DESC"
    if pool:
        pools = "unnest(CAST(:pools AS uuid[])) AS p(id)"
        kinds = "unnest(CAST(:kinds AS text[])) AS k(kind)"
        prefix = [("pool_id", "p.id"), (_KIND, "k.kind")]
        others = _walk("event", prefix, "pool_id IS NOT NULL AND type <> 'claim.bound'", forward=forward)
        found = [f"SELECT f.* FROM {kinds} CROSS JOIN {pools} CROSS JOIN LATERAL ({others}) f"]
        if kind in {None, "claim"}:
            listed = _walk("bound_event", [("pool_id", "p.id")], "true", forward=forward)
            unlisted = "(xid, id) > (r.xid, r.id) AND type = 'claim.bound' AND pool_id = ANY(CAST(:pools AS uuid[]))"
            found += [
                f"SELECT e.* FROM {pools} CROSS JOIN LATERAL ({listed}) b JOIN event e ON e.xid = b.xid AND e.id = b.id",
                f"SELECT f.* FROM {_READER} CROSS JOIN LATERAL ({_walk('event', [], unlisted, forward=forward)}) f",
            ]
    elif _is_indexed(kind):
        found = [_walk("event", [(_KIND, "CAST(:kind AS text)")], f"{_KIND} <> 'claim'", forward=forward)]
    else:
        found = [_walk("event", [], f"{_KIND} = 'claim'" if kind else "true", forward=forward)]
    union = " UNION ALL ".join(f"({branch})" for branch in found)
    page = f"SELECT * FROM ({union}) found ORDER BY xid{turn}, id{turn} LIMIT :limit"
    return text(f"{_SELECT.replace('FROM event e', f'FROM ({page}) e')} ORDER BY e.xid{turn}, e.id{turn}")


def _walk(table: str, prefix: Sequence[tuple[str, str]], where: str, *, forward: bool) -> str:
    """A stretch of an index of `prefix`, xid and id, from the cursor on; see `store.walks`."""
    above, below, turn = (">", "<=", "") if forward else ("<", ">=", " DESC")
    columns, values = [column for column, _ in prefix], [value for _, value in prefix]
    start = f"({', '.join([*columns, 'xid', 'id'])}) {above} ({', '.join([*values, 'CAST(CAST(:xid AS text) AS xid8)', ':id'])})"
    end = f" AND ({', '.join(columns)}) {below} ({', '.join(values)})" if prefix else ""
    order = ", ".join(f"{column}{turn}" for column in [*columns, "xid", "id"])
    final = "xid < pg_snapshot_xmin(pg_current_snapshot())"
    return f"SELECT * FROM {table} WHERE {where} AND {start}{end} AND {final} ORDER BY {order} LIMIT :limit"


def _is_indexed(kind: str | None) -> bool:
    """Claims are in no index of kinds alone, and in every stretch of the history."""
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
