"""Runs the migrations, and says whether a program and a database fit together.

A program knows the migrations up to its newest one. A database may be ahead of that: a newer program has migrated it, in a
rolling upgrade or before a rollback. Migrations expand the schema first and contract it in a later release, so that it serves
older programs too; table `schema_compat` says how old ones.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text

from app.errors import DatabaseUnavailable, EmberpoolError
from app.store.database import Tx, describe_failure
from app.store.postgres_errors import translate

_SCRIPTS = Path(__file__).resolve().parents[2] / "migrations"
_UTF8 = "UTF8"
LOCK_SECONDS = 0.3
WAIT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Schema:
    """`encoding` is the database's own, in Postgres' words. `revision` is None if the database was never migrated. `serves_from`: the newest migration of the oldest program that a
    database which is ahead of this program serves; None if it is not ahead, or does not say.
    """

    revision: str | None
    serves_from: str | None = None
    encoding: str = _UTF8

    @property
    def is_ahead(self) -> bool:
        return self.revision is not None and self.revision > head()

    def problem(self) -> str | None:
        """Why this program cannot use the database, and what to do; None if it can."""
        if (unfit := self.encoding_problem()) is not None:
            return unfit
        if self.revision is None or self.revision < head():
            found = f"is at migration {self.revision}" if self.revision else "has no schema yet"
            return f"it {found}, and this program needs {head()}; run `emberpool migrate` first"
        if not self.is_ahead or (self.serves_from is not None and self.serves_from <= head()):
            return None
        serves = (
            f"serves programs that have {self.serves_from}"
            if self.serves_from
            else "does not say which programs it serves"
        )
        return f"it is at migration {self.revision}, which {serves}, and this program has {head()} as its newest; run a newer program"

    def encoding_problem(self) -> str | None:
        """Why the database can never be used: it cannot hold all text that clients send, or does not check what it holds."""
        if self.encoding == _UTF8:
            return None
        return (
            f"its encoding is {self.encoding}, and the service needs {_UTF8}. An encoding cannot be changed: make another database "
            "with `createdb --encoding UTF8 --template template0 emberpool`, and name that one"
        )


def upgrade(
    url: str, revision: str = "head", *, lock_seconds: float = LOCK_SECONDS, wait_seconds: float = WAIT_SECONDS
) -> None:
    """Upgrades the database at a libpq `url` to `revision`. A database that is there already, or ahead, is not changed.

    A migration waits for a table for `lock_seconds` at a time, and for everything that is in its way for `wait_seconds`. Any
    number of processes may do this at once. Raises DatabaseUnavailable: some migrations may have been made by then.
    Blocks and starts its own event loop: call it outside of one.
    """
    try:
        command.upgrade(_config(url, lock_seconds, wait_seconds), revision)
    except EmberpoolError:
        raise
    except Exception as error:
        if translate(error) is None:
            raise
        raise DatabaseUnavailable(
            f"migrating it failed: {describe_failure(error)}; run `emberpool migrate` again"
        ) from error


def downgrade(url: str, revision: str) -> None:
    command.downgrade(_config(url, LOCK_SECONDS, WAIT_SECONDS), revision)


def head() -> str:
    """The newest migration that this program has."""
    found = _scripts(_SCRIPTS).get_current_head()
    if found is None:
        raise RuntimeError("this program was packaged without its migrations")
    return found


def serves_from(revision: str) -> str:
    """The newest migration of the oldest program that a schema at `revision` serves, as that migration or the nearest before says."""
    told = (
        getattr(each.module, "serves_from", None) for each in _scripts(_SCRIPTS).iterate_revisions(revision, "base")
    )
    return next(str(each) for each in told if each is not None)


async def require(tx: Tx, revision: str) -> None:
    """From now on the database serves only programs that have that migration: it is about to hold what older ones cannot read."""
    await tx.execute(
        text("UPDATE schema_compat SET serves_from = :revision WHERE serves_from < :revision"), {"revision": revision}
    )


async def current(tx: Tx) -> str | None:
    """The revision of the database. None if it was never migrated."""
    if (await tx.execute(text("SELECT to_regclass('alembic_version')"))).scalar() is None:
        return None
    found: str | None = (await tx.execute(text("SELECT version_num FROM alembic_version"))).scalar()
    return found


async def read_schema(tx: Tx) -> Schema:
    encoding = (await tx.execute(text("SELECT current_setting('server_encoding')"))).scalar_one()
    revision = await current(tx)
    found = Schema(revision, encoding=encoding)
    if not found.is_ahead:
        return found
    query = text("SELECT serves_from FROM schema_compat WHERE revision = :revision")
    return replace(found, serves_from=(await tx.execute(query, {"revision": revision})).scalar())


@cache
def _scripts(folder: Path) -> ScriptDirectory:
    return ScriptDirectory(str(folder))


def _config(url: str, lock_seconds: float, wait_seconds: float) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    config.attributes["emberpool"] = {"url": url, "lock_seconds": lock_seconds, "wait_seconds": wait_seconds}
    return config
