"""`emberpool get`: lists resources, once or as they change."""

import dataclasses
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

import typer
from rich.live import Live

from app.cli.client.listings import KINDS, LISTINGS, Filters, Kind, Listing, find_all, find_one
from app.cli.client.options import DEFAULT_SERVER, OutputForm, Server, Token, connect
from app.cli.client.printing import Json, Output, make_console, show, tabulate, tell
from app.domain.fields import suggest


def get(
    kind: Annotated[
        str,
        typer.Argument(help=f"What to list: {', '.join(Kind)}; also in the singular, or as KIND/NAME.", metavar="KIND"),
    ],
    name: Annotated[str | None, typer.Argument(help="The name of one of them; for a claim or VM also its id.")] = None,
    *,
    pool: Annotated[str | None, typer.Option(help="Only claims and VMs of this pool.")] = None,
    state: Annotated[str | None, typer.Option(help="Only claims and VMs in this state.")] = None,
    label: Annotated[str | None, typer.Option(help="Only claims with this label.", metavar="NAME=VALUE")] = None,
    shape: Annotated[str | None, typer.Option(help="Only claims and paths of this shape.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Include claims and VMs that have ended.")] = False,
    output: OutputForm = Output.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show changes until Ctrl-C.")] = False,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
) -> None:
    """List pools, claims, VMs, snapshots, preloads, paths or nodes; or show one of them."""
    listed, name = _read_kind(kind, name)
    filters = Filters(pool=pool, state=state, label=label, shape=shape, everything=everything)
    if listed is Kind.PATHS and name is not None:  # each shape has its own row for a path
        filters, name = dataclasses.replace(filters, path=name), None
    listing = LISTINGS[listed]
    _refuse_filters(listed, listing, filters, name)
    with connect(server, token) as client:

        def look() -> list[Json]:
            return [find_one(client, listed, name)] if name is not None else list(find_all(client, listed, filters))

        if watch:
            follow(look, listing, output)
            return
        found = look()
    if output is Output.TABLE and not found:
        tell(f"There are no {listed}.")
    else:
        show(output, found[0] if name is not None else {"items": found}, listing.columns, found)


def follow(
    look: Callable[[], list[Json]],
    listing: Listing,
    output: Output,
    *,
    pause: Callable[[], None] = lambda: time.sleep(1),
) -> None:
    """Shows the resources until Ctrl-C: on a terminal as a live table, else with a line (or a document) for each change."""
    console = make_console()
    shown: dict[str, list[str]] = {}
    with suppress(KeyboardInterrupt):
        if console.is_terminal and output is Output.TABLE:
            with Live(console=console, auto_refresh=False) as live:
                while True:
                    live.update(tabulate(listing.columns, look()), refresh=True)
                    pause()
        while True:
            for item in look():
                key = str(item.get("id") or item.get("name") or (item.get("path"), item.get("shape")))
                cells = [column.cell(item) for column in listing.columns if not column.ticks]
                if shown.get(key) != cells:
                    show(output, item, listing.columns, [item], header=not shown)
                    shown[key] = cells
            pause()


def _read_kind(word: str, name: str | None) -> tuple[Kind, str | None]:
    """The kind, and the name that `KIND/NAME` gives."""
    word, slash, joined = word.partition("/")
    if slash and name is not None:
        raise typer.BadParameter(f"{word}/{joined} names one already; leave {name!r} out")
    kind = KINDS.get(word.casefold())
    if kind is None:
        meant = suggest(word, KINDS)
        hint = f"; did you mean {KINDS[meant]}" if meant is not None else ""
        raise typer.BadParameter(f"{word!r} is nothing that can be listed{hint}; there are: {', '.join(Kind)}")
    given = joined if slash else name
    if given is not None and not given.strip():
        raise typer.BadParameter("the name is empty; leave it out, with its /, to list all")
    return kind, given


def _refuse_filters(kind: Kind, listing: Listing, filters: Filters, name: str | None) -> None:
    for option in ("pool", "state", "label", "shape", "everything"):
        if not getattr(filters, option):
            continue
        flag = "--all" if option == "everything" else f"--{option}"
        if name is not None:
            raise typer.BadParameter(f"{flag} filters a list, and {name} names a single one: leave one of them out")
        if option not in listing.filters:
            raise typer.BadParameter(f"{flag} does not apply to {kind}")
