"""Runs the dev cluster as a child process, restarts it when it dies, and keeps its objects in the data folder.

It is started as a command and reached only through its kubeconfig; nothing of it is imported.
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import structlog

from app.embedded.folder import DataFolder, EmbeddedError, read_tail

_READY_SECONDS: Final = 30
_STOP_SECONDS: Final = 10
_RESTART_SECONDS: Final = (0.1, 0.5, 2.0, 5.0)  # before each restart; the last value repeats

_log = structlog.get_logger(__name__)


class DevClusterFailed(EmbeddedError):
    code = "embedded-cluster-failed"
    title = "The dev cluster cannot run"


@asynccontextmanager
async def run_cluster(
    folder: DataFolder, *, cold_boot_seconds: float = 30, arguments: Sequence[str] = ()
) -> AsyncIterator[Path]:
    """Runs a dev cluster until the block ends, and gives its kubeconfig.

    It listens when the block begins, and is restarted at the same address if it dies.
    `arguments` are more arguments of `python -m app.devcluster`. Raises DevClusterFailed with the end of its log.
    """
    folder.cluster.mkdir(mode=0o700, exist_ok=True)
    log = folder.cluster / "log"
    log.write_bytes(b"")  # it is about one run
    kubeconfig = folder.cluster / "kubeconfig"
    command = [
        *(sys.executable, "-m", "app.embedded.leash", "app.devcluster", "--host", "127.0.0.1"),
        *("--cold-boot-seconds", f"{cold_boot_seconds:g}"),
        *("--state", str(folder.cluster / "state.sqlite"), "--kubeconfig-out", str(kubeconfig)),
        *arguments,
    ]
    process, url = await _start([*command, "--port", "0"], log)
    supervisor = _Supervisor(process, [*command, "--port", str(urlsplit(url).port)], log)
    keeping = asyncio.create_task(supervisor.keep_running(), name="keep-dev-cluster")
    try:
        yield kubeconfig
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
        await _stop(supervisor.process)


class _Supervisor:
    def __init__(self, process: Process, command: Sequence[str], log: Path) -> None:
        self.process = process
        self._command = command
        self._log = log

    async def keep_running(self) -> None:
        deaths = 0
        while True:
            code = await _drain(self.process)
            _log.warning("dev cluster died", code=code, log=str(self._log))
            while True:
                await asyncio.sleep(_RESTART_SECONDS[min(deaths, len(_RESTART_SECONDS) - 1)])
                deaths += 1
                try:
                    self.process, url = await _start(self._command, self._log)
                except DevClusterFailed as error:
                    # The reason is a sentence; a traceback would add nothing.
                    _log.error("dev cluster does not start", reason=str(error))
                else:
                    _log.info("dev cluster restarted", url=url)
                    break


async def _start(command: Sequence[str], log: Path) -> tuple[Process, str]:
    """The process and its address. The process writes one line of JSON with a `url` once it listens."""
    with log.open("ab") as stderr:
        # A new session: Ctrl-C at the terminal must not reach the cluster, which has to outlive the draining of the service.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=stderr, start_new_session=True
        )
    try:
        async with asyncio.timeout(_READY_SECONDS):
            line = await _stdout(process).readline()
        return process, str(json.loads(line)["url"])
    except (TimeoutError, ValueError, KeyError) as error:
        await _stop(process)
        late = isinstance(error, TimeoutError)
        reason = f"it did not listen within {_READY_SECONDS} s" if late else "it ended at once"
        raise DevClusterFailed(f"The dev cluster cannot run: {reason}. The end of {log}:\n{read_tail(log)}") from error
    except BaseException:
        await _stop(process)
        raise


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
