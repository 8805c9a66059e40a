"""The command `emberpool`, with all its commands."""

import json
import sys

import typer

from app.api.app import create_app
from app.cli.client import program as client
from app.cli.client.commands import add_command
from app.cli.local import add_local_commands
from app.cli.migrate import migrate
from app.cli.serve import serve

app = typer.Typer(
    name="emberpool",
    help="Warm KubeVirt VMs, ready before they are asked for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def openapi() -> None:
    """Print the OpenAPI document."""
    json.dump(create_app().openapi(), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


add_local_commands(app)
for command in (serve, migrate, openapi):
    add_command(app, command)
client.mount(app)


def main() -> None:
    """Runs the command. An error of ours is printed as one sentence, with exit code 1."""
    client.run(app)
