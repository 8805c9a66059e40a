"""`emberpool scale` and `emberpool patch`: change some fields of a pool, and leave the others as they are."""

import json
from typing import Annotated, Any, Final

import typer

from app.cli.client.listings import LISTINGS, Kind
from app.cli.client.options import DEFAULT_SERVER, OutputForm, Server, Token, connect
from app.cli.client.printing import Output, show

_Pool = Annotated[str, typer.Argument(help="The name of the pool.")]
_EXAMPLE: Final = '{"size": 12}'
_Generation = Annotated[
    int | None,
    typer.Option(min=1, help="Change the pool only if it is at this generation (see get pools NAME -o json)."),
]


def scale(
    pool: _Pool,
    *,
    size: Annotated[int, typer.Option(min=0, help="How many VMs to keep ready.")],
    generation: _Generation = None,
    output: OutputForm = Output.TABLE,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
) -> None:
    """Change the size of a pool, and nothing else."""
    _edit(pool, {"size": size}, generation, output, server, token)


def patch(
    pool: _Pool,
    *,
    patch: Annotated[
        str,
        typer.Option(
            "--patch",
            "-p",
            help="The fields to change, as a JSON merge patch (RFC 7396); null sets a field to its default.",
            metavar="JSON",
        ),
    ],
    generation: _Generation = None,
    output: OutputForm = Output.TABLE,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
) -> None:
    """Change some fields of a pool, such as emberpool patch web -p '{"size": 12, "max_vms": null}'."""
    _edit(pool, _read(patch), generation, output, server, token)


def _read(patch: str) -> dict[str, Any]:
    try:
        found: Any = json.loads(patch, parse_constant=_refuse)
    except ValueError as error:
        raise typer.BadParameter(f"--patch: {patch!r} is not JSON; write it as in {_EXAMPLE}") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f"--patch: {patch!r} is not an object with fields, such as {_EXAMPLE}")
    return found


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no value")


def _edit(
    pool: str, patch: dict[str, Any], generation: int | None, output: Output, server: str, token: str | None
) -> None:
    version = f'"{generation}"' if generation is not None else None
    with connect(server, token) as client:
        edited = client.patch_pool(pool, patch, if_match=version)
    show(output, edited, LISTINGS[Kind.POOLS].columns, [edited])
