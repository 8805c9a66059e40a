"""`emberpool migrate`: the database schema that this program needs."""

from urllib.parse import urlsplit

import typer

from app.cli.settings import DatabaseUrl, check_settings, read_settings, run_async
from app.config import Settings
from app.errors import DatabaseRefused, DatabaseUnavailable, EmberpoolError
from app.store import migrations
from app.store.database import Database


class DatabaseUnusable(EmberpoolError):
    code = "database-unusable"
    title = "The database cannot be used"


def migrate(*, database_url: DatabaseUrl = None) -> None:
    """Migrate the database to the schema that this program needs. Running it again changes nothing."""
    settings = read_settings(database_url=database_url)
    check_settings(settings)
    try:
        run_async(lambda: read_migration(settings))
    except DatabaseUnavailable as error:
        raise _unusable(settings, error) from error
    migrations.upgrade(settings.database_url.get_secret_value())
    typer.echo(f"The database is at migration {migrations.head()}.")


async def read_migration(settings: Settings) -> str | None:
    """The migration that the database is at. Raises DatabaseUnavailable, and DatabaseUnusable if it refuses the connection."""
    db = Database(settings.database_url.get_secret_value())
    try:
        async with db.begin() as tx:
            return await migrations.current(tx)
    except DatabaseRefused as error:
        raise _unusable(settings, error) from error
    except DatabaseUnavailable:
        raise
    except Exception as error:
        raise _unusable(settings, error) from error
    finally:
        await db.close()


def _unusable(settings: Settings, error: BaseException) -> DatabaseUnusable:
    """With the text of the innermost cause: the driver's, or the system's."""
    while error.__cause__ is not None:
        error = error.__cause__
    url = urlsplit(settings.database_url.get_secret_value())
    shown = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
    return DatabaseUnusable(
        f"connecting to {shown} failed: {str(error) or type(error).__name__}. "
        "Start it, or set its URL with --database-url or EMBERPOOL_DATABASE_URL"
    )
