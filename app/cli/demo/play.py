"""Starts what the demo needs, shows its acts, and removes everything, however the demo ends."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from app.cli.demo.backing import show_backing
from app.cli.demo.client import DemoFailed, connect
from app.cli.demo.paths import show_paths
from app.cli.demo.placement import MACHINES, show_placement
from app.cli.demo.pool import PoolFile, show_pool
from app.cli.demo.words import say
from app.cli.embedded import run_embedded_cluster
from app.cli.guest_options import GuestOptions, Guests
from app.cli.settings import run_async
from app.concurrency import first_of
from app.config import Settings
from app.embedded.folder import DataFolder, EmbeddedError, lock_folder
from app.embedded.postgres import describe_opening, run_postgres, stop_leftover
from app.server import serve
from app.store import migrations

COLD_BOOT_SECONDS: Final = 15.0
"""Half of the dev cluster's default, so that all acts fit into two minutes."""
EXAMPLES: Final = Path(__file__).resolve().parent / "examples"
"""Installed with the program. The files in examples/ of the repository are links to these."""
EXAMPLE: Final = EXAMPLES / "pool.yaml"
_PREFIX: Final = "emberpool-demo-"
_TIMEOUT_SECONDS: Final = 60.0
"""Added to four cold boots, this is the timeout of each step. An import takes four thirds of a cold boot."""


def play(settings: Settings, pool: PoolFile, console: Console, *, cold_boot_seconds: float, stay: bool) -> None:
    """Runs the whole demo. With `stay` it then serves until SIGINT or SIGTERM. Either signal ends it at any time.

    Raises DemoFailed, and the error of a part that cannot start.
    """
    machines = b"---\n".join((EXAMPLES / name).read_bytes() for name in MACHINES)
    say(console, "[bold]Emberpool[/bold]: VMs that are ready before they are asked for.")
    say(
        console,
        "This demo runs on a simulated KubeVirt cluster: its VMs run nothing, and a cold boot is [bold]simulated[/bold] to take "
        f"{cold_boot_seconds:g} s. Postgres, the service and its response times are real.\n",
    )
    opening = describe_opening(Path(tempfile.gettempdir()) / _PREFIX)
    if opening is not None:
        console.print(Text(opening + "\n", style="yellow"), soft_wrap=not console.is_terminal)
    own = settings.model_copy(update={"api_token": None})

    async def show(address: str) -> None:
        async with connect(address, timeout_seconds=4 * cold_boot_seconds + _TIMEOUT_SECONDS) as client:
            status.stop()
            await show_pool(client, pool, console)
            await show_paths(client, console)
            await show_placement(client, machines, console)
            await show_backing(client, console)
        say(console, f"OpenAPI UI: [bold]{address}/docs[/bold]")

    async def run() -> None:
        async with run_embedded_cluster(
            own, folder, postgres, cold_boot_seconds=cold_boot_seconds, guests=GuestOptions(Guests.SIMULATED)
        ) as (embedded, _):
            await _perform(embedded, show, console, stay=stay)

    with (
        _folder() as folder,
        console.status("Starting Postgres, the dev cluster and the service") as status,
        run_postgres(folder) as postgres,
    ):
        migrations.upgrade(postgres.url())
        run_async(run)


@contextmanager
def _folder() -> Iterator[DataFolder]:
    """A folder for this run alone, directly in the system's temporary folder, which every user may enter already."""
    _sweep()
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with lock_folder(path) as folder:
            yield folder
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _sweep() -> None:
    """Removes what killed demos left behind: their folders, which no process locks, and their Postgres servers."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # A folder whose lock names no process is just being created. A folder of another user cannot be removed.
        with suppress(OSError, EmbeddedError):
            if (path / "lock").read_text(encoding="utf-8"):
                with lock_folder(path) as folder:
                    stop_leftover(folder)
                    shutil.rmtree(path)


async def _perform(
    settings: Settings, act: Callable[[str], Coroutine[None, None, None]], console: Console, *, stay: bool
) -> None:
    stopping = asyncio.Event()
    async with _service(settings, stopping) as address:
        show = asyncio.create_task(act(address))
        if show in await first_of(show, stopping.wait()):
            show.result()
            if stay:
                say(console, "The service runs until you press Ctrl-C. Then everything is removed.")
                await stopping.wait()
        show.cancel()
        await asyncio.gather(show, return_exceptions=True)


@asynccontextmanager
async def _service(settings: Settings, stopping: asyncio.Event) -> AsyncIterator[str]:
    """Serves until the block ends or `stopping` is set; gives the address."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(settings, on_ready=ready.set_result, stopping=stopping))
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
