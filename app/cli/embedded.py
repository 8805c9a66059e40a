"""The dev cluster behind `up` and `demo`: what a production image leaves out is imported from here on."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pydantic import SecretStr

from app.cli.guest_options import GuestOptions
from app.config import Role, Settings
from app.embedded.cluster import EmbeddedCluster, run_cluster
from app.embedded.folder import DataFolder
from app.embedded.postgres import Postgres


@asynccontextmanager
async def run_embedded_cluster(
    settings: Settings,
    folder: DataFolder,
    postgres: Postgres,
    *,
    cold_boot_seconds: float,
    guests: GuestOptions,
    nodes: int = 3,
    on_progress: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[tuple[Settings, EmbeddedCluster]]:
    """Runs a dev cluster until the block ends. Gives the settings of a service that uses it and `postgres`."""
    arguments = ["--nodes", str(nodes), *guests.arguments(folder)]
    if settings.namespace != "default":
        arguments += ["--namespace", settings.namespace]
    async with run_cluster(
        folder,
        cold_boot_seconds=cold_boot_seconds,
        arguments=arguments,
        real_guests=guests.may_be_real,
        on_progress=on_progress,
    ) as cluster:
        yield (
            settings.model_copy(
                update={
                    "database_url": SecretStr(postgres.url()),
                    "kubeconfig": cluster.kubeconfig,
                    "kube_context": None,
                    "guest_url": settings.guest_url or "http://127.0.0.1:0",
                    "handover_key": settings.handover_key or folder.handover_key(),
                    "role": Role.ALL,
                }
            ),
            cluster,
        )
