"""The command `emberpool`."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from pydantic import SecretStr, ValidationError
from rich.console import Console

from app.config import Role, Settings
from app.embedded.cluster import run_cluster
from app.embedded.folder import default_data_dir, hold_folder
from app.embedded.postgres import describe_opening, run_postgres
from app.errors import EmberpoolError
from app.main import create_app
from app.main import serve as serve_app
from app.store import migrating
from app.telemetry import configure_logs

app = typer.Typer(
    name="emberpool",
    help="Warm KubeVirt VMs, ready before they are asked for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_errors = Console(stderr=True)

Port = Annotated[int, typer.Option(help="Where the API listens; 0: any free port.")]
DataDir = Annotated[Path | None, typer.Option(help="Where the data is kept.", show_default=str(default_data_dir()))]
ColdBoot = Annotated[
    float, typer.Option(min=0.1, help="What a cold boot takes on the dev cluster, in simulated seconds.")
]


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
        _errors.print(opening, style="yellow")

    async def run() -> None:
        async with run_cluster(
            folder, cold_boot_seconds=cold_boot_seconds, arguments=["--nodes", str(nodes)]
        ) as cluster:
            own = settings.model_copy(
                update={
                    "database_url": SecretStr(postgres.url()),
                    "kubeconfig": cluster.kubeconfig,
                    "kube_context": None,
                }
            )
            await serve_app(own, on_ready=lambda address: _greet(address, folder_path))

    with hold_folder(folder_path) as folder, run_postgres(folder) as postgres:
        migrating.upgrade(postgres.url())
        _run(run)


@app.command()
def serve(
    *,
    database_url: Annotated[str | None, typer.Option(help="A libpq URL. Also EMBERPOOL_DATABASE_URL.")] = None,
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
    _run(lambda: serve_app(settings))


@app.command()
def migrate(
    *, database_url: Annotated[str | None, typer.Option(help="A libpq URL. Also EMBERPOOL_DATABASE_URL.")] = None
) -> None:
    """Bring the database to what this program needs. Running it again changes nothing."""
    settings = _settings(database_url=database_url)
    migrating.upgrade(settings.database_url.get_secret_value())
    typer.echo(f"The database is at migration {migrating.head()}.")


@app.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    json.dump(create_app().openapi(), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def main() -> None:
    """Runs the command; an error of ours is one sentence, and exit code 1."""
    try:
        app()
    except EmberpoolError as error:
        _errors.print(f"[red]{error.title}.[/red] {error.detail}", highlight=False)
        sys.exit(1)
    except OSError as error:
        _errors.print(f"[red]The system says no.[/red] {error.strerror or error}", highlight=False)
        sys.exit(1)


def _settings(**flags: Any) -> Settings:
    """Settings from flags that were given, then the environment. A wrong one is a usage error."""
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise typer.BadParameter(f"{wrong} (each setting is a flag, or EMBERPOOL_<NAME>)") from error
    configure_logs(level=settings.log_level, form=settings.log_format)
    return settings


def _run(work: Callable[[], Any]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


def _greet(address: str, folder: Path) -> None:
    _errors.print(f"\nEmberpool serves at [bold]{address}[/bold]; its OpenAPI UI is [bold]{address}/docs[/bold]")
    _errors.print(
        f"The cluster is a stand-in with simulated times; its data and Postgres are kept in {folder}. Ctrl-C stops.\n"
    )
