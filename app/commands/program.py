"""The commands, put into the program."""

import typer

from app.commands.apply import apply
from app.commands.claim import claim
from app.commands.get import get
from app.commands.release import release


def mount(app: typer.Typer) -> None:
    """Adds them to the program."""
    for command in (apply, claim, release, get):
        app.command()(command)
