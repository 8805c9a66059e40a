"""Walks along an index: the one way in which a list reads a page out of a long history."""

from collections.abc import Sequence
from uuid import UUID

FIRST = UUID(int=2**128 - 1)
"""What the first page, which begins with the newest id, comes after."""


def newest(table: str, prefix: Sequence[tuple[str, str]], key: str = "id", *, where: str = "true") -> str:
    """SQL for the ids below `:after`, the newest first, up to `:limit`, of the rows whose `prefix` columns have the values given.

    `prefix` and `key` are the columns of an index, in its order. The conditions and the order are written so that Postgres can use
    no other index: with equalities it may as well walk the primary key and drop rows, which takes long where the rows are rare.
    """
    columns, values = [column for column, _ in prefix], [value for _, value in prefix]
    upper = f"({', '.join([*columns, key])}) < ({', '.join([*values, 'CAST(:after AS uuid)'])})"
    lower = f" AND ({', '.join(columns)}) >= ({', '.join(values)})" if prefix else ""
    order = ", ".join(f"{column} DESC" for column in [*columns, key])
    return f"SELECT {key} AS id FROM {table} WHERE {where} AND {upper}{lower} ORDER BY {order} LIMIT :limit"


def for_each(sets: Sequence[str], walk: str) -> str:
    """SQL for the walk, once for each row of the sets, which its values may refer to."""
    return f"SELECT f.id FROM {' CROSS JOIN '.join(sets)} CROSS JOIN LATERAL ({walk}) f" if sets else walk
