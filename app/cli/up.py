"""`emberpool up`: the service with everything that it needs, on one machine."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from app.cli.embedded import run_embedded_cluster
from app.cli.guest_options import GuestImage, GuestMemory, Guests, GuestsOption, read_guests
from app.cli.migrate import require_schema
from app.cli.settings import ColdBoot, Port, read_settings, run_async
from app.embedded.cluster import EmbeddedCluster
from app.embedded.folder import default_data_dir, lock_folder
from app.embedded.postgres import describe_opening, run_postgres
from app.server import serve
from app.store import migrations


def up(
    *,
    port: Port = 8080,
    data_dir: Annotated[
        Path | None, typer.Option(help="The folder that keeps the data.", show_default=str(default_data_dir()))
    ] = None,
    cold_boot_seconds: ColdBoot = 30,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes of the dev cluster.")] = 3,
    guests: GuestsOption = Guests.SIMULATED,
    guest_image: GuestImage = None,
    guest_memory: GuestMemory = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve with an embedded Postgres and a dev cluster until stopped. Their data is kept for the next start."""
    settings = read_settings(port=port, log_level=log_level, log_format="console")
    options = read_guests(guests, guest_image, guest_memory)
    folder_path = data_dir or default_data_dir()
    opening = describe_opening(folder_path / "postgres")
    if opening is not None:
        _tell((opening, "yellow"))

    def greet(cluster: EmbeddedCluster, address: str) -> None:
        _tell("\nEmberpool serves at ", (address, "bold"), "; its OpenAPI UI is at ", (f"{address}/docs", "bold"), ".")
        if cluster.note is not None:
            _tell(cluster.note)
        if cluster.is_simulated:
            _tell(f"The cluster is simulated, and so are its times. All data is kept in {folder_path}. Ctrl-C stops.\n")
        else:
            _tell(
                f"Its VMs are real guests ({cluster.guests}). `emberpool guests` lists them, `emberpool console VM` shows"
            )
            _tell(f"what one writes. All data and the logs are kept in {folder_path}. Ctrl-C stops.\n")

    async def run() -> None:
        async with run_embedded_cluster(
            settings,
            folder,
            postgres,
            cold_boot_seconds=cold_boot_seconds,
            guests=options,
            nodes=nodes,
            on_progress=_tell,
        ) as (embedded, cluster):
            await require_schema(embedded)
            await serve(embedded, on_ready=partial(greet, cluster))

    with lock_folder(folder_path) as folder, run_postgres(folder) as postgres:
        migrations.upgrade(postgres.url())
        run_async(run)


def _tell(*text: str | tuple[str, str]) -> None:
    Console(stderr=True).print(Text.assemble(*text), soft_wrap=True)
