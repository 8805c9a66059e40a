"""`emberpool import-pool`: takes over an existing VirtualMachinePool."""

from typing import Annotated

import typer

from app.cli.client.options import OutputForm, Server, Token, connect
from app.cli.client.printing import Column, Output, make_console, print_data, print_table, tell
from app.cli.client.service import DEFAULT_SERVER

_COLUMNS = (Column("VM", lambda item: str(item["vm"])), Column("BECOMES", lambda item: str(item["becomes"])))


def import_pool(
    vm_pool: Annotated[str, typer.Argument(help="The VirtualMachinePool.", metavar="NAMESPACE/NAME")],
    *,
    name: Annotated[
        str | None, typer.Option(help="The name of the new pool. Default: the name of the VirtualMachinePool.")
    ] = None,
    warm_when: Annotated[
        str, typer.Option(help="What shows that a guest has booted: agent, ready or running.")
    ] = "agent",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    output: OutputForm = Output.TABLE,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
) -> None:
    """Turn an existing VirtualMachinePool into a pool. Its running VMs become the pool's and are not restarted."""
    namespace, slash, found = vm_pool.rpartition("/")
    if not (slash and namespace and found):
        raise typer.BadParameter(f"{vm_pool!r} is not NAMESPACE/NAME, such as default/web-servers")
    body = {"vm_pool": found, "namespace": namespace, "name": name, "warm_when": warm_when, "dry_run": dry_run}
    with connect(server, token) as service:
        answer = service.ask("POST", "/v1/pools/import", json=body).body
    console = make_console()
    if output is not Output.TABLE:
        print_data(console, output, answer)
        return
    for change in answer["changes"]:
        tell(f"{found}: {change}.")
    becomes = f"a warm VM of pool {answer['pool']}"
    print_table(console, _COLUMNS, [{"vm": vm, "becomes": becomes} for vm in answer["vms"]])
    if not answer["imported"]:
        tell("Nothing was changed: this was a dry run.")
