"""Whole processes, started as a user starts them: the service's replicas, the dev cluster, and `up`.

Each ends with the process that started it, however that one dies; what it logs is kept in a file and told where it fails.
"""

import asyncio
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.support.patience import PATIENCE

_LOOK_SECONDS: Final = 0.05
_TAIL_LINES: Final = 15

# Everything that happens by a timer happens soon, so that a test waits for conditions and not for intervals.
QUICK: Final = {
    "relist_seconds": 2,
    "watch_lease_seconds": 2,
    "plan_seconds": 0.3,
    "reap_seconds": 0.3,
    "work_lease_seconds": 3,
    "cluster_timeout_seconds": 2,
    "unready_grace_seconds": 1,
    "orphan_grace_seconds": 4,
    "backoff_base_seconds": 0.1,
    "backoff_cap_seconds": 1,
    "shutdown_grace_seconds": 10,
}


class NeverCame(AssertionError):
    """A condition did not hold in its time; the sentence says what was seen last."""


async def until(
    holds: Callable[[], Awaitable[object]], what: str, *, seconds: float = PATIENCE, every: float = _LOOK_SECONDS
) -> Any:
    """Waits until `holds()` gives something true, and gives that. What is waited for is in other processes: no event tells it."""
    deadline = time.monotonic() + seconds
    while not (found := await holds()):
        if time.monotonic() > deadline:
            raise NeverCame(f"not within {seconds:g} s: {what}; seen last: {found!r}")
        await asyncio.sleep(every)
    return found


def is_alive(pid: int) -> bool:
    """Whether the process runs, on Linux. One that ended counts as gone also while nobody takes its exit code."""
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


class Program:
    """One `python -m MODULE ARGUMENT...`, run as often as it is started; one log for all of its lives."""

    def __init__(self, name: str, arguments: Sequence[str], *, log: Path, settings: Mapping[str, object] = {}) -> None:
        self.name = name
        self.arguments = list(arguments)
        self.log = log
        self.settings = dict(settings)
        self.process: Process | None = None
        self._read_from = 0

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    @property
    def pid(self) -> int:
        return self._live().pid

    async def start(self) -> None:
        """Returns at once; see `logged` for what it says when it is there."""
        self._read_from = self.log.stat().st_size if self.log.exists() else 0
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EMBERPOOL_")}
        environment |= {f"EMBERPOOL_{name.upper()}": str(value) for name, value in self.settings.items()}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "app.embedded.leash", *self.arguments),
                stdin=PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    async def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is finished or given back."""
        self._live().kill()
        await self._live().wait()

    def terminate(self) -> None:
        self._live().terminate()

    async def wait(self, *, seconds: float = PATIENCE) -> int:
        """Its exit code. Raises NeverCame."""
        try:
            async with asyncio.timeout(seconds):
                return await self._live().wait()
        except TimeoutError:
            raise NeverCame(f"{self.name} did not end within {seconds:g} s; it logged\n{self.tail()}") from None

    async def close(self) -> None:
        """Whatever it does: it is gone after this."""
        if self.is_running:
            self._live().send_signal(signal.SIGKILL)
            await self._live().wait()

    def events(self) -> list[dict[str, Any]]:
        """What this life of it logged, line by line; what is no JSON is left out."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as log:
            log.seek(self._read_from)
            lines = log.read().splitlines()
        return [event for line in lines if isinstance(event := _read_json(line), dict)]

    async def logged(self, name: str, *, seconds: float = PATIENCE, **fields: object) -> dict[str, Any]:
        """The first line that it logged in this life with that `event`."""

        async def look() -> dict[str, Any] | None:
            for event in self.events():
                if event.get("event") == name and fields.items() <= event.items():
                    return event
            if not self.is_running:
                raise NeverCame(f"{self.name} ended before it logged {name!r}; its log ends\n{self.tail()}")
            return None

        found: dict[str, Any] = await until(look, f"{self.name} logs {name!r}", seconds=seconds)
        return found

    def tail(self) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-_TAIL_LINES:])

    def _live(self) -> Process:
        if self.process is None:
            raise NeverCame(f"{self.name} was not started")
        return self.process


class Service(Program):
    """One replica of the service. A later life listens on another port: `url` is that of the present one."""

    def __init__(
        self, folder: Path, name: str, *, database_url: str, kubeconfig: Path, role: str = "all", **settings: object
    ) -> None:
        arguments = ["app", "serve", "--database-url", database_url, "--kubeconfig", str(kubeconfig)]
        super().__init__(
            name,
            [*arguments, "--role", role, "--port", "0"],
            log=folder / f"{name}.log",
            settings={**QUICK, **settings},
        )
        self.url = ""
        self._serves = False

    async def serve(self) -> str:
        """Starts it, and waits until it listens; its address."""
        self._serves = False
        await self.start()
        self.url = str((await self.logged("serving"))["address"])
        self._serves = True
        return self.url

    @property
    def is_serving(self) -> bool:
        """Whether somebody is at `url`, which is an earlier life's while a later one starts."""
        return self._serves and self.is_running


class Cluster(Program):
    """A dev cluster of its own process, at one address in all of its lives; `url` is known once it was served."""

    def __init__(
        self, folder: Path, *, cold_boot_seconds: float, nodes: int = 3, arguments: Sequence[str] = ()
    ) -> None:
        self.kubeconfig = folder / "kubeconfig"
        self.url = ""
        self._command = [
            *("app.devcluster", "--cold-boot-seconds", f"{cold_boot_seconds:g}", "--nodes", str(nodes)),
            *("--state", str(folder / "cluster.sqlite"), "--kubeconfig-out", str(self.kubeconfig)),
            *arguments,
        ]
        super().__init__("cluster", self._command, log=folder / "cluster.log")

    async def serve(self) -> str:
        """Starts it, and waits until it listens."""
        port = self.url.rpartition(":")[2] or "0"
        self.arguments = [*self._command, "--port", port]
        await self.start()

        async def listens() -> str | None:
            if not self.is_running:
                raise NeverCame(f"the dev cluster ended at once; its log ends\n{self.tail()}")
            return next((str(line["url"]) for line in self.events() if "url" in line), None)

        self.url = await until(listens, "the dev cluster listens")
        return self.url


def _read_json(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None
