"""`emberpool demo`: its options."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.cli.demo.play import COLD_BOOT_SECONDS, EXAMPLE, play
from app.cli.demo.pool import read_pool
from app.cli.settings import ColdBoot, Port, read_settings


def demo(
    *,
    pool: Annotated[
        Path,
        typer.Option(
            help="The pool to show: a YAML file of kind VirtualMachinePool.", show_default="a pool of ten VMs"
        ),
    ] = EXAMPLE,
    port: Port = 8080,
    cold_boot_seconds: ColdBoot = COLD_BOOT_SECONDS,
) -> None:
    """Show a warm pool, all four paths to a VM, and placement, with a temporary Postgres and dev cluster."""
    settings = read_settings(port=port, log_level="warning", log_format="console")
    console = Console()
    play(settings, read_pool(pool), console, cold_boot_seconds=cold_boot_seconds, stay=console.is_terminal)
