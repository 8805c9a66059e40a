"""The command `emberpool`."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import structlog
import typer
import uvloop
from pydantic import SecretStr, ValidationError
from rich.console import Console
from rich.text import Text

from app.cli.client.program import mount, run
from app.cli.demo import play as demonstration
from app.cli.demo.pool import read_pool
from app.config import Role, Settings
from app.embedded.cluster import run_cluster
from app.embedded.folder import default_data_dir, hold_folder
from app.embedded.postgres import describe_opening, run_postgres
from app.errors import DatabaseUnavailable, EmberpoolError
from app.server import create_app
from app.server import serve as serve_app
from app.store import migrations as migrating
from app.store.database import Database
from app.telemetry import configure_logs

app = typer.Typer(
    name="emberpool",
    help="Warm KubeVirt VMs, ready before they are asked for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_errors = Console(stderr=True)
log = structlog.get_logger(__name__)

Port = Annotated[int, typer.Option(help="Where the API listens; 0: any free port.")]
DataDir = Annotated[Path | None, typer.Option(help="Where the data is kept.", show_default=str(default_data_dir()))]
ColdBoot = Annotated[
    float, typer.Option(min=0.1, help="What a cold boot takes on the dev cluster, in simulated seconds.")
]
DatabaseUrl = Annotated[
    str | None, typer.Option(help="postgresql://USER:PASSWORD@HOST/DATABASE. Also EMBERPOOL_DATABASE_URL.")
]
_DATABASE_SCHEMES = ("postgresql://", "postgres://")


class DatabaseUnusable(EmberpoolError):
    code = "database-unusable"
    title = "The database cannot be used"


@app.command()
def up(
    *,
    port: Port = 8080,
    data_dir: DataDir = None,
    cold_boot_seconds: ColdBoot = 30,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the dev cluster.")] = 3,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve with a Postgres and a dev cluster of our own, until stopped. Their data is kept for the next time."""
    settings = _settings(port=port, log_level=log_level, log_format="console")
    folder_path = data_dir or default_data_dir()
    opening = describe_opening(folder_path / "postgres")
    if opening is not None:
        _errors.print(Text(opening, style="yellow"), soft_wrap=True)

    arguments = ["--nodes", str(nodes)]
    if settings.namespace != "default":
        arguments += ["--namespace", settings.namespace]

    async def run() -> None:
        async with run_cluster(folder, cold_boot_seconds=cold_boot_seconds, arguments=arguments) as cluster:
            own = settings.model_copy(
                update={
                    "database_url": SecretStr(postgres.url()),
                    "kubeconfig": cluster.kubeconfig,
                    "kube_context": None,
                    "role": Role.ALL,
                }
            )
            await serve_app(own, on_ready=lambda address: _greet(address, folder_path))

    with hold_folder(folder_path) as folder, run_postgres(folder) as postgres:
        migrating.upgrade(postgres.url())
        _run(run)


@app.command()
def demo(
    *,
    pool: Annotated[
        Path,
        typer.Option(
            help="The pool that is shown: YAML of kind VirtualMachinePool.", show_default="examples/pool.yaml"
        ),
    ] = demonstration.EXAMPLE,
    port: Port = 8080,
    cold_boot_seconds: ColdBoot = demonstration.COLD_BOOT_SECONDS,
) -> None:
    """See a pool, all four paths to a VM, and placement: on a Postgres and a dev cluster of its own, removed at the end."""
    settings = _settings(port=port, log_level="warning", log_format="console")
    console = Console()
    demonstration.play(
        settings,
        read_pool(pool),
        console,
        cold_boot_seconds=cold_boot_seconds,
        stay=console.is_terminal,
    )


