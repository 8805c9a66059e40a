"""Formats what the demo prints, for terminals and for files."""

import math
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

_SECOND: Final = 1.0


def say(console: Console, markup: str, *, indent: int = 0) -> None:
    """Prints a paragraph: wrapped on a terminal, else in one line."""
    if console.is_terminal:
        console.print(Padding(Text.from_markup(markup), (0, 0, 0, indent), expand=False), highlight=False)
    else:
        console.print(Text(" " * indent) + Text.from_markup(markup), highlight=False, soft_wrap=True)


def quote(foreign: object) -> str:
    """Escapes text from elsewhere, so that it is not read as markup."""
    return escape(str(foreign))


def in_vms(number: int) -> str:
    return "1 VM" if number == 1 else f"{number} VMs"


def in_time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < _SECOND else f"{seconds:.1f} s"


def in_percent(share: float, *, digits: int = 0) -> str:
    """Rounded down, so that it never reads 100 %."""
    scale = 10**digits
    whole = 100 * scale
    floored = math.floor(round(share * whole, 6))  # so that 0.29, which is a little less as a float, stays 29 %
    if floored >= whole:
        return f"over {(whole - 1) / scale:.{digits}f} %"
    return f"{floored / scale:.{digits}f} %"
