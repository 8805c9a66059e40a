"""Act four: a pool that is a VirtualMachinePool in the cluster, for operators who use kubectl."""

import time
from typing import Final

from rich.console import Console

from app.cli.demo.board import show_board, show_step
from app.cli.demo.client import Client, Json
from app.cli.demo.pool import claim_warm, watch_pool
from app.cli.demo.words import in_time, quote, say

_POOL: Final = "ubuntu-listed"
_SIZE: Final = 2
_BODY: Final[Json] = {
    "size": _SIZE,
    "backing": "VirtualMachinePool",
    "template": {"image": "ubuntu:22.04", "cpu": 2, "memory": "2Gi"},
    "warm_when": "running",
}
"""Its VMs are warm once they run, so that this act does not wait for guests to boot."""


async def show_backing(client: Client, console: Console) -> None:
    """Raises DemoFailed."""
    path = f"/v1/pools/{_POOL}"
    began = time.perf_counter()
    await client.ask("PUT", path, _BODY)
    with show_board(console) as board, show_step(board, "VirtualMachinePool"):
        await watch_pool(client, path, size=_SIZE, what="the pool with a VirtualMachinePool is not full")
    warm_up = in_time(time.perf_counter() - began)
    say(
        console,
        f"[bold]PUT {path}[/bold] with backing: VirtualMachinePool has {_SIZE} running VMs after {warm_up} (simulated): the "
        "cluster's own controller creates them, and kubectl lists them",
        indent=2,
    )
    claim, took = await claim_warm(client, _POOL)
    vm = claim["vm"]
    await client.watch(
        f"/v1/vms/{vm['id']}",
        until=lambda seen: any(event["type"] == "vm.detached" for event in seen["history"]),
        what=f"{vm['name']} is not detached from its VirtualMachinePool",
    )
    say(
        console,
        f"a claim gets {quote(vm['name'])} in {in_time(took)}; the VM is then detached, and the VirtualMachinePool creates another\n",
        indent=4,
    )
