"""Runs the dev cluster as a child process, restarts it when it dies, and keeps its objects in the data folder.

It is started as a command and reached only through its kubeconfig; nothing of it is imported.
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import structlog

from app.embedded.folder import DataFolder, EmbeddedError, kubeconfig_in, read_tail

_READY_SECONDS: Final = 30.0
_READY_WITH_GUESTS_SECONDS: Final = 600.0
"""The first time, the parts of the built-in guest are downloaded."""
_STOP_SECONDS: Final = 10
_RESTART_SECONDS: Final = (0.1, 0.5, 2.0, 5.0)  # before each restart; the last value repeats

_log = structlog.get_logger(__name__)


class DevClusterFailed(EmbeddedError):
    code = "embedded-cluster-failed"
    title = "The dev cluster cannot run"


@dataclass(frozen=True, slots=True)
class EmbeddedCluster:
    """`guests` is what its VMs run (`simulated`, `qemu (tcg)`), and `note` a sentence about that for people, or nothing."""

    kubeconfig: Path
    guests: str
    note: str | None

    @property
    def is_simulated(self) -> bool:
        return self.guests == "simulated"


@asynccontextmanager
async def run_cluster(
    folder: DataFolder,
    *,
    cold_boot_seconds: float = 30,
    arguments: Sequence[str] = (),
    real_guests: bool = False,
    on_progress: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[EmbeddedCluster]:
    """Runs a dev cluster until the block ends.

    It listens when the block begins, and is restarted at the same address if it dies. `arguments` are more arguments of
    `python -m app.devcluster`; with `real_guests` they ask for some, which may take minutes to prepare: `on_progress` gets a
    sentence for each step. Raises DevClusterFailed with the reason, or the end of its log.
    """
    folder.cluster.mkdir(mode=0o700, exist_ok=True)
    log = folder.cluster / "log"
    log.write_bytes(b"")  # it is about one run
    kubeconfig = kubeconfig_in(folder.path)
    command = [
        *(sys.executable, "-m", "app.embedded.leash", "app.devcluster", "--host", "127.0.0.1"),
        *("--cold-boot-seconds", f"{cold_boot_seconds:g}"),
        *("--state", str(folder.cluster / "state.sqlite"), "--kubeconfig-out", str(kubeconfig)),
        *arguments,
    ]
    starting = _Starting(log, _READY_WITH_GUESTS_SECONDS if real_guests else _READY_SECONDS, on_progress)
    process, ready = await starting.start([*command, "--port", "0"])
    supervisor = _Supervisor(process, [*command, "--port", str(urlsplit(ready["url"]).port)], starting)
    keeping = asyncio.create_task(supervisor.keep_running(), name="keep-dev-cluster")
    try:
        yield EmbeddedCluster(kubeconfig, ready.get("guests", "simulated"), ready.get("note"))
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
        await _stop(supervisor.process)


class _Supervisor:
    def __init__(self, process: Process, command: Sequence[str], starting: "_Starting") -> None:
        self.process = process
        self._command = command
        self._starting = starting

    async def keep_running(self) -> None:
        deaths = 0
        while True:
            code = await _drain(self.process)
            _log.warning("dev cluster died", code=code, log=str(self._starting.log))
            while True:
                await asyncio.sleep(_RESTART_SECONDS[min(deaths, len(_RESTART_SECONDS) - 1)])
                deaths += 1
                try:
                    self.process, ready = await self._starting.start(self._command)
                except DevClusterFailed as error:
                    # The reason is a sentence; a traceback would add nothing.
                    _log.error("dev cluster does not start", reason=str(error))
                else:
                    _log.info("dev cluster restarted", url=ready["url"])
                    break


@dataclass(frozen=True, slots=True)
class _Starting:
    """Starts the process. It writes lines of JSON: `progress` any number of times, then either its `url` once it listens, or `error`."""

    log: Path
    ready_seconds: float
    on_progress: Callable[[str], None]

    async def start(self, command: Sequence[str]) -> tuple[Process, dict[str, Any]]:
        """The process and what it says of itself. Raises DevClusterFailed."""
        with self.log.open("ab") as stderr:
            # A new session: Ctrl-C at the terminal must not reach the cluster, which has to outlive the draining of the service.
            process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=stderr, start_new_session=True
            )
        try:
            async with asyncio.timeout(self.ready_seconds):
                return process, await self._read(process)
        except (TimeoutError, ValueError) as error:
            await _stop(process)
            late = isinstance(error, TimeoutError)
            reason = f"It did not listen within {self.ready_seconds:g} s" if late else "It ended at once"
            raise DevClusterFailed(f"{reason}. The end of {self.log}:\n{read_tail(self.log)}") from error
        except BaseException:
            await _stop(process)
            raise

    async def _read(self, process: Process) -> dict[str, Any]:
        """Raises ValueError for what is no such line, as at the end of the process."""
        while True:
            said: dict[str, Any] = json.loads(await _stdout(process).readline())
            if "url" in said:
                return said
            if "error" in said:
                raise DevClusterFailed(str(said["error"]))
            self.on_progress(str(said.get("progress", "")))


async def _drain(process: Process) -> int:
    """Waits for the end of the process and returns its exit code. Reads its output, so that a full pipe does not block it."""
    while await _stdout(process).read(65536):
        pass
    return await process.wait()


async def _stop(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await _drain(process)
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await _drain(process)


def _stdout(process: Process) -> asyncio.StreamReader:
    if process.stdout is None:
        raise RuntimeError("the dev cluster was started without a pipe for its output")
    return process.stdout
