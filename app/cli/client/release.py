"""`emberpool release`: releases claims."""

from typing import Annotated

import typer

from app.cli.client.listings import LISTINGS, Kind, find_claim, name_of
from app.cli.client.options import DEFAULT_SERVER, OutputForm, Server, Token, connect
from app.cli.client.printing import Output, show, tell


def release(
    claims: Annotated[list[str], typer.Argument(help="The claims: their ids, or their labels `name`.")],
    *,
    output: OutputForm = Output.TABLE,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
) -> None:
    """Release claims. Their VMs are destroyed. A claim that has already ended is left as it is."""
    with connect(server, token) as client:
        names = dict.fromkeys(name.removeprefix("claims/").removeprefix("claim/") for name in claims)
        found = [find_claim(client, name) for name in names]
        for claim in found:
            if claim["ended_at"] is not None:
                tell(f"Claim {name_of(claim)} had already ended: {claim['state']}.")
        released = [client.release_claim(claim["id"]) for claim in found]
    show(output, {"items": released}, LISTINGS[Kind.CLAIMS].columns, released)
