"""What all tables share: their metadata, the names of constraints, types of columns, and the columns of leases."""

from enum import StrEnum
from typing import Any

from sqlalchemy import Column, DateTime, Integer, MetaData, Uuid, text
from sqlalchemy.types import UserDefinedType
from typing_extensions import override


class Xid8(UserDefinedType[str]):
    """A transaction id that never wraps around (Postgres 13 and later)."""

    cache_ok = True

    @override
    def get_col_spec(self, **kw: Any) -> str:
        return "xid8"


metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)

NOW = text("now()")
AWARE = DateTime(timezone=True)


def one_of(column: str, values: type[StrEnum]) -> str:
    """The condition that the column has one of the values."""
    return f"{column} IN ({', '.join(repr(str(v)) for v in values)})"


def lease_columns() -> list[Column[Any]]:
    """The columns by which workers lease rows (see `store.leases`)."""
    return [
        Column("due_at", AWARE, nullable=False, server_default=NOW, comment="a worker looks at it from then on"),
        Column("attempts", Integer, nullable=False, server_default=text("0")),
        Column("lease_token", Uuid),
        Column("lease_expires_at", AWARE),
    ]
