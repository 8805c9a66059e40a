"""The guest agent's protocol (qemu-ga): one line of JSON for each command, one for each answer, over one channel.

Answers carry no id. So one command is under way at a time, and after one whose answer was not waited for, a
`guest-sync-delimited` finds the end of what came too late.
"""

import asyncio
import base64
import json
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from app.devcluster.guests.qemu.errors import AgentSilent, GuestRefused

_ANSWER_BYTES: Final = 16 * 2**20  # the guest decides what it sends; this is the most that is read of one answer
_SECONDS: Final = 30.0
_FIRST_LOOK: Final = 0.002
_LONGEST_LOOK: Final = 0.02


@dataclass(frozen=True)
class Ran:
    """A program that ran in the guest."""

    code: int
    """Its exit code; 128 and the signal's number more if a signal ended it, as a shell says it."""
    out: bytes
    errors: bytes


class GuestAgent:
    def __init__(self, name: str, channel: socket.socket) -> None:
        self._name = name
        self._channel = channel
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._in_step = False

    async def sync(self, seconds: float = _SECONDS) -> None:
        """Returns when the agent answers. Raises AgentSilent."""
        async with self._one_at_a_time, self._in_time("guest-sync-delimited", seconds):
            await self._sync()

    async def call(self, command: str, arguments: Mapping[str, Any] | None = None, *, seconds: float = _SECONDS) -> Any:
        """What the agent returns. Raises GuestRefused or AgentSilent."""
        async with self._one_at_a_time, self._in_time(command, seconds):
            if not self._in_step:
                await self._sync()
            self._in_step = False
            await self._write(command, arguments)
            answer = await self._read()
            self._in_step = True
        if "error" in answer:
            raise GuestRefused(f"The guest {self._name} refused {command}: {_reason(answer['error'])}.")
        return answer.get("return")

    async def tell(self, command: str, arguments: Mapping[str, Any] | None = None) -> None:
        """A command that has no answer when it succeeds. Raises AgentSilent."""
        async with self._one_at_a_time, self._in_time(command, _SECONDS):
            self._in_step = False
            await self._write(command, arguments)

    async def run(self, path: str, *arguments: str, stdin: bytes = b"", seconds: float = _SECONDS) -> Ran:
        """Runs a program in the guest and waits for its end. Raises GuestRefused or AgentSilent."""
        order = {"path": path, "arg": list(arguments), "capture-output": True}
        if stdin:
            order["input-data"] = base64.b64encode(stdin).decode()
        number = _field(await self.call("guest-exec", order, seconds=seconds), "pid")
        look, loop = _FIRST_LOOK, asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while loop.time() < deadline:
            status = await self.call("guest-exec-status", {"pid": number}, seconds=seconds)
            if _field(status, "exited"):
                return _ran(status)
            await asyncio.sleep(look)
            look = min(look * 1.5, _LONGEST_LOOK)
        raise AgentSilent(f"{path} did not end within {seconds:g} s in the guest {self._name}.")

    def close(self) -> None:
        if self._streams is None:
            self._channel.close()
            return
        self._streams[1].close()

    async def _sync(self) -> None:
        number = secrets.randbelow(2**31)
        # 0xff is no JSON: the agent drops the half of a command that it may have read before.
        await self._write("guest-sync-delimited", {"id": number}, before=b"\xff")
        reader, _ = await self._open()
        while True:
            await reader.readuntil(b"\xff")
            answer = json.loads(await reader.readline())
            if answer.get("return") == number:
                self._in_step = True
                return

    async def _write(self, command: str, arguments: Mapping[str, Any] | None, before: bytes = b"") -> None:
        _, writer = await self._open()
        order: dict[str, Any] = {"execute": command}
        if arguments:
            order["arguments"] = dict(arguments)
        writer.write(before + json.dumps(order).encode() + b"\n")
        await writer.drain()

    async def _read(self) -> dict[str, Any]:
        reader, _ = await self._open()
        line = await reader.readline()
        if not line:
            raise EOFError
        answer = json.loads(line.lstrip(b"\xff"))
        if not isinstance(answer, dict):
            raise ValueError(f"{line[:80]!r} is no answer")  # noqa: TRY004 - told as what is wrong with the protocol
        return answer

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(sock=self._channel, limit=_ANSWER_BYTES)
        return self._streams

    @asynccontextmanager
    async def _in_time(self, command: str, seconds: float) -> AsyncIterator[None]:
        """Bounds a command, and says in a sentence why there is no answer."""
        said = f"The agent of the guest {self._name} did not answer {command}"
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise AgentSilent(f"{said} within {seconds:g} s.") from error
        except (OSError, EOFError) as error:
            raise AgentSilent(f"{said}: the machine has ended.") from error
        except (ValueError, AttributeError, asyncio.LimitOverrunError) as error:
            raise AgentSilent(f"{said} in its protocol: {error}.") from error


def _field(answer: Any, name: str) -> Any:
    if not isinstance(answer, dict) or name not in answer:
        raise AgentSilent(f"The guest's agent answered {str(answer)[:80]!r}, which has no {name}.")
    return answer[name]


def _reason(error: Any) -> str:
    return str(error.get("desc", error) if isinstance(error, dict) else error)


def _ran(status: Mapping[str, Any]) -> Ran:
    code = 128 + status["signal"] if "signal" in status else status.get("exitcode", 0)
    return Ran(code, base64.b64decode(status.get("out-data", "")), base64.b64decode(status.get("err-data", "")))
