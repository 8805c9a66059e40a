"""The client commands as a program of their own, which starts without importing the service; or mounted in the whole program."""

import sys
from collections.abc import Callable
from typing import Final

import typer
from rich.console import Console
from rich.text import Text

from app.cli.client.adopt import adopt, disown
from app.cli.client.apply import apply
from app.cli.client.claim import claim
from app.cli.client.commands import add_command
from app.cli.client.console import console
from app.cli.client.delete import delete
from app.cli.client.edit import patch, scale
from app.cli.client.files import FileUnusable
from app.cli.client.get import get
from app.cli.client.import_pool import import_pool
from app.cli.client.printing import REFUSED
from app.cli.client.release import release
from app.cli.client.rotate import rotate
from app.errors import EmberpoolError
from emberpool.client import EmberpoolError as ClientError
from emberpool.client import Refused, Unreachable

_COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "apply": apply,
    "claim": claim,
    "release": release,
    "get": get,
    "console": console,
    "scale": scale,
    "patch": patch,
    "rotate": rotate,
    "delete": delete,
    "import-pool": import_pool,
    "adopt": adopt,
    "disown": disown,
}


def takes(arguments: list[str]) -> bool:
    """Whether a command line is for a client command."""
    return bool(arguments) and arguments[0] in _COMMANDS


def mount(app: typer.Typer) -> None:
    """Adds the client commands to the program."""
    for name, command in _COMMANDS.items():
        add_command(app, command, name)


def main() -> None:
    """Runs a client command without importing the service, so that it starts at once."""
    alone = typer.Typer(name="emberpool", add_completion=False, pretty_exceptions_enable=False)
    mount(alone)
    run(alone)


def run(app: typer.Typer) -> None:
    """Runs the command. An error of ours is printed as one sentence, with exit code 1."""
    try:
        app()
    except EmberpoolError as error:
        _print_error(error.title, error.detail, begins_with_a_name=isinstance(error, FileUnusable))
        sys.exit(1)
    except ClientError as error:
        _print_error(REFUSED if isinstance(error, Refused) else "The service does not answer", _with_hint(error))
        sys.exit(1)
    except OSError as error:
        _print_error("The system refused", f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(1)


def _with_hint(error: ClientError) -> str:
    hint = "; start the service (emberpool up), or set its address with --server or EMBERPOOL_SERVER"
    return error.detail + (hint if isinstance(error, Unreachable) else "")


def _print_error(title: str, detail: str, *, begins_with_a_name: bool = False) -> None:
    word, _, _ = detail.partition(" ")
    # The name of a file, of an address or of a field is not capitalised.
    begun = detail if begins_with_a_name or ":" in word or "_" in word else detail[:1].upper() + detail[1:]
    sentence = begun + ("" if detail.endswith((".", "!", "?")) else ".")
    Console(stderr=True).print(Text.assemble((f"{title}.", "red"), " ", sentence), soft_wrap=True)
