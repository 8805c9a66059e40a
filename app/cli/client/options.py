"""Options that several commands share."""

from typing import Annotated, Final

import typer

from app.cli.client.printing import Output
from emberpool.client import DEFAULT_URL, Client, Misconfigured

DEFAULT_SERVER: Final = DEFAULT_URL
_PATIENCE_SECONDS: Final = 3.0
"""How long a command tries again while the service is away: whoever typed it wants to know."""
Server = Annotated[
    str, typer.Option(envvar=["EMBERPOOL_SERVER", "EMBERPOOL_URL"], help="The URL of the service.", metavar="URL")
]
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


def connect(server: str, token: str | None) -> Client:
    """A usage error if `server` is not a URL, or the token cannot be sent."""
    try:
        return Client(server, token=token, patience=_PATIENCE_SECONDS)
    except Misconfigured as error:
        raise typer.BadParameter(
            f"--{'server' if error.argument == 'url' else error.argument}: {error.detail}"
        ) from error
