"""What all tables share: their metadata, the names of constraints, types of columns, and the columns of leases."""

from enum import StrEnum
from typing import Any

from sqlalchemy import Column, DateTime, Integer, MetaData, Uuid, text
from sqlalchemy.types import TypeEngine, UserDefinedType
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

AWARE = DateTime(timezone=True)


def one_of(column: str, values: type[StrEnum]) -> str:
    """The condition that the column has one of the values."""
    return f"{column} IN ({', '.join(repr(str(v)) for v in values)})"


def required(
    name: str, kind: type[TypeEngine[Any]] | TypeEngine[Any], default: str, comment: str | None = None
) -> Column[Any]:
    """A column that is never NULL; `default` is SQL."""
    return Column(name, kind, nullable=False, server_default=text(default), comment=comment)


def lifetime_columns() -> list[Column[Any]]:
    """Of what users write, and delete in two steps."""
    written = [required("created_at", AWARE, "now()"), required("updated_at", AWARE, "now()")]
    return [*written, Column("deleting_at", AWARE), Column("deleted_at", AWARE)]


def lease_columns() -> list[Column[Any]]:
    """The columns by which workers lease rows (see `store.leases`)."""
    return [
        required("due_at", AWARE, "now()", "a worker looks at it from then on"),
        required("attempts", Integer, "0"),
        Column("lease_token", Uuid),
        Column("lease_expires_at", AWARE),
    ]


def vacuumed_after(rows: int) -> dict[str, str]:
    """The storage of a queue: vacuumed early and fast, because it has many dead rows beside few live ones."""
    return {
        "autovacuum_vacuum_scale_factor": "0",
        "autovacuum_vacuum_threshold": str(rows),
        "autovacuum_vacuum_cost_delay": "0",
    }