@app.command()
def serve(
    *,
    database_url: DatabaseUrl = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="A kubeconfig; without one the pod's service account is used.")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="Where our VMs live.")] = None,
    role: Annotated[Role | None, typer.Option(help="Which part this process runs.")] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Where the API listens; 0: any free port.")] = None,
) -> None:
    """Serve against a Postgres and a cluster that exist. Every setting is also a variable EMBERPOOL_<NAME>."""
    settings = _settings(
        database_url=database_url, kubeconfig=kubeconfig, namespace=namespace, role=role, host=host, port=port
    )
    _refuse_nonsense(settings)

    async def run() -> None:
        try:
            await _refuse_unmigrated(settings)
        except DatabaseUnavailable:
            log.warning("start.without_database", hint="it is waited for; until then requests get 503")
        await serve_app(settings)

    _run(run)


@app.command()
def migrate(*, database_url: DatabaseUrl = None) -> None:
    """Bring the database to what this program needs. Running it again changes nothing."""
    settings = _settings(database_url=database_url)
    _refuse_nonsense(settings)
    try:
        _run(lambda: _revision(settings))
    except DatabaseUnavailable as error:
        raise _unusable(settings, error) from error
    migrating.upgrade(settings.database_url.get_secret_value())
    typer.echo(f"The database is at migration {migrating.head()}.")


@app.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    json.dump(create_app().openapi(), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


mount(app)


def main() -> None:
    """Runs the command; an error of ours is one sentence, and exit code 1."""
    run(app)


def _settings(**flags: Any) -> Settings:
    """Settings from flags that were given, then the environment. A wrong one is a usage error."""
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise typer.BadParameter(f"{wrong} (each setting is a flag, or EMBERPOOL_<NAME>)") from error
    configure_logs(level=settings.log_level, form=settings.log_format)
    return settings


def _refuse_nonsense(settings: Settings) -> None:
    """What can be seen to be wrong before anything is reached. A usage error, as for any other setting."""
    if not settings.database_url.get_secret_value().startswith(_DATABASE_SCHEMES):
        raise typer.BadParameter(
            "database_url: a libpq URL begins with postgresql:// (a flag, or EMBERPOOL_DATABASE_URL)"
        )
    if settings.kubeconfig is not None and not settings.kubeconfig.is_file():
        raise typer.BadParameter(
            f"kubeconfig: there is no file {settings.kubeconfig} (a flag, or EMBERPOOL_KUBECONFIG)"
        )


def _run(work: Callable[[], Any]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


async def _refuse_unmigrated(settings: Settings) -> None:
    """Raises DatabaseUnusable where the database is not at the migration that this program needs, and DatabaseUnavailable."""
    found, needed = await _revision(settings), migrating.head()
    if found is None or found < needed:
        raise DatabaseUnusable(
            f"it is at migration {found or 'nothing'}, and this program needs {needed}; run `emberpool migrate` first"
        )


async def _revision(settings: Settings) -> str | None:
    """The migration that the database is at. Raises DatabaseUnavailable, and DatabaseUnusable where it lets nobody in."""
    db = Database(settings.database_url.get_secret_value())
    try:
        async with db.begin() as tx:
            return await migrating.current(tx)
    except DatabaseUnavailable:
        raise
    except Exception as error:
        raise _unusable(settings, error) from error
    finally:
        await db.close()


def _unusable(settings: Settings, error: BaseException) -> DatabaseUnusable:
    """In the words of the innermost cause: the driver's, or the system's."""
    while error.__cause__ is not None:
        error = error.__cause__
    url = urlsplit(settings.database_url.get_secret_value())
    shown = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
    return DatabaseUnusable(
        f"what came of reaching {shown} is: {str(error) or type(error).__name__}. "
        "Start it, or give its URL as --database-url or EMBERPOOL_DATABASE_URL"
    )


def _greet(address: str, folder: Path) -> None:
    _errors.print(
        Text.assemble("\nEmberpool serves at ", (address, "bold"), "; its OpenAPI UI is ", (f"{address}/docs", "bold")),
        soft_wrap=True,
    )
    _errors.print(
        Text(
            f"The cluster is a stand-in with simulated times; its data and Postgres are kept in {folder}. Ctrl-C stops.\n"
        ),
        soft_wrap=True,
    )
