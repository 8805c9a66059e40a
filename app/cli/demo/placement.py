"""Act three: VMs that need something special of their node, and a VM that fits on no node."""

from collections.abc import Callable
from functools import partial
from typing import Final

from rich.console import Console

from app.cli.demo.board import show_board, show_step
from app.cli.demo.client import Client, Json
from app.cli.demo.words import in_time, quote, say

_PAGES: Final = "2Mi"


def _tell_pinned(node: Json) -> str | None:
    cpus = node["cpus"]
    return f"{cpus['pinned']:g} of its {cpus['allocatable']:g} CPUs are pinned" if cpus["pinned"] else None


def _tell_pages(node: Json) -> str | None:
    pages = node["hugepages"][_PAGES]
    return f"{pages['used']} of its {pages['allocatable']} pages of {_PAGES} are used" if pages["used"] else None


MACHINES: Final[dict[str, Callable[[Json], str | None]]] = {
    "pinned-vm.yaml": _tell_pinned,
    "hugepages-vm.yaml": _tell_pages,
}
"""The manifest of each VM in examples/, and what describes the effect on its node; None until the node shows it."""
_TOO_LARGE: Final[Json] = {"template": {"cpu": 2, "memory": "20Gi"}, "placement": {"hugepages": "1Gi"}}


async def show_placement(client: Client, machines: bytes, console: Console) -> None:
    """`machines` holds the manifests of `MACHINES`, in that order. Raises DemoFailed."""
    say(console, f"[bold]POST /v1/manifests[/bold] with {' and '.join(MACHINES)} of examples/:\n")
    applied = await client.ask("POST", "/v1/manifests", manifest=machines)
    with show_board(console) as board:
        for document, told in zip(applied["documents"], MACHINES.values(), strict=True):
            with show_step(board, document["name"]):
                claim = await client.bound(await client.ask("GET", document["resource"]["href"]))
                host = claim["vm"]["node"]
                node = await client.watch(
                    f"/v1/nodes/{host}", until=partial(_shows, told), what=f"{host} does not show its VM"
                )
            took = in_time(claim["timings"]["wait"])
            say(
                console,
                f"[bold]{quote(document['name'])}[/bold] runs on {quote(node['name'])} after {took} (simulated); now {told(node)}",
                indent=2,
            )
    answer = await client.ask("POST", "/v1/placements/check", _TOO_LARGE)
    fits = {True: "it fits", False: "it does not fit", None: "unknown"}[answer["fits"]]
    why = "; ".join(answer["missing"] or answer["unchecked"])
    say(
        console,
        f"[bold]POST /v1/placements/check[/bold] for a VM with 20Gi in pages of 1Gi: {fits}. {quote(why)}",
        indent=2,
    )


def _shows(told: Callable[[Json], str | None], node: Json) -> bool:
    return told(node) is not None
