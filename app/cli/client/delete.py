"""`emberpool delete`: deletes pools, snapshots and preloads, and discards VMs that nobody has claimed."""

from typing import Annotated, Final

import typer

from app.cli.client.listings import KINDS, LISTINGS, Kind, find_one, is_id
from app.cli.client.options import DEFAULT_SERVER, OutputForm, Server, Token, connect
from app.cli.client.printing import Json, Output, show
from emberpool.client import Client

_DELETED: Final = frozenset({Kind.POOLS, Kind.VMS, Kind.SNAPSHOTS, Kind.PRELOADS})


def delete(
    kind: Annotated[str, typer.Argument(help="pool, vm, snapshot or preload; also as KIND/NAME.")],
    names: Annotated[list[str] | None, typer.Argument(help="Their names; of VMs also their ids.")] = None,
    *,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Release the claims of the pools now; delete what pools start from, and let them start cold.",
        ),
    ] = False,
    output: OutputForm = Output.TABLE,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
) -> None:
    """Delete pools, snapshots or preloads; or discard VMs that are not claimed, which their pools replace."""
    word, slash, one = kind.partition("/")
    found, wanted = _read_kind(word), [*([one] if slash else []), *(names or [])]
    if not all(wanted) or not wanted or (slash and names):
        raise typer.BadParameter("give a kind and names, such as `vm NAME`, or one KIND/NAME")
    if force and found is Kind.VMS:
        raise typer.BadParameter(
            "--force does not apply to VMs; `emberpool release` ends the claim of one that is claimed"
        )
    with connect(server, token) as client:
        keys = [_key(client, found, name) for name in dict.fromkeys(wanted)]
        deleted = [_delete(client, found, key, force=force or None) for key in keys]
    show(output, {"items": deleted}, LISTINGS[found].columns, deleted)


def _read_kind(word: str) -> Kind:
    kind = KINDS.get(word.casefold())
    if kind in _DELETED:
        return kind
    if kind is Kind.CLAIMS:
        raise typer.BadParameter("claims are ended by `emberpool release`")
    raise typer.BadParameter(f"{word!r} cannot be deleted; give pool, vm, snapshot or preload")


def _key(client: Client, kind: Kind, name: str) -> str:
    """What the API knows it by: the id of a VM, and otherwise the name."""
    return str(find_one(client, kind, name)["id"]) if kind is Kind.VMS and not is_id(name) else name


def _delete(client: Client, kind: Kind, key: str, *, force: bool | None) -> Json:
    match kind:
        case Kind.VMS:
            return client.discard_vm(key)
        case Kind.SNAPSHOTS:
            return client.delete_snapshot(key, force=force)
        case Kind.PRELOADS:
            return client.delete_preload(key, force=force)
        case _:
            return client.delete_pool(key, force=force)
