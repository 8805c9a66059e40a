"""Options that several commands share."""

from typing import Annotated
from urllib.parse import urlsplit

import typer

from app.cli.client.printing import Output
from app.cli.client.service import DEFAULT_SERVER, Service

Server = Annotated[str, typer.Option(envvar="EMBERPOOL_SERVER", help="The URL of the service.", metavar="URL")]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="EMBERPOOL_API_TOKEN",
        help="The API token, if the service requires one. In the variable no other user of the machine can read it.",
        show_envvar=True,
    ),
]
SkipUnknown = Annotated[
    bool,
    typer.Option(
        "--skip-unknown",
        help="Pass over documents of kinds that the service does not apply, such as Secret or Service.",
    ),
]
AllowUnschedulable = Annotated[
    bool,
    typer.Option(
        "--allow-unschedulable",
        help="Accept it even if the nodes have no room, as in clusters that add nodes for pending pods.",
    ),
]
OutputForm = Annotated[Output, typer.Option("--output", "-o", help="table, json or yaml.")]


def connect(server: str, token: str | None) -> Service:
    """A usage error if `server` is not a URL, or the token cannot be sent."""
    try:
        parts = urlsplit(server)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise typer.BadParameter(f"--server: {server!r} is not an http or https URL such as {DEFAULT_SERVER}")
    token = token.strip() if token is not None else None  # a file's last line ends with one
    if token is not None and not (token.isascii() and token.isprintable()):
        raise typer.BadParameter("--token: a token is one line of printable ASCII")
    return Service(server, token)
