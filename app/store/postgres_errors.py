"""What an error of Postgres means to whoever asked: the one place where errors of the driver become ours.

Each SQLSTATE has a meaning, by its code or by its class of two characters (appendix A of Postgres' manual). One without a
meaning here comes from a statement that is wrong, which is a bug.
"""

from dataclasses import dataclass
from typing import Final

import asyncpg
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.errors import DatabaseLost, DatabaseRefused, DatabaseUnavailable, EmberpoolError, InvalidRequest

_RETRY_AFTER_SECONDS: Final = 2.0
_AGAIN: Final = "Try again in a moment"


@dataclass(frozen=True, slots=True)
class _Meaning:
    """`stale`: all connections that are open now may be of no use any more. `lost`: it is not known how the statement ended."""

    sentence: str
    stale: bool = False
    lost: bool = False


_LOST = _Meaning(f"the database does not answer; nothing was changed. {_AGAIN}", stale=True, lost=True)
_TIMED_OUT = _Meaning(_LOST.sentence, lost=True)
_BUSY = _Meaning(f"the database ended this because other requests were in the way; nothing was changed. {_AGAIN}")
_READ_ONLY = _Meaning(
    f"the database takes no writes now, as during a failover; nothing was changed. {_AGAIN}", stale=True
)
_REFUSED = _Meaning(
    "the database refuses the service's user or password; nothing was changed. "
    "Whoever runs the service has to correct EMBERPOOL_DATABASE_URL",
    stale=True,
)
_MISSING = _Meaning("the database that EMBERPOOL_DATABASE_URL names does not exist; nothing was changed", stale=True)
_FORBIDDEN = _Meaning(
    "the database does not permit the service's user to do this; nothing was changed. Grant it to the user"
)
_NOT_MIGRATED = _Meaning(
    "the database's schema is not the one that this program needs; nothing was changed. Run `emberpool migrate`"
)
_TOO_MANY = _Meaning(f"the database takes no more connections; nothing was changed. {_AGAIN}")
_FULL = _Meaning("the database's disk is full; nothing was changed. Make room on it, and try again")
_EXHAUSTED = _Meaning(f"the database has run out of memory or of another resource; nothing was changed. {_AGAIN}")
_FAULT = _Meaning("the database failed, and its log has the reason; nothing was changed. Try again")
_UNKNOWN = "the database was lost while it committed: the change may have been made or not. Look, and try again where it was not"
_TEXT = (
    "the request has a character that no text in the database can have (NUL, or half of a pair); nothing was changed"
)

_BY_STATE: Final = {
    "08": _LOST,
    "25006": _READ_ONLY,
    "28": _REFUSED,
    "3D000": _MISSING,
    "40": _BUSY,
    "40003": _TIMED_OUT,  # statement completion unknown
    "42501": _FORBIDDEN,
    "42703": _NOT_MIGRATED,
    "42883": _NOT_MIGRATED,
    "42P01": _NOT_MIGRATED,
    "53": _EXHAUSTED,
    "53100": _FULL,
    "53300": _TOO_MANY,
    "55": _BUSY,
    "57": _LOST,  # shut down, crashed, starting up, dropped
    "57014": _BUSY,
    "58": _FAULT,
    "F0": _FAULT,
    "XX": _FAULT,
}
_UNSTORABLE: Final = {"22021", "22P05"}
_CLIENT_LOST: Final = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # an idle connection that the server closed, used before the driver noticed
)


def translate(error: BaseException, *, committing: bool = False) -> EmberpoolError | None:
    """Our error for one of the driver: DatabaseUnavailable, or InvalidRequest for text that Postgres cannot hold. None: a bug.

    `committing`: the statement commits, or is the commit. Where it is not known how it ended, the error is DatabaseLost.
    """
    driver = _driver_error(error)
    if getattr(driver, "sqlstate", None) in _UNSTORABLE:
        return InvalidRequest(_TEXT)
    meaning = _meaning(error, driver)
    if meaning is None:
        return None
    if meaning.lost and committing:
        return DatabaseLost(_UNKNOWN, retry_after=_RETRY_AFTER_SECONDS)
    kind = DatabaseRefused if meaning is _REFUSED else DatabaseUnavailable
    return kind(meaning.sentence, retry_after=_RETRY_AFTER_SECONDS)


def is_stale(error: BaseException) -> bool:
    """Whether the error is a sign that the other open connections are of no use either: opened anew they may work."""
    meaning = _meaning(error, _driver_error(error))
    return meaning is not None and meaning.stale


def is_locked(error: BaseException) -> bool:
    """Whether the statement ended because it did not get a lock within `lock_timeout`."""
    return getattr(_driver_error(error), "sqlstate", None) == "55P03"


def not_committed() -> DatabaseUnavailable:
    """A connection broke, and it is known since that the statement was not committed."""
    return DatabaseUnavailable(_LOST.sentence, retry_after=_RETRY_AFTER_SECONDS)


def overrun() -> DatabaseUnavailable:
    """More is asked of the database than it does in time. Nothing was sent to it."""
    return DatabaseUnavailable(
        f"the database is overloaded at this moment; nothing was changed. {_AGAIN}", retry_after=_RETRY_AFTER_SECONDS
    )


def _meaning(error: BaseException, driver: BaseException | None) -> _Meaning | None:
    if isinstance(error, PoolTimeoutError):
        return _TIMED_OUT
    if isinstance(driver, asyncpg.InvalidCachedStatementError):  # the schema was migrated under a prepared statement
        return _BUSY
    state: str | None = getattr(driver, "sqlstate", None)
    if state:
        return _BY_STATE.get(state) or _BY_STATE.get(state[:2])
    if isinstance(driver, TimeoutError):
        return _TIMED_OUT
    if isinstance(driver, _CLIENT_LOST):
        return _LOST
    if isinstance(error, DBAPIError) and (
        error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    ):
        return _LOST
    return None


def _driver_error(error: BaseException) -> BaseException | None:
    """The error of asyncpg inside the one of SQLAlchemy, if there is one."""
    if isinstance(error, DBAPIError):
        return error.orig.__cause__ if error.orig is not None else None
    return error
