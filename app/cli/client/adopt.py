"""`emberpool adopt` and `emberpool disown`: whose the VMs in the cluster are, after a restore or beside another service."""

import sys
import time
from typing import Annotated, Final, Literal

import typer

from app.cli.client.options import DEFAULT_SERVER, OutputForm, Server, Token, connect
from app.cli.client.printing import Output, read_columns, show, tell
from emberpool.client import Client
from emberpool.client.schemas import InstallationView

_Word = Literal["adopt", "disown"]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what it would do.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
_COLUMNS: Final = read_columns("NAME:name POOL:pool CLAIM:claim_id INSTALLATION:installation ADOPT:adopt WHY:why")
_PAUSE_SECONDS: Final = 0.5
_TRIES: Final = 120


def adopt(
    *,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: OutputForm = Output.TABLE,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
) -> None:
    """Decide that the VMs in the cluster are this service's. Lists first what that does, and asks.

    After the database was restored, or lost: claims are rebuilt from what their VMs carry, and VMs without a claim are replaced.
    """
    _decide("adopt", dry_run=dry_run, yes=yes, output=output, server=server, token=token)


def disown(
    *,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: OutputForm = Output.TABLE,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
) -> None:
    """Decide that the VMs in the cluster are not this service's. Lists first what that does, and asks.

    They are left alone for good. A database that is a copy forgets its VMs and claims, and begins anew.
    """
    _decide("disown", dry_run=dry_run, yes=yes, output=output, server=server, token=token)


def _decide(word: _Word, *, dry_run: bool, yes: bool, output: Output, server: str, token: str | None) -> None:
    with connect(server, token) as client:
        found = client.get_installation()
        _list(word, found, output)
        decision = found[word]
        if found["state"] == "working" and not found["held"]:
            tell("There is nothing to decide: all VMs that carry this service's labels are its own.")
            return
        if dry_run:
            return
        if decision["refused"] is None and not yes and not _asks(word):
            tell(f"Nothing was changed. --yes does it without asking, --dry-run only lists what {word} does.")
            raise typer.Exit(1)
        (client.adopt_vms if word == "adopt" else client.disown_vms)()
        _wait(client)


def _list(word: _Word, found: InstallationView, output: Output) -> None:
    if output is not Output.TABLE:
        show(output, found, _COLUMNS, found["vms"])
        return
    if found["reason"] is not None:
        tell(f"The service waits: {found['reason']}.")
    for each in found["held"]:
        tell(f"Held: {each['count']} of kind {each['kind']}, {each['detail']}.")
    if found["vms"]:
        show(output, found, _COLUMNS, found["vms"])
    if found["more"]:
        tell(f"And {found['more']} more.")
    if (refused := found[word]["refused"]) is not None:
        tell(f"emberpool {word} would be refused: {refused}.")
        return
    for sentence in found[word]["does"]:
        tell(f"emberpool {word} {sentence}.")


def _asks(word: str) -> bool:
    return sys.stdin.isatty() and typer.confirm(f"{word.capitalize()}?", err=True)


def _wait(client: Client) -> None:
    """Until the leading worker has carried it out."""
    for _ in range(_TRIES):
        found = client.get_installation()
        if found["decision"] is None:
            tell(f"{found['outcome'] or 'Done'}.")
            return
        time.sleep(_PAUSE_SECONDS)
    tell("No worker has carried it out yet; check that one is running.")
    raise typer.Exit(1)
