"""Runs the migrations, and says whether they have been run."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text

from app.store.database import Tx

_SCRIPTS = Path(__file__).resolve().parents[2] / "migrations"


def upgrade(url: str, revision: str = "head") -> None:
    """Upgrades the database at a libpq `url` to `revision`. A database that is there already is not changed.

    Blocks and starts its own event loop: call it outside of one.
    """
    command.upgrade(_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    command.downgrade(_config(url), revision)


def head() -> str:
    """The newest revision that this program has."""
    found = ScriptDirectory(str(_SCRIPTS)).get_current_head()
    if found is None:
        raise RuntimeError("this program was packaged without its migrations")
    return found


async def current(tx: Tx) -> str | None:
    """The revision of the database. None if it was never migrated."""
    if (await tx.execute(text("SELECT to_regclass('alembic_version')"))).scalar() is None:
        return None
    found: str | None = (await tx.execute(text("SELECT version_num FROM alembic_version"))).scalar()
    return found


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    config.attributes["url"] = url
    return config
