"""`emberpool import-pool`: takes over an existing VirtualMachinePool."""

from typing import Annotated, cast

import typer

from app.cli.client.options import DEFAULT_SERVER, AllowUnschedulable, OutputForm, Server, Token, connect
from app.cli.client.printing import Output, read_columns, show, tell
from emberpool.client.schemas import ImportBody, WarmWhen

_COLUMNS = read_columns("VM:vm BECOMES:becomes")


def import_pool(
    vm_pool: Annotated[str, typer.Argument(help="The VirtualMachinePool.", metavar="NAMESPACE/NAME")],
    *,
    name: Annotated[
        str | None, typer.Option(help="The name of the new pool. Default: the name of the VirtualMachinePool.")
    ] = None,
    warm_when: Annotated[
        str, typer.Option(help="What shows that a guest has booted: agent, ready or running.")
    ] = "agent",
    allow_unschedulable: AllowUnschedulable = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    output: OutputForm = Output.TABLE,
    server: Server = DEFAULT_SERVER,
    token: Token = None,
) -> None:
    """Turn an existing VirtualMachinePool into a pool. Its running VMs become the pool's and are not restarted."""
    namespace, slash, found = vm_pool.rpartition("/")
    if not (slash and namespace and found):
        raise typer.BadParameter(f"{vm_pool!r} is not NAMESPACE/NAME, such as default/web-servers")
    body: ImportBody = {
        "vm_pool": found,
        "namespace": namespace,
        "name": name,
        "warm_when": cast("WarmWhen", warm_when),  # the service tells what it may be
        "allow_unschedulable": allow_unschedulable,
        "dry_run": dry_run,
    }
    with connect(server, token) as client:
        answer = client.import_pool(body)
    if output is Output.TABLE:
        for change in answer["changes"]:
            tell(f"{found}: {change}.")
    becomes = f"a warm VM of pool {answer['pool']}"
    show(output, answer, _COLUMNS, [{"vm": vm, "becomes": becomes} for vm in answer["vms"]])
    if output is Output.TABLE and not answer["imported"]:
        tell("Nothing was changed: this was a dry run.")
