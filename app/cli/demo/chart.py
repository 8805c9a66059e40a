"""Draws a bar for each path, to scale, divided into stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from app.cli.demo.client import Json
from app.cli.demo.words import in_percent, in_time

_LOOKS: Final = {
    "queue": ("·", "white"),
    "disk": ("▒", "blue"),
    "schedule": ("/", "magenta"),
    "image": ("▓", "cyan"),
    "start": ("=", "yellow"),
    "boot": ("█", "green"),
    "agent": ("░", "bright_green"),
}
"""The stages differ in colour and, for output without colour, in character."""
_WARM: Final = "▏"
_TITLE: Final = "Seconds from the claim to the VM, by stage, and the saving compared with a cold start"
_NAME: Final = 8
_TIME: Final = 7
_BESIDE: Final = 2 + _NAME + 2 + _TIME + 2
_SHORTEST: Final = 10
_LONGEST: Final = 60
_SHORTEST_SHOWN: Final = 0.05


@dataclass(frozen=True, slots=True)
class Bar:
    """One claim. `seconds` is the time from its request until it had its VM, measured by the client."""

    path: str
    seconds: float
    claim: Json


def draw(bars: Sequence[Bar], costs: Sequence[Json], *, width: int) -> Group:
    """`costs` are the items of `GET /v1/paths` for the bars' shape; `width` is the terminal's."""
    lines: list[RenderableType] = [Text(_TITLE, style="italic"), ""]
    by_path = {cost["path"]: cost for cost in costs}
    space = min(_LONGEST, max(_SHORTEST, width - _BESIDE))
    longest = max(bar.seconds for bar in bars)
    for bar in bars:
        took = Text(f"{in_time(bar.seconds):>{_TIME}}", style="bold green" if bar.path == "pool" else "bold")
        head = Text.assemble(f"  {bar.path:{_NAME}}  ", took, "  ")
        beside: list[Text] = [*_legend(bar, space), *_savings(by_path[bar.path])]
        lines.append(head + _fill(bar, round(space * bar.seconds / longest)))
        lines.extend(Padding(each, (0, 0, 0, _BESIDE), expand=False) for each in beside)
    return Group(*lines)


def _savings(cost: Json) -> list[Text]:
    """Nothing for a cold start: the others are compared with it."""
    if cost["expected"] is None:
        return []
    here = f"saves {in_percent(cost['saving'], digits=1)}" if cost["saving"] is not None else "no data"
    return [Text(f"{here} (target: {in_percent(cost['expected'])})")]


def _fill(bar: Bar, length: int) -> Text:
    """The bar, divided by stages. Stages come in whole seconds, so that their sum may differ from the bar's time."""
    stages = _stages(bar)
    whole = sum(stages.values())
    text = Text()
    done = 0.0
    for stage, seconds in stages.items():
        begin, done = done, done + seconds / whole * length
        glyph, colour = _LOOKS[stage]
        text.append(glyph * (round(done) - round(begin)), style=colour)
    return text if text.plain else Text(_WARM, style="bold green")


def _legend(bar: Bar, width: int) -> list[Text]:
    """Lines of at most `width` characters, with no stage split over two lines."""
    stages = _stages(bar)
    if not stages:
        return [Text("booted before the claim", style="dim")]
    lines = [Text()]
    for stage, seconds in stages.items():
        glyph, colour = _LOOKS[stage]
        told = Text.assemble((glyph, colour), f" {stage} {seconds:.1f}")
        if lines[-1] and len(lines[-1]) + 2 + len(told) > width:
            lines.append(Text())
        lines[-1] += Text("  ") + told if lines[-1] else told
    return lines


def _stages(bar: Bar) -> dict[str, float]:
    stages = bar.claim["timings"]["stages"] or {}
    return {stage: stages[stage] for stage in _LOOKS if (stages.get(stage) or 0) >= _SHORTEST_SHOWN}
