"""The way to Postgres: an engine, transactions, and the one place where its absence becomes an error of ours."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.errors import DatabaseUnavailable

Tx = AsyncConnection
"""An open transaction, as store functions take it; what it is made of is the store's affair."""

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
    asyncpg.UndefinedTableError,  # not migrated: it serves again once it is, and /readyz says so meanwhile
    asyncpg.InternalClientError,  # an idle connection whose server said goodbye, used before its end was read (asyncpg 0.32)
)


# Postgres ended one of two transactions that waited for each other, or one that waited too long.
_BUSY = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
)


_SESSION = {"jit": "off", "application_name": "emberpool"}


def make_engine(url: str, *, command_seconds: float = 30, **options: Any) -> AsyncEngine:
    """An engine whose connections asyncpg itself opens from the libpq URL, as those of the claims are: one reading of
    `sslmode`, `sslrootcert`, `host` and the rest, and not SQLAlchemy's beside it, which knows none of libpq's.
    """
    dsn = driver_dsn(url)

    async def connect() -> "asyncpg.Connection[Any]":
        return await asyncpg.connect(dsn, timeout=5, command_timeout=command_seconds, server_settings=_SESSION)

    return create_async_engine("postgresql+asyncpg://", async_creator=connect, **options)


def driver_dsn(url: str) -> str:
    """A libpq URL (socket folder as `?host=`) as asyncpg takes it, whatever its scheme was called."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def is_away(error: BaseException) -> bool:
    """Whether an error says that Postgres cannot be reached, and not that a statement is wrong."""
    if isinstance(error, DBAPIError) and (
        error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    ):
        return True
    return isinstance(_driver_error(error), _AWAY)


def is_busy(error: BaseException) -> bool:
    """Whether an error says that others were in the way: the same again can succeed."""
    return isinstance(_driver_error(error), _BUSY)


def _driver_error(error: BaseException) -> BaseException | None:
    """What asyncpg raised, where SQLAlchemy has wrapped it."""
    if isinstance(error, DBAPIError):
        return error.orig.__cause__ if error.orig is not None else None
    return error


def unavailable() -> DatabaseUnavailable:
    return DatabaseUnavailable(
        "the database does not answer; nothing was changed that you have not been told of. Try again in a moment",
        retry_after=_RETRY_AFTER_SECONDS,
    )


def busy() -> DatabaseUnavailable:
    return DatabaseUnavailable(
        "the database gave up on this because others were in the way; nothing was changed. Try again",
        retry_after=_RETRY_AFTER_SECONDS,
    )


def overrun() -> DatabaseUnavailable:
    return DatabaseUnavailable(
        "more is asked of the database than it takes at this moment; nothing was changed. Try again",
        retry_after=_RETRY_AFTER_SECONDS,
    )


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
    """One process's connections. `begin` opens a transaction that commits when the block ends, and rolls back when it raises."""

    def __init__(self, url: str, *, pool_size: int = 8) -> None:
        self.url = url
        self._engine = make_engine(url, pool_size=pool_size, max_overflow=0, pool_timeout=5, pool_pre_ping=True)
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """Raises DatabaseUnavailable where Postgres cannot be reached, goes away in the middle, or gives up on us for others."""
        with _translating():
            async with self._engine.begin() as tx:
                yield tx

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """For one statement that reads: with no transaction around it, at half the way to and fro. Raises DatabaseUnavailable."""
        with _translating():
            async with self._autocommit.connect() as tx:
                yield tx

    async def close(self) -> None:
        await self._engine.dispose()
