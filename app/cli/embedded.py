"""The dev cluster behind `up` and `demo`: what a production image leaves out is imported from here on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import SecretStr

from app.config import Role, Settings
from app.embedded.cluster import run_cluster
from app.embedded.folder import DataFolder
from app.embedded.postgres import Postgres


@asynccontextmanager
async def run_embedded_cluster(
    settings: Settings, folder: DataFolder, postgres: Postgres, *, cold_boot_seconds: float, nodes: int = 3
) -> AsyncIterator[Settings]:
    """Runs a dev cluster until the block ends. Gives the settings of a service that uses it and `postgres`."""
    arguments = ["--nodes", str(nodes)]
    if settings.namespace != "default":
        arguments += ["--namespace", settings.namespace]
    async with run_cluster(folder, cold_boot_seconds=cold_boot_seconds, arguments=arguments) as kubeconfig:
        yield settings.model_copy(
            update={
                "database_url": SecretStr(postgres.url()),
                "kubeconfig": kubeconfig,
                "kube_context": None,
                "guest_url": settings.guest_url or "http://127.0.0.1:0",
                "handover_key": settings.handover_key or folder.handover_key(),
                "role": Role.ALL,
            }
        )
