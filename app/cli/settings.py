"""Options that several server commands share, and the settings that come from them and from the environment."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import structlog
import typer
import uvloop
from pydantic import ValidationError

from app.config import Settings
from app.domain.fields import suggest
from app.domain.sentences import describe_invalid
from app.store import database_url as urls
from app.telemetry import configure_logs

Result = TypeVar("Result")
log = structlog.get_logger(__name__)
_PREFIX = "EMBERPOOL_"
_KNOWN = frozenset({"SERVER", *(name.upper() for name in Settings.model_fields)})
"""Of the commands that serve, and of the clients."""

Port = Annotated[int, typer.Option(help="The port of the API; 0: any free port.")]
ColdBoot = Annotated[float, typer.Option(min=0.1, help="Simulated seconds that a cold boot takes on the dev cluster.")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        help="postgresql://USER@HOST/DATABASE. With a password: in EMBERPOOL_DATABASE_URL, or in a file that EMBERPOOL_DATABASE_URL_FILE names."
    ),
]


def read_settings(**flags: Any) -> Settings:
    """Settings from the flags that were given, then from the environment. An invalid one is a usage error."""
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        wrong = "; ".join(": ".join((*map(str, e["loc"]), describe_invalid(e))) for e in error.errors())
        variables = [f"EMBERPOOL_{e['loc'][0]}".upper() for e in error.errors() if e["loc"]]
        where = f" (set it with {', '.join(variables)}, or with a flag if there is one)" if variables else ""
        raise typer.BadParameter(f"{wrong}{where}") from error
    configure_logs(level=settings.log_level, form=settings.log_format)
    _tell_unknown_variables()
    return settings


def _tell_unknown_variables() -> None:
    """A setting with a slip in its name has no effect, a token for example. It is no error, and variables that are like no setting
    are not told: Kubernetes makes some for a Service called emberpool (EMBERPOOL_PORT_80_TCP).
    """
    for variable in sorted(os.environ):
        name = variable.removeprefix(_PREFIX).upper()
        if variable.startswith(_PREFIX) and name not in _KNOWN and (meant := suggest(name, _KNOWN)):
            log.warning("setting.unknown", variable=variable, hint=f"did you mean {_PREFIX}{meant}?")


def check_settings(settings: Settings, *, database_url: str | None) -> None:
    """What can be checked before anything is reached; `database_url` is the flag. A mistake is a usage error."""
    _check_database_url(settings.database_url.get_secret_value(), is_flag=database_url is not None)
    if settings.kubeconfig is not None and not settings.kubeconfig.is_file():
        raise typer.BadParameter(
            f"kubeconfig: {settings.kubeconfig} is not a file (set it with --kubeconfig or EMBERPOOL_KUBECONFIG)"
        )


def run_async(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work())


def _check_database_url(url: str, *, is_flag: bool) -> None:
    try:
        urls.check(url)
    except urls.UrlInvalid as error:
        raise typer.BadParameter(
            f"database_url: {error} (set it with --database-url or EMBERPOOL_DATABASE_URL)"
        ) from error
    if is_flag and urls.has_password(url):
        raise typer.BadParameter(
            "database_url: everybody on this machine can read a password in a command line; set EMBERPOOL_DATABASE_URL, or "
            "EMBERPOOL_DATABASE_URL_FILE to a file that contains the URL"
        )
