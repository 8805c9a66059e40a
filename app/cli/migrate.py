"""`emberpool migrate`: the database schema that this program needs."""

import typer

from app.cli.settings import DatabaseUrl, check_settings, read_settings, run_async
from app.config import Settings
from app.errors import DatabaseRefused, DatabaseUnavailable, EmberpoolError
from app.store import database_url as urls
from app.store import migrations
from app.store.database import Database, describe_failure
from app.store.migrations import Schema


class DatabaseUnusable(EmberpoolError):
    code = "database-unusable"
    title = "The database cannot be used"


def migrate(*, database_url: DatabaseUrl = None) -> None:
    """Migrate the database to the schema that this program needs. Running it again changes nothing, nor does an older program."""
    settings = read_settings(database_url=database_url)
    check_settings(settings, database_url=database_url)
    before = _read(settings)
    if (unfit := before.encoding_problem()) is not None:
        raise DatabaseUnusable(unfit)
    try:
        migrations.upgrade(
            settings.database_url.get_secret_value(),
            lock_seconds=settings.migrate_lock_seconds,
            wait_seconds=settings.migrate_wait_seconds,
        )
    except DatabaseUnavailable as error:
        raise DatabaseUnusable(error.detail) from error
    schema = _read(settings)
    if (problem := schema.problem()) is not None:
        raise DatabaseUnusable(problem)
    ahead = (
        f", ahead of this program's {migrations.head()}, which it serves; nothing was changed"
        if before.is_ahead
        else ""
    )
    typer.echo(f"The database is at migration {schema.revision}{ahead}.")


def _read(settings: Settings) -> Schema:
    try:
        return run_async(lambda: read_schema(settings))
    except DatabaseUnavailable as error:
        raise _unusable(settings, error) from error


async def read_schema(settings: Settings) -> Schema:
    """What the database is at. Raises DatabaseUnavailable, and DatabaseUnusable if it refuses the connection."""
    db = Database(settings.database_url.get_secret_value())
    try:
        async with db.begin() as tx:
            return await migrations.read_schema(tx)
    except DatabaseRefused as error:
        raise _unusable(settings, error) from error
    except DatabaseUnavailable:
        raise
    except Exception as error:
        raise _unusable(settings, error) from error
    finally:
        await db.close()


async def require_schema(settings: Settings) -> None:
    """Raises DatabaseUnusable where this program cannot work on the database's schema, and what `read_schema` raises."""
    if (problem := (await read_schema(settings)).problem()) is not None:
        raise DatabaseUnusable(problem)


def _unusable(settings: Settings, error: BaseException) -> DatabaseUnusable:
    remedy = (
        "Correct the user or the password"
        if isinstance(error, DatabaseRefused)
        else "Start the server, create the database, or correct its URL"
    )
    return DatabaseUnusable(
        f"connecting to {urls.shown(settings.database_url.get_secret_value())} failed: {describe_failure(error)}. "
        f"{remedy} (set it with --database-url, EMBERPOOL_DATABASE_URL or EMBERPOOL_DATABASE_URL_FILE)"
    )
