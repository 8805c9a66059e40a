"""`emberpool serve`: the service in production, with a Postgres and a cluster that exist."""

from pathlib import Path
from typing import Annotated

import structlog
import typer

from app import server
from app.cli.migrate import require_schema
from app.cli.settings import DatabaseUrl, check_settings, read_settings, run_async
from app.config import Role
from app.errors import DatabaseUnavailable

log = structlog.get_logger(__name__)


def serve(
    *,
    database_url: DatabaseUrl = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="A kubeconfig file. Without one, the service account of the pod is used.")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="The namespace in which the VMs live.")] = None,
    role: Annotated[Role | None, typer.Option(help="Which part of the service this process runs.")] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port of the API; 0: any free port.")] = None,
) -> None:
    """Serve with an existing Postgres and cluster. Every setting is also an environment variable EMBERPOOL_<NAME>."""
    settings = read_settings(
        database_url=database_url, kubeconfig=kubeconfig, namespace=namespace, role=role, host=host, port=port
    )
    check_settings(settings, database_url=database_url)

    async def run() -> None:
        try:
            await require_schema(settings)
        except DatabaseUnavailable:
            log.warning("start.without_database", hint="requests get 503 until the database can be reached")
        await server.serve(settings)

    run_async(run)
