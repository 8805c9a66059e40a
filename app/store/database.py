"""Connections to Postgres: the engine, transactions, and the one place where driver errors become ours."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
from sqlalchemy import CursorResult, RowMapping, TextClause, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.errors import DatabaseUnavailable

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


_RETRY_AFTER_SECONDS = 2.0
_AWAY = (
    OSError,
    TimeoutError,
    PoolTimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InterfaceError,
    asyncpg.UndefinedTableError,  # not migrated: /readyz says so until it is
    asyncpg.InternalClientError,  # an idle connection that the server closed, used before asyncpg 0.32 noticed
)


# Postgres ended a transaction because of a deadlock, or because it waited too long.
_BUSY = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
)


_SESSION = {"jit": "off", "application_name": "emberpool"}


def make_engine(url: str, *, command_seconds: float = 30, **options: Any) -> AsyncEngine:
    """An engine whose connections asyncpg opens from the libpq URL, as those of the claims. So `sslmode`, `sslrootcert`, `host`
    and other libpq parameters mean the same everywhere; SQLAlchemy's own parsing knows none of them.
    """
    dsn = driver_dsn(url)

    async def connect() -> "asyncpg.Connection[Any]":
        return await asyncpg.connect(dsn, timeout=5, command_timeout=command_seconds, server_settings=_SESSION)

    return create_async_engine("postgresql+asyncpg://", async_creator=connect, **options)


def driver_dsn(url: str) -> str:
    """A libpq URL (a socket folder as `?host=`) in the form that asyncpg takes, whatever its scheme is."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def is_away(error: BaseException) -> bool:
    """Whether an error means that Postgres cannot be reached, and not that a statement is wrong."""
    if isinstance(error, DBAPIError) and (
        error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    ):
        return True
    return isinstance(_driver_error(error), _AWAY)


def is_busy(error: BaseException) -> bool:
    """Whether an error means that other transactions were in the way: the same again can succeed."""
    return isinstance(_driver_error(error), _BUSY)


def _driver_error(error: BaseException) -> BaseException | None:
    """The error of asyncpg inside the one of SQLAlchemy, if there is one."""
    if isinstance(error, DBAPIError):
        return error.orig.__cause__ if error.orig is not None else None
    return error


def unavailable() -> DatabaseUnavailable:
    return _later("the database does not answer; a change that was not confirmed may be missing. Try again in a moment")


def busy() -> DatabaseUnavailable:
    return _later("the database ended this because other requests were in the way; nothing was changed. Try again")


def overrun() -> DatabaseUnavailable:
    return _later("the database is overloaded at this moment; nothing was changed. Try again")


def _later(detail: str) -> DatabaseUnavailable:
    return DatabaseUnavailable(detail, retry_after=_RETRY_AFTER_SECONDS)


@contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_busy(error):
            raise busy() from error
        if is_away(error):
            raise unavailable() from error
        raise


class Database:
    """The connections of one process. `begin` opens a transaction that commits when the block ends, and rolls back if it raises."""

    def __init__(self, url: str, *, pool_size: int = 8) -> None:
        self.url = url
        self._engine = make_engine(url, pool_size=pool_size, max_overflow=0, pool_timeout=5, pool_pre_ping=True)
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """Raises DatabaseUnavailable if Postgres cannot be reached, disconnects, or ends the transaction in favour of others."""
        with _translating():
            async with self._engine.begin() as tx:
                yield tx

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """For one statement that reads: without a transaction it takes half the round trips. Raises DatabaseUnavailable."""
        with _translating():
            async with self._autocommit.connect() as tx:
                yield tx

    async def close(self) -> None:
        await self._engine.dispose()
