"""How every command of the program is declared."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption
from typing_extensions import override


class OneValueEach(TyperCommand):
    """A command that refuses an option that takes one value and is given twice. Typer would take the last without a word.

    What is wrong with a value is told in our words: Typer shows those of pydantic.
    """

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # typer does not export the type of its context
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option, times in Counter(given).items():
            if (
                isinstance(option, TyperOption)
                and times > 1
                and not (option.multiple or option.is_flag or option.count)
            ):
                raise typer.BadParameter(f"it takes one value, and is given {times} times", ctx=ctx, param=option)
        try:
            rest: list[str] = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if (found := getattr(error.__cause__, "errors", None)) is None:
                raise
            from app.domain.sentences import describe_invalid  # noqa: PLC0415 - slow, and needed only here

            raise typer.BadParameter(describe_invalid(found()[0]), ctx=error.ctx, param=error.param) from error
        return rest


def add_command(app: typer.Typer, command: Callable[..., None], name: str | None = None) -> None:
    """Adds a command to the program, under the function's name if it is given no other."""
    app.command(name, cls=OneValueEach)(command)
