"""The commands of clients, put into the program; or on their own, where one of them is all that was asked for."""

import sys
from collections.abc import Callable
from typing import Final

import typer
from rich.console import Console
from rich.text import Text

from app.cli.client.apply import apply
from app.cli.client.claim import claim
from app.cli.client.get import get
from app.cli.client.import_pool import import_pool
from app.cli.client.release import release
from app.errors import EmberpoolError

_COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "apply": apply,
    "claim": claim,
    "release": release,
    "get": get,
    "import-pool": import_pool,
}


def takes(arguments: list[str]) -> bool:
    """Whether a command line is for one of the clients."""
    return bool(arguments) and arguments[0] in _COMMANDS


def mount(app: typer.Typer) -> None:
    """Adds them to the program."""
    for name, command in _COMMANDS.items():
        app.command(name)(command)


def main() -> None:
    """Runs the command, and reads nothing of the service for it: a client is to start at once."""
    alone = typer.Typer(name="emberpool", add_completion=False, pretty_exceptions_enable=False)
    mount(alone)
    run(alone)


def run(app: typer.Typer) -> None:
    """Runs the command; an error of ours is one sentence, and exit code 1."""
    try:
        app()
    except EmberpoolError as error:
        _complain(error.title, error.detail)
        sys.exit(1)
    except OSError as error:
        _complain("The system says no", f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(1)


def _complain(title: str, detail: str) -> None:
    word, _, _ = detail.partition(" ")
    # An address and a field stay as they are written.
    begun = detail if ":" in word else detail[:1].upper() + detail[1:]
    sentence = begun + ("" if detail.endswith((".", "!", "?")) else ".")
    Console(stderr=True).print(Text.assemble((f"{title}.", "red"), " ", sentence), soft_wrap=True)
