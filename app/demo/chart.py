"""A bar for each path, in proportion, and what each stage has of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.table import Table
from rich.text import Text

from app.demo.client import Json
from app.demo.words import in_percent, in_time

_LOOKS: Final = {
    "queue": ("·", "white"),
    "disk": ("▒", "blue"),
    "schedule": ("/", "magenta"),
    "image": ("▓", "cyan"),
    "start": ("=", "yellow"),
    "boot": ("█", "green"),
    "agent": ("░", "bright_green"),
}
"""Told apart by colour, and where there is none by what they are filled with."""
_WARM: Final = "▏"
_BESIDE: Final = 38
_SHORTEST: Final = 12
_LONGEST: Final = 60
_WORTH_TELLING: Final = 0.05


@dataclass(frozen=True, slots=True)
class Bar:
    """One claim: `seconds` from its request until it had its VM, as its client measured it."""

    path: str
    seconds: float
    claim: Json


def draw(bars: Sequence[Bar], costs: Sequence[Json], *, width: int) -> Table:
    """`costs` are the items of `GET /v1/paths` for the bars' shape; `width` is the terminal's."""
    table = Table(box=box.SIMPLE, title="From the claim to the VM", title_justify="left", pad_edge=False)
    table.add_column("path")
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("saves", justify="right")
    table.add_column("expected", justify="right")
    table.add_column("of which")
    by_path = {cost["path"]: cost for cost in costs}
    space = min(_LONGEST, max(_SHORTEST, width - _BESIDE))
    longest = max(bar.seconds for bar in bars)
    for bar in bars:
        cost = by_path[bar.path]
        table.add_row(
            bar.path,
            Text(in_time(bar.seconds), style="bold green" if bar.path == "pool" else "bold"),
            _share(cost["saving"], digits=1),
            _share(cost["expected"]),
            Text("\n").join([_fill(bar, round(space * bar.seconds / longest)), _legend(bar)]),
        )
    return table


def _share(share: float | None, *, digits: int = 0) -> str:
    return "" if share is None else in_percent(share, digits=digits)


def _fill(bar: Bar, length: int) -> Text:
    """The bar, each stage with its part of it. Stages are told in whole seconds, and so their sum may be another."""
    stages = _stages(bar)
    whole = sum(stages.values())
    text = Text()
    done = 0.0
    for stage, seconds in stages.items():
        begin, done = done, done + seconds / whole * length
        glyph, colour = _LOOKS[stage]
        text.append(glyph * (round(done) - round(begin)), style=colour)
    return text if text.plain else Text(_WARM, style="bold green")


def _legend(bar: Bar) -> Text:
    stages = _stages(bar)
    if not stages:
        return Text("a VM that had booted before", style="dim")
    told = []
    for stage, seconds in stages.items():
        glyph, colour = _LOOKS[stage]
        told.append(Text.assemble((glyph, colour), f" {stage} {in_time(seconds)}"))
    return Text("  ").join(told)


def _stages(bar: Bar) -> dict[str, float]:
    stages = bar.claim["timings"]["stages"] or {}
    return {stage: stages[stage] for stage in _LOOKS if (stages.get(stage) or 0) >= _WORTH_TELLING}
