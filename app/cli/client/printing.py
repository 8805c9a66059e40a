"""What the commands print: tables for people, JSON or YAML for programs. Without a terminal there is no colour and no wrapping."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, TextIO

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = Mapping[str, Any]
REFUSED: Final = "The service refused the request"
_UNWRAPPED: Final = 1000
_STYLES: Final = {
    **dict.fromkeys(("ready", "bound", "created", "changed"), "green"),
    **dict.fromkeys(
        ("filling", "pending", "taking", "importing", "pulling", "booting", "degraded", "paused"), "yellow"
    ),
    **dict.fromkeys(("failed", "stalled", "lost", "absent"), "red"),
}
_TICKING: Final = frozenset({"AGE", "WAIT", "LEASE"})
_NEARLY_ALL: Final = 0.995
_ALL_BUT_ROUNDING: Final = 0.9995
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
    ticks: bool


def read_columns(table: str, cells: Mapping[str, Callable[[Json], str]] = MappingProxyType({})) -> tuple[Column, ...]:
    """Columns as in kubectl's custom-columns, `NAME:path.of.the.field`, with `|` and a format if it is not `text`.

    A column without a path has its cell from `cells`.
    """
    columns = []
    for column in table.split():
        name, _, source = column.partition(":")
        path, _, form = source.partition("|")
        cell = cells[name] if not path else _cell(path, _FORMATS[form or "text"])
        columns.append(Column(name, cell, ticks=name in _TICKING))
    return tuple(columns)


def _cell(path: str, form: Callable[[Any], str]) -> Callable[[Json], str]:
    def cell(item: Json) -> str:
        found: Any = item
        for key in path.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        return form(found)

    return cell


def make_console(file: TextIO | None = None) -> Console:
    """A console on the current stdout, or on `file`."""
    file = file or sys.stdout
    if file.isatty():
        return Console(file=file, highlight=False)
    return Console(file=file, highlight=False, width=_UNWRAPPED, no_color=True, force_terminal=False)


def show(output: Output, answer: Any, columns: Sequence[Column], items: Iterable[Json], *, header: bool = True) -> None:
    """Prints a table of `items`, or the service's whole answer as JSON or YAML."""
    match output:
        case Output.TABLE:
            _print_table(columns, items, header=header)
        case Output.JSON:
            typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        case Output.YAML:
            typer.echo(yaml.safe_dump(answer, sort_keys=False, allow_unicode=True), nl=False)


def tabulate(columns: Sequence[Column], items: Iterable[Json], *, header: bool = True) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold", show_header=header)
    for column in columns:
        table.add_column(column.name, overflow="fold")
    for item in items:
        cells = [column.cell(item) for column in columns]
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in cells))
    return table


def _print_table(columns: Sequence[Column], items: Iterable[Json], *, header: bool) -> None:
    """Prints a table without trailing spaces."""
    console = make_console()
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


def took(value: float | None) -> str:
    """How long something took. A warm claim is found and bound in one statement, at one time of the database's clock."""
    return "at once" if value == 0 else seconds(value)


def since(moment: str | None) -> str:
    """The time that has passed since `moment`."""
    return _between(moment, 1)


def until(moment: str | None) -> str:
    return _between(moment, -1)


def _between(moment: str | None, sign: int) -> str:
    if moment is None:
        return "-"
    return seconds(max(0.0, sign * (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()))


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
    """A share in percent, which is 100% only if nothing is missing from it."""
    if value is None:
        return "-"
    if not _NEARLY_ALL <= value < 1:
        return f"{value:.0%}"
    return f"{value:.1%}" if value < _ALL_BUT_ROUNDING else "over 99.9%"


_FORMATS: Final[dict[str, Callable[[Any], str]]] = {
    "text": text,
    "seconds": seconds,
    "took": took,
    "since": since,
    "size": size,
    "share": share,
}
