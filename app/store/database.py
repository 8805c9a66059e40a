"""Connections to Postgres: the engine, and transactions."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg
import orjson
from sqlalchemy import CursorResult, RowMapping, TextClause, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.store.postgres_errors import is_stale, translate

_Read = TypeVar("_Read")
_SLICE = 20

Tx = AsyncConnection
"""An open transaction, as store functions take it. Only the store knows what it is."""


async def run(tx: Tx, query: TextClause, /, **params: object) -> CursorResult[Any]:
    """Executes a statement; its parameters are given by name, as in the three functions below."""
    return await tx.execute(query, params)


async def any_row(tx: Tx, query: TextClause, /, **params: object) -> bool:
    """Whether the statement returned a row."""
    return (await tx.execute(query, params)).first() is not None


async def first(tx: Tx, query: TextClause, /, **params: object) -> RowMapping | None:
    """The first row by column names."""
    return (await tx.execute(query, params)).mappings().first()


async def mappings(tx: Tx, query: TextClause, /, **params: object) -> Sequence[RowMapping]:
    """All rows by column names."""
    return (await tx.execute(query, params)).mappings().all()


async def read_page(
    tx: Tx, query: TextClause, read: Callable[[Mapping[str, Any]], _Read], /, **params: object
) -> list[_Read]:
    """What `read` makes of each row. Reads a few at a time, so that whatever else the loop does waits for a slice, not for a page."""
    result = await tx.execute(query, params)
    names, rows = list(result.keys()), result.all()
    found: list[_Read] = []
    for start in range(0, len(rows), _SLICE):
        found += [read(dict(zip(names, row, strict=True))) for row in rows[start : start + _SLICE]]
        await asyncio.sleep(0)
    return found


_SESSION = {"jit": "off", "application_name": "emberpool"}


def make_engine(
    url: str, *, command_seconds: float = 30, session: Mapping[str, str] | None = None, **options: Any
) -> AsyncEngine:
    """An engine whose connections asyncpg opens from the libpq URL, as those of the claims. So `sslmode`, `sslrootcert`, `host`
    and other libpq parameters mean the same everywhere; SQLAlchemy's own parsing knows none of them.
    """
    dsn = driver_dsn(url)
    settings = {**_SESSION, **(session or {})}

    async def connect() -> "asyncpg.Connection[Any]":
        return await asyncpg.connect(dsn, timeout=5, command_timeout=command_seconds, server_settings=settings)

    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=connect, json_deserializer=orjson.loads, **options
    )
    event.listen(engine.sync_engine, "handle_error", _discard_stale)
    return engine


def _discard_stale(context: ExceptionContext) -> None:
    """Has SQLAlchemy open all connections anew after an error that concerns all: one that was opened while the database was
    read-only stays so for as long as it lives.
    """
    if context.sqlalchemy_exception is not None and is_stale(context.sqlalchemy_exception):
        context.is_disconnect = context.invalidate_pool_on_disconnect = True


def describe_failure(error: BaseException) -> str:
    """The innermost cause in the words of the server or of the system. Errors of other kinds may quote parts of the URL, and with it
    the password: of them, only the kind is told.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    known = isinstance(error, OSError | asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError)
    return (str(error) if known else "") or type(error).__name__


def driver_dsn(url: str) -> str:
    """A libpq URL (a socket folder as `?host=`) in the form that asyncpg takes, whatever its scheme is."""
    return f"postgresql{url[url.index(':') :]}"


class Database:
    """The connections of one process. `begin` opens a transaction that commits when the block ends, and rolls back if it raises."""

    def __init__(self, url: str, *, pool_size: int = 8, session: Mapping[str, str] | None = None) -> None:
        """`session`: settings of Postgres for each connection."""
        self.url = url
        self._engine = make_engine(
            url, session=session, pool_size=pool_size, max_overflow=0, pool_timeout=5, pool_pre_ping=True
        )
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """Raises DatabaseUnavailable where Postgres cannot be reached or cannot do this now (`postgres_errors`), and DatabaseLost
        where the commit may have been made.
        """
        committing = False
        try:
            async with self._engine.begin() as tx:
                yield tx
                committing = True
        except Exception as error:
            ours = translate(error, committing=committing)
            if ours is None:
                raise
            raise ours from error

    @asynccontextmanager
    async def once(self) -> AsyncIterator[AsyncConnection]:
        """For one statement, which is a transaction by itself: that takes half the round trips. Raises DatabaseUnavailable; then a
        statement that writes may have done so.
        """
        try:
            async with self._autocommit.connect() as tx:
                yield tx
        except Exception as error:
            ours = translate(error)
            if ours is None:
                raise
            raise ours from error

    async def close(self) -> None:
        await self._engine.dispose()
