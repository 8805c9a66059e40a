"""A service that listens, and the commands that talk to it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from app.cli import program as cli
from tests.support.module_service import cluster, server
from tests.support.service import listen

__all__ = ["cluster", "server"]


@dataclass(frozen=True, slots=True)
class Said:
    """What a command came to. What it wrote for people is one line."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module", autouse=True)
def no_logs():
    """The service's log goes where the commands' output goes: they are of one process here."""
    with capture_logs():
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(server) -> AsyncIterator[str]:
    async with listen(server.app) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture
def run(monkeypatch, capsys, address):
    """Run a command against the service; `stdin` are the bytes of its standard input."""
    monkeypatch.setenv("EMBERPOOL_SERVER", address)
    monkeypatch.setenv("COLUMNS", "200")

    async def run(*arguments: str, stdin: bytes = b"") -> Said:
        monkeypatch.setattr(sys, "argv", ["emberpool", *arguments])
        monkeypatch.setattr(sys, "stdin", Input(stdin))
        code = await asyncio.to_thread(call)
        out, err = capsys.readouterr()
        return Said(code, out, " ".join(err.replace("│", " ").split()))

    return run


def call() -> int:
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


class Input:
    """Standard input with these bytes."""

    def __init__(self, data: bytes) -> None:
        self.buffer = self
        self._data = data

    def read(self) -> bytes:
        return self._data

    def isatty(self) -> bool:
        return False
