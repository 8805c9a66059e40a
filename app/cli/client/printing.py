"""What the commands print: tables for people, JSON or YAML for programs. Without a terminal there is no colour and no wrapping."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, TextIO

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]
_UNWRAPPED: Final = 1000
_STYLES: Final = {
    **dict.fromkeys(("ready", "bound", "created", "changed"), "green"),
    **dict.fromkeys(
        ("filling", "pending", "taking", "importing", "pulling", "booting", "degraded", "paused"), "yellow"
    ),
    **dict.fromkeys(("failed", "stalled", "lost", "absent"), "red"),
}
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True, slots=True)
class Column:
    """`ticks`: the cell changes with time, which is not a change of the resource."""

    name: str
    cell: Callable[[Json], str]
    ticks: bool = False


def make_console(file: TextIO | None = None) -> Console:
    """A console on the current stdout, or on `file`."""
    file = file or sys.stdout
    if file.isatty():
        return Console(file=file, highlight=False)
    return Console(file=file, highlight=False, width=_UNWRAPPED, no_color=True, force_terminal=False)


def print_data(console: Console, output: Output, data: Any) -> None:
    """Prints the service's whole answer as JSON or YAML."""
    text = (
        json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        if output is Output.JSON
        else yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    )
    console.file.write(text)
    console.file.flush()


def tabulate(columns: Sequence[Column], items: Iterable[Json], *, header: bool = True) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold", show_header=header)
    for column in columns:
        table.add_column(column.name, overflow="fold")
    for item in items:
        table.add_row(*(_styled(column.cell(item)) for column in columns))
    return table


def print_table(console: Console, columns: Sequence[Column], items: Iterable[Json], *, header: bool = True) -> None:
    """Prints a table without trailing spaces."""
    table = tabulate(columns, items, header=header)
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        console.file.write(line.rstrip() + "\n")
    console.file.flush()


def tell(sentence: str) -> None:
    """Prints a sentence for people to stderr, as stdout may go to a program."""
    make_console(sys.stderr).print(Text(sentence), soft_wrap=True)


def text(value: object) -> str:
    """The text of a cell; `-` if there is no value."""
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def seconds(value: float | None) -> str:
    """A duration, rounded for reading."""
    if value is None:
        return "-"
    if value < 1:
        return f"{value * 1000:.1f}ms"
    if value < 2 * _MINUTE:
        return f"{value:.1f}s"
    if value < 2 * _HOUR:
        return f"{value / _MINUTE:.0f}m"
    if value < 2 * _DAY:
        return f"{value / _HOUR:.0f}h"
    return f"{value / _DAY:.0f}d"


def since(moment: str | None) -> str:
    """The time that has passed since `moment`."""
    return "-" if moment is None else seconds(max(0.0, (datetime.now(UTC) - read_time(moment)).total_seconds()))


def until(moment: str | None) -> str:
    return "-" if moment is None else seconds(max(0.0, (read_time(moment) - datetime.now(UTC)).total_seconds()))


def read_time(moment: str) -> datetime:
    return datetime.fromisoformat(moment)


def size(value: float | None) -> str:
    """Bytes, in binary units."""
    if value is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:  # noqa: PLR2004 - the factor between two units
            return f"{value:.0f}{unit}" if unit == "B" else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}TiB"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _styled(cell: str) -> Text:
    return Text(cell, style=_STYLES.get(cell, ""))
