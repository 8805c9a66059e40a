"""`emberpool delete`: deletes pools, snapshots and preloads, and discards VMs that nobody has claimed."""

from typing import Annotated, Final

import typer

from app.cli.client.listings import KINDS, LISTINGS, Kind, find_one, is_id
from app.cli.client.options import OutputForm, Server, Token, connect
from app.cli.client.printing import Output, show
from app.cli.client.service import DEFAULT_SERVER, Service, in_path

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
    with connect(server, token) as service:
        keys = [_key(service, found, name) for name in dict.fromkeys(wanted)]
        query = {"force": "true"} if force else {}
        deleted = [service.ask("DELETE", f"/v1/{found}/{key}", params=query) for key in keys]
    show(output, {"items": deleted}, LISTINGS[found].columns, deleted)


def _read_kind(word: str) -> Kind:
    kind = KINDS.get(word.casefold())
    if kind in _DELETED:
        return kind
    if kind is Kind.CLAIMS:
        raise typer.BadParameter("claims are ended by `emberpool release`")
    raise typer.BadParameter(f"{word!r} cannot be deleted; give pool, vm, snapshot or preload")


def _key(service: Service, kind: Kind, name: str) -> str:
    """What stands for it in the path: the id of a VM, and otherwise the name, encoded."""
    if kind is Kind.VMS and not is_id(name):
        return str(find_one(service, kind, name)["id"])
    return in_path(name)
