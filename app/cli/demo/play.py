"""The stage: what the demo needs is started, shown on, and removed, whatever ends it."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop
from pydantic import SecretStr
from rich.console import Console
from rich.status import Status
from rich.text import Text

from app.cli.demo.backing import show_backing
from app.cli.demo.client import DemoFailed, connect
from app.cli.demo.paths import show_paths
from app.cli.demo.placement import MACHINES, show_placement
from app.cli.demo.pool import PoolFile, show_pool
from app.cli.demo.words import say
from app.concurrency import first_of
from app.config import Role, Settings
from app.embedded.cluster import run_cluster
from app.embedded.folder import DataFolder, EmbeddedError, hold_folder
from app.embedded.postgres import describe_opening, run_postgres, stop_leftover
from app.server import serve
from app.store import migrations as migrating

COLD_BOOT_SECONDS: Final = 15.0
"""Half of what a cold boot takes on the dev cluster otherwise, so that all acts fit into two minutes."""
EXAMPLES: Final = Path(__file__).resolve().parent / "examples"
"""Installed with the program; examples/ of the repository links here."""
EXAMPLE: Final = EXAMPLES / "pool.yaml"
_PREFIX: Final = "emberpool-demo-"
_PATIENCE_SECONDS: Final = 60.0
"""What is not there so long after four cold boots will not be. An import takes four thirds of one."""


def play(settings: Settings, pool: PoolFile, console: Console, *, cold_boot_seconds: float, stay: bool) -> None:
    """The whole demo; where it is to `stay` it then serves until SIGINT or SIGTERM, and either ends it at any time.

    Raises DemoFailed, and what a part that cannot start says.
    """
    machines = b"---\n".join((EXAMPLES / name).read_bytes() for name in MACHINES)
    say(console, "[bold]Emberpool[/bold]: VMs that are ready before they are asked for.")
    say(
        console,
        f"The cluster here is a stand-in for KubeVirt: its VMs run nothing, and a cold boot is [bold]simulated[/bold] to take "
        f"{cold_boot_seconds:g} s. Postgres, the service and the times of its answers are real.\n",
    )
    opening = describe_opening(Path(tempfile.gettempdir()) / _PREFIX)
    if opening is not None:
        console.print(Text(opening + "\n", style="yellow"), soft_wrap=not console.is_terminal)
    with (
        _folder() as folder,
        console.status("Starting Postgres, the dev cluster and the service") as status,
        run_postgres(folder) as postgres,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        migrating.upgrade(postgres.url())
        own = settings.model_copy(
            update={"database_url": SecretStr(postgres.url()), "role": Role.ALL, "api_token": None}
        )
        acts = _Acts(pool, machines, console, patience=4 * cold_boot_seconds + _PATIENCE_SECONDS)
        runner.run(_perform(own, folder, acts, status, cold_boot_seconds=cold_boot_seconds, stay=stay))


@dataclass(frozen=True, slots=True)
class _Acts:
    """What is shown. `machines`: manifests of VMs; `patience` in seconds."""

    pool: PoolFile
    machines: bytes
    console: Console
    patience: float

    async def show(self, address: str) -> None:
        async with connect(address, patience=self.patience) as client:
            await show_pool(client, self.pool, self.console)
            await show_paths(client, self.console)
            await show_placement(client, self.machines, self.console)
            await show_backing(client, self.console)


@contextmanager
def _folder() -> Iterator[DataFolder]:
    """A folder for this run alone, directly in the system's temporary folder, which every user may enter anyway."""
    _sweep()
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with hold_folder(path) as folder:
            yield folder
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _sweep() -> None:
    """Ends and removes what killed demos left: their folders are those that nobody holds."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # A folder without a process's id in its lock is just being made; one of another user's is not ours to remove.
        with suppress(OSError, EmbeddedError):
            if (path / "lock").read_text(encoding="utf-8"):
                with hold_folder(path) as folder:
                    stop_leftover(folder)
                    shutil.rmtree(path)


async def _perform(
    settings: Settings,
    folder: DataFolder,
    acts: _Acts,
    status: Status,
    *,
    cold_boot_seconds: float,
    stay: bool,
) -> None:
    stopping = asyncio.Event()
    async with _service(settings, folder, cold_boot_seconds=cold_boot_seconds, stopping=stopping) as address:
        status.stop()
        show = asyncio.create_task(acts.show(address))
        if show in await first_of(show, stopping.wait()):
            show.result()
            say(acts.console, f"OpenAPI UI: [bold]{address}/docs[/bold]")
            if stay:
                say(acts.console, "It serves until Ctrl-C, and then everything is removed.")
                await stopping.wait()
        show.cancel()
        await asyncio.gather(show, return_exceptions=True)


@asynccontextmanager
async def _service(
    settings: Settings, folder: DataFolder, *, cold_boot_seconds: float, stopping: asyncio.Event
) -> AsyncIterator[str]:
    """The service on a dev cluster of its own, as `up` runs it; gives its address."""
    arguments = [] if settings.namespace == "default" else ["--namespace", settings.namespace]
    async with run_cluster(folder, cold_boot_seconds=cold_boot_seconds, arguments=arguments) as cluster:
        own = settings.model_copy(update={"kubeconfig": cluster.kubeconfig, "kube_context": None})
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(own, on_ready=ready.set_result, stopping=stopping))
        try:
            await first_of(serving, ready)
            if not ready.done():
                await serving
                raise DemoFailed("it was stopped before the service had started.")
            yield ready.result()
        finally:
            stopping.set()
            await asyncio.wait([serving])
        await serving
