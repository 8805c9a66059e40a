"""Options that several server commands share, and the settings that come from them and from the environment."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any

import typer
import uvloop
from pydantic import SecretStr, ValidationError

from app.config import Role, Settings
from app.domain.sentences import describe_invalid
from app.embedded.cluster import run_cluster
from app.embedded.folder import DataFolder
from app.embedded.postgres import Postgres
from app.telemetry import configure_logs

Port = Annotated[int, typer.Option(help="The port of the API; 0: any free port.")]
ColdBoot = Annotated[float, typer.Option(min=0.1, help="Simulated seconds that a cold boot takes on the dev cluster.")]
DatabaseUrl = Annotated[
    str | None, typer.Option(help="postgresql://USER:PASSWORD@HOST/DATABASE. Also EMBERPOOL_DATABASE_URL.")
]
_DATABASE_SCHEMES = ("postgresql://", "postgres://")


def read_settings(**flags: Any) -> Settings:
    """Settings from the flags that were given, then from the environment. An invalid one is a usage error."""
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {describe_invalid(e)}" for e in error.errors())
        raise typer.BadParameter(f"{wrong} (set it with a flag, or with EMBERPOOL_<NAME>)") from error
    configure_logs(level=settings.log_level, form=settings.log_format)
    return settings


def check_settings(settings: Settings) -> None:
    """What can be checked before anything is reached. A mistake is a usage error."""
    if not settings.database_url.get_secret_value().startswith(_DATABASE_SCHEMES):
        raise typer.BadParameter(
            "database_url: a libpq URL begins with postgresql:// (set it with --database-url or EMBERPOOL_DATABASE_URL)"
        )
    if settings.kubeconfig is not None and not settings.kubeconfig.is_file():
        raise typer.BadParameter(
            f"kubeconfig: {settings.kubeconfig} is not a file (set it with --kubeconfig or EMBERPOOL_KUBECONFIG)"
        )


@asynccontextmanager
async def run_embedded_cluster(
    settings: Settings, folder: DataFolder, postgres: Postgres, *, cold_boot_seconds: float, nodes: int = 3
) -> AsyncIterator[Settings]:
    """Runs a dev cluster until the block ends. Gives the settings of a service that uses it and `postgres`."""
    arguments = ["--nodes", str(nodes)]
    if settings.namespace != "default":
        arguments += ["--namespace", settings.namespace]
    async with run_cluster(folder, cold_boot_seconds=cold_boot_seconds, arguments=arguments) as kubeconfig:
        yield settings.model_copy(
            update={
                "database_url": SecretStr(postgres.url()),
                "kubeconfig": kubeconfig,
                "kube_context": None,
                "role": Role.ALL,
            }
        )


def run_async(work: Callable[[], Coroutine[Any, Any, object]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())
