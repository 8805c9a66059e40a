"""`emberpool rotate`: replaces all unclaimed VMs of a pool."""

from typing import Annotated

import typer

from app.cli.client.listings import LISTINGS, Kind
from app.cli.client.options import DEFAULT_SERVER, OutputForm, Server, Token, connect
from app.cli.client.printing import Json, Output, show, tell
from app.cli.client.progress import ItemProgress, watch_progress

_STANDS = frozenset({"paused", "stalled", "deleting"})
"""Phases in which no VM is replaced."""


def rotate(
    pool: Annotated[str, typer.Argument(help="The name of the pool.")],
    *,
    restart: Annotated[
        bool, typer.Option("--restart", help="Also replace VMs that were made since a rotation that still runs.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Wait until all are replaced, and show the progress.")
    ] = False,
    output: OutputForm = Output.TABLE,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
) -> None:
    """Replace all unclaimed VMs of a pool, a few at a time and never below min_available. Claimed VMs stay."""
    with connect(server, token) as client:
        before = client.get_pool(pool)
        found = client.rotate_pool(pool, restart=restart or None)
        rotation = found["status"]["rotation"]
        total = rotation["remaining"] if rotation is not None else 0
        show(output, found, LISTINGS[Kind.POOLS].columns, [found])
        if output is Output.TABLE:
            tell(_describe(found, again=not restart and _asked_at(before) is not None))
        if watch:
            watch_progress(client, [f"/v1/pools/{pool}"], read=lambda _, now: _progress_of(now, total))


def _asked_at(pool: Json) -> str | None:
    rotation = pool["status"]["rotation"]
    return rotation["requested_at"] if rotation is not None else None


def _describe(pool: Json, *, again: bool) -> str:
    rotation = pool["status"]["rotation"]
    if rotation is None:
        return "There is no VM to replace."
    remaining = f"{rotation['remaining']} VM{'s' if rotation['remaining'] != 1 else ''} to replace"
    if again:
        return f"A rotation that was asked for at {rotation['requested_at']} still runs: {remaining}. --restart begins anew."
    return f"Rotating: {remaining}."


def _progress_of(pool: Json, total: int) -> ItemProgress:
    status = pool["status"]
    remaining = status["rotation"]["remaining"] if status["rotation"] is not None else 0
    stands = bool(remaining) and status["phase"] in _STANDS
    reason = f", {status['phase']}: {status['reason']}" if remaining and status["reason"] else ""
    share = 1.0 if not remaining else max(0.0, min(0.99, 1 - remaining / max(1, total)))
    return ItemProgress(f"pools/{pool['name']}", share, f"{remaining} to replace{reason}", failed=stands)
