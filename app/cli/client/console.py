"""`emberpool console`: shows what a VM has written to its serial console, or follows it."""

import codecs
import re
import sys
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from app.cli.client.listings import Kind, find_one
from app.cli.client.options import DEFAULT_SERVER, Server, Token, connect
from app.cli.client.printing import tell
from emberpool.client import Client

_MOST_LINES: Final = 10_000
_CONTROL: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]?|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal would obey: the guest may write anything."""


def console(
    vm: Annotated[str, typer.Argument(help="The VM: its name or its id.")],
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show what the VM writes from now on too, until it ends, or Ctrl-C.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=_MOST_LINES, help="How many of the last lines to show first.")
    ] = 1000,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
) -> None:
    """Show the serial console log of a VM. On a terminal without what the guest writes to control one."""
    with connect(server, token) as client:
        found = find_one(client, Kind.VMS, vm.removeprefix("vms/").removeprefix("vm/"))
        try:
            empty = _print(client.read_console(found["id"], lines=lines, follow=follow))
        except KeyboardInterrupt:
            return
        if empty and not follow:
            tell(f"VM {found['name']} has written nothing to its console yet.")
        elif follow:
            _tell_end(client, str(found["id"]))


def _print(pieces: Iterator[bytes]) -> bool:
    """Writes them as they come. Whether there was nothing."""
    empty, decoder = True, codecs.getincrementaldecoder("utf-8")(errors="replace")
    for piece in pieces:
        empty = False
        text = decoder.decode(piece)
        sys.stdout.write(_CONTROL.sub("", text.replace("\r\n", "\n")) if sys.stdout.isatty() else text)
        sys.stdout.flush()
    return empty


def _tell_end(client: Client, vm_id: str) -> None:
    vm = client.get_vm(vm_id)
    tell(f"The log ended; VM {vm['name']} is {vm['state']}.")
