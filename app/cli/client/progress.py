"""How far what was asked for is: a bar for each on a terminal, else a line for each change."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from app.cli.client.listings import name_of
from app.cli.client.printing import Json, make_console, seconds, tell
from app.cli.client.service import Service
from app.errors import EmberpoolError

_LOOK_SECONDS: Final = 0.5
_FAILED: Final = frozenset({"failed", "absent", "expired", "released", "stalled", "paused", "drained", "deleting"})
"""States that nothing leaves by itself, or not soon."""


class NotReached(EmberpoolError):
    code = "not-reached"
    title = "Not everything came to be"


@dataclass(frozen=True, slots=True)
class Standing:
    """How one thing stands. `share` from 0 to 1; `failed`: it will not get there by itself. `guess` changes with the time alone."""

    what: str
    share: float
    told: str
    failed: bool = False
    guess: str = ""

    @property
    def done(self) -> bool:
        return self.share >= 1


def watch_progress(
    service: Service, hrefs: Sequence[str], *, pause: Callable[[], None] = lambda: time.sleep(_LOOK_SECONDS)
) -> None:
    """Returns when everything is there. Raises NotReached where something failed for good, once the rest is there."""
    console = make_console(sys.stderr)
    show = _bars if console.is_terminal else _lines
    standings = show(service, hrefs, console, pause)
    failed = [standing for standing in standings if standing.failed]
    if failed:
        raise NotReached("; ".join(f"{standing.what}: {standing.told}" for standing in failed))


def stand(href: str, found: Json) -> Standing:
    """How the thing at `href`, a path below /v1, stands."""
    kind, name = href.removeprefix("/v1/").split("/", 1)
    state = str(found["status"]["phase"] if kind == "pools" else found["state"])
    what = f"{kind}/{name_of(found) if kind == 'claims' else name}"
    reason = (found.get("status") or found).get("reason")
    guess = ""
    told = f"{state}: {reason}" if reason and state in _FAILED | {"pending", "degraded"} else state
    match kind:
        case "pools":
            counts, size = found["status"]["counts"], found["spec"]["size"]
            share = min(1.0, counts["ready"] / size) if size else 1.0
            told = f"{counts['ready']}/{size} ready" + ("" if share >= 1 or told == "filling" else f", {told}")
        case "claims":
            share = 1.0 if state == "bound" else 0.0
            if state == "bound":
                told = f"{found['vm']['name']} at {', '.join(found['vm']['addresses']) or 'no address yet'}"
            elif found["estimate"] is not None:
                guess = f", expected in {seconds(found['estimate']['seconds'])}"
        case _:
            percent = (found.get("progress") or {}).get("percent")
            share = 1.0 if state == "ready" else min(0.99, (percent or 0) / 100)
            if percent is not None and state != "ready":
                told = f"{told}, {percent:.0f} %"
    return Standing(what, share, told, failed=share < 1 and state in _FAILED, guess=guess)


def _look(service: Service, hrefs: Sequence[str]) -> list[Standing]:
    return [stand(href, service.get(href)) for href in hrefs]


def _bars(service: Service, hrefs: Sequence[str], console: Console, pause: Callable[[], None]) -> list[Standing]:
    what = TextColumn("{task.description}", markup=False)
    columns = (what, BarColumn(), TextColumn("{task.fields[told]}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        tasks = {href: progress.add_task(href, total=1.0, told="") for href in hrefs}
        while True:
            standings = _look(service, hrefs)
            for href, standing in zip(hrefs, standings, strict=True):
                progress.update(
                    tasks[href],
                    description=standing.what,
                    completed=standing.share,
                    told=standing.told + standing.guess,
                )
            if _settled(standings):
                return standings
            pause()


def _lines(service: Service, hrefs: Sequence[str], _console: Console, pause: Callable[[], None]) -> list[Standing]:
    last: dict[str, str] = {}
    while True:
        standings = _look(service, hrefs)
        for standing in standings:
            if last.get(standing.what) != standing.told:
                last[standing.what] = standing.told
                tell(f"{standing.what}: {standing.told}")
        if _settled(standings):
            return standings
        pause()


def _settled(standings: Sequence[Standing]) -> bool:
    return all(standing.done or standing.failed for standing in standings)
