"""Shows the progress of resources: a bar for each on a terminal, else a line for each change."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from app.cli.client.listings import name_of
from app.cli.client.printing import Json, make_console, seconds, tell
from app.errors import EmberpoolError
from emberpool.client import Client

_REFRESH_SECONDS: Final = 0.5
_FAILED: Final = frozenset({"failed", "absent", "expired", "released", "stalled", "paused", "drained", "deleting"})
"""States that a resource does not leave by itself, or not soon."""


class NotReady(EmberpoolError):
    code = "not-ready"
    title = "Not everything is ready"


@dataclass(frozen=True, slots=True)
class ItemProgress:
    """The progress of one resource. `share` is from 0 to 1; with `failed` it will not get to 1 by itself. `guess` changes with time."""

    what: str
    share: float
    text: str
    failed: bool = False
    guess: str = ""


def watch_progress(
    client: Client,
    hrefs: Sequence[str],
    *,
    read: Callable[[str, Json], ItemProgress] | None = None,
    pause: Callable[[], None] = lambda: time.sleep(_REFRESH_SECONDS),
) -> None:
    """Returns when everything is ready. If something failed, raises NotReady once the rest is ready.

    `read` says how far the resource at an href is; without it, whether it is ready.
    """
    read = read or progress_of
    console = make_console(sys.stderr)
    with _bars(console) if console.is_terminal else _lines() as show:
        while True:
            items = [read(href, client.request("GET", href)) for href in hrefs]
            show(items)
            if all(item.share >= 1 or item.failed for item in items):
                break
            pause()
    failed = [item for item in items if item.failed]
    if failed:
        raise NotReady("; ".join(f"{item.what}: {item.text}" for item in failed))


def progress_of(href: str, found: Json) -> ItemProgress:
    """The progress of the resource at `href`, a path below /v1."""
    kind, name = href.removeprefix("/v1/").split("/", 1)
    state = str(found["status"]["phase"] if kind == "pools" else found["state"])
    what = f"{kind}/{name_of(found) if kind == 'claims' else name}"
    reason = (found.get("status") or found).get("reason")
    guess = ""
    text = f"{state}: {reason}" if reason and state in _FAILED | {"pending", "degraded"} else state
    match kind:
        case "pools":
            counts, size = found["status"]["counts"], found["spec"]["size"]
            share = min(1.0, counts["ready"] / size) if size else 1.0
            text = f"{counts['ready']}/{size} ready" + ("" if share >= 1 or text == "filling" else f", {text}")
        case "claims":
            share = 1.0 if state == "bound" else 0.0
            if state == "bound":
                text = f"{found['vm']['name']} at {', '.join(found['vm']['addresses']) or 'no address yet'}"
            elif found["estimate"] is not None:
                guess = f", expected in {seconds(found['estimate']['seconds'])}"
        case _:
            percent = (found.get("progress") or {}).get("percent")
            share = 1.0 if state == "ready" else min(0.99, (percent or 0) / 100)
            if percent is not None and state != "ready":
                text = f"{text}, {percent:.0f} %"
    return ItemProgress(what, share, text, failed=share < 1 and state in _FAILED, guess=guess)


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[Sequence[ItemProgress]], None]]:
    what = TextColumn("{task.description}", markup=False)
    columns = (what, BarColumn(), TextColumn("{task.fields[text]}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def show(items: Sequence[ItemProgress]) -> None:
            for item in items:
                if item.what not in tasks:
                    tasks[item.what] = progress.add_task(item.what, total=1.0, text="")
                progress.update(tasks[item.what], completed=item.share, text=item.text + item.guess)

        yield show


@contextmanager
def _lines() -> Iterator[Callable[[Sequence[ItemProgress]], None]]:
    last: dict[str, str] = {}

    def show(items: Sequence[ItemProgress]) -> None:
        for item in items:
            if last.get(item.what) != item.text:
                last[item.what] = item.text
                tell(f"{item.what}: {item.text}")

    yield show
