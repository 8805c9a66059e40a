"""`emberpool claim`: claims a VM, now or as soon as one is ready."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, Any, cast

import typer
from rich.markup import escape

from app.cli.client.files import namespace_of, read_files, read_request
from app.cli.client.listings import LISTINGS, Kind
from app.cli.client.options import DEFAULT_SERVER, AllowUnschedulable, OutputForm, Server, SkipUnknown, Token, connect
from app.cli.client.printing import Output, make_console, seconds, show, tell
from app.errors import EmberpoolError
from app.manifests.requests import Resource
from emberpool.client import Client
from emberpool.client.schemas import ClaimBody, ClaimView


class StillWaiting(EmberpoolError):
    code = "still-waiting"
    title = "No VM is ready yet"


def claim(
    pool: Annotated[str | None, typer.Argument(help="The pool to claim from.")] = None,
    *,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            "-f",
            "--filename",
            help="Instead of a pool: a YAML or JSON file with a VirtualMachine or a template.",
        ),
    ] = None,
    skip_unknown: SkipUnknown = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait if no VM is ready.")] = 0,
    lease: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Lease in seconds; the claim is released when it expires. Default: the pool's, or 3600 if the VM is made for the claim.",
        ),
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(help="Allow only this path: pool, memory, snapshot, preload or cold. May be repeated."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A label of the claim. May be repeated.")
    ] = None,
    allow_unschedulable: AllowUnschedulable = False,
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key returns the same claim.")] = None,
    output: OutputForm = Output.TABLE,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
) -> None:
    """Claim a VM from a pool, or a VM that a file describes, by the fastest path."""
    body, notes = _body(pool, file, skip_unknown=skip_unknown)
    body["labels"] = {**body.get("labels", {}), **_labels(label or [])}
    if lease is not None:
        body["lease_seconds"] = lease
    if path:
        body["paths"] = path
    if allow_unschedulable:
        body["allow_unschedulable"] = True
    with connect(server, token) as client:
        claimed = _claim(client, cast("ClaimBody", body), key, wait)
    show(output, claimed, LISTINGS[Kind.CLAIMS].columns, [claimed])
    if output is Output.TABLE:
        for note in notes:
            tell(note)
    if output is Output.TABLE and (choice := claimed["choice"]) is not None:
        tell(f"Path {choice['path']}: {choice['reason']}.")
    if output is Output.TABLE and claimed["state"] == "pending":
        tell(_describe_wait(claimed))
    if claimed["state"] == "pending" and wait:
        raise StillWaiting(
            f"claim {claimed['id']} still waits ({claimed['reason']}); `emberpool get claims {claimed['id']}` shows it, and "
            f"`emberpool release {claimed['id']}` releases it"
        )


def _claim(client: Client, body: ClaimBody, key: str | None, wait: float) -> ClaimView:
    """Returns the claim once it is bound, or when the wait is over. Ctrl-C releases it."""
    console = make_console(sys.stderr)
    try:
        with console.status("Waiting for a VM.") if console.is_terminal else nullcontext() as status:

            def told(claimed: ClaimView) -> None:
                if status is not None:
                    status.update(escape(_describe_wait(claimed)))

            return client.obtain(body, wait=wait, key=key, on_wait=told)
    except KeyboardInterrupt:
        tell("Interrupted: the claim is released.")
        raise


def _body(pool: str | None, file: str | None, *, skip_unknown: bool) -> tuple[dict[str, Any], Sequence[str]]:
    """The claim, and notes about how it was read from the file."""
    if (pool is None) == (file is None):
        raise typer.BadParameter("give either a POOL, or a file with -f")
    if file is None:
        return {"pool": pool}, ()
    files = read_files([file])
    if len(files.documents) == 1 and "kind" not in files.documents[0].document.body:
        return {"vm": files.documents[0].document.body}, ()
    request = read_request(files, Resource.CLAIM, skip_unknown=skip_unknown)
    notes = [f"{request.kind} {request.name}: {note}." for note in request.notes]
    return {**request.body, "namespace": namespace_of(request.document) or None}, notes


def _labels(given: list[str]) -> dict[str, str]:
    labels = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"--label: {each!r} is not NAME=VALUE")
        labels[name] = value
    return labels


def _describe_wait(claimed: ClaimView) -> str:
    estimate = claimed["estimate"]
    expected = f" Expected in {seconds(estimate['seconds'])}: {estimate['basis']}." if estimate is not None else ""
    return f"Waiting: {claimed['reason']}.{expected}"
