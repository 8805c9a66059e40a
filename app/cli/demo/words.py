"""How the demo says things: figures in words, and text that fits narrow terminals and files alike."""

import math
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

_SECOND: Final = 1.0


def say(console: Console, markup: str, *, indent: int = 0) -> None:
    """A paragraph: wrapped on a terminal, and whole in a line where it is none."""
    if console.is_terminal:
        console.print(Padding(Text.from_markup(markup), (0, 0, 0, indent), expand=False), highlight=False)
    else:
        console.print(Text(" " * indent) + Text.from_markup(markup), highlight=False, soft_wrap=True)


def quote(foreign: object) -> str:
    """Text that is not ours, so that it is no markup."""
    return escape(str(foreign))


def in_vms(number: int) -> str:
    return "1 VM" if number == 1 else f"{number} VMs"


def in_time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < _SECOND else f"{seconds:.1f} s"


def in_percent(share: float, *, digits: int = 0) -> str:
    """Rounded down, so that it never says all of it."""
    scale = 10**digits
    whole = 100 * scale
    floored = math.floor(round(share * whole, 6))  # so that 0.29, which is a little less as a float, stays 29 %
    if floored >= whole:
        return f"over {(whole - 1) / scale:.{digits}f} %"
    return f"{floored / scale:.{digits}f} %"
