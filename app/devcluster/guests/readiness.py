"""Readiness probes of real guests: asked again and again, as a kubelet would."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import aiohttp

from app.devcluster.apiserver.status import Json
from app.devcluster.guests.qemu.errors import MachineError
from app.devcluster.guests.qemu.machine import Machine

_ACCEPTED_SECONDS = 0.3
_SUCCESSES = range(200, 400)


def needs_agent(probe: Json) -> bool:
    """Whether the probe asks the guest agent, or one that asks a port of the guest."""
    return not ("tcpSocket" in probe or "httpGet" in probe)


class Probe:
    """Tells when the guest becomes ready, and when it no longer is. The first question is asked at once."""

    def __init__(self, machine: Machine, probe: Json, tell: Callable[[bool], None]) -> None:
        self._machine = machine
        self._probe = probe
        self._tell = tell
        self._task: asyncio.Task[None] | None = None

    def begin(self, *, ready: bool) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(ready=ready))

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self, *, ready: bool) -> None:
        period = float(self._probe.get("periodSeconds") or 10)
        needed = {
            True: int(self._probe.get("successThreshold") or 1),
            False: int(self._probe.get("failureThreshold") or 3),
        }
        count, last = 0, ready
        while True:
            healthy = await self._ask()
            count = count + 1 if healthy == last else 1
            last = healthy
            if healthy != ready and count >= needed[healthy]:
                ready = healthy
                self._tell(healthy)
            await asyncio.sleep(period if ready else min(period, 1.0))

    async def _ask(self) -> bool:
        seconds = float(self._probe.get("timeoutSeconds") or 1)
        try:
            async with asyncio.timeout(seconds + _ACCEPTED_SECONDS):
                return await self._answers(seconds)
        except (TimeoutError, OSError, MachineError, aiohttp.ClientError):
            return False

    async def _answers(self, seconds: float) -> bool:
        if command := (self._probe.get("exec") or {}).get("command"):
            ran = await self._machine.run(command[0], *command[1:], seconds=seconds)
            return ran.code == 0
        if given := self._probe.get("tcpSocket"):
            return await self._accepts(int(given["port"]))
        if given := self._probe.get("httpGet"):
            return await self._serves(given)
        await self._machine.ping(seconds)
        return True

    async def _accepts(self, port: int) -> bool:
        """Whether something in the guest accepts. QEMU itself always does, but hangs up at once where nobody does in the guest."""
        endpoint = self._machine.endpoint(port)
        if endpoint is None:
            return False
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_ACCEPTED_SECONDS):
                    return await reader.read(1) != b""
            return True
        finally:
            writer.close()

    async def _serves(self, given: Json) -> bool:
        endpoint = self._machine.endpoint(int(given["port"]))
        if endpoint is None:
            return False
        scheme = str(given.get("scheme") or "HTTP").lower()
        url = f"{scheme}://{endpoint.host}:{endpoint.port}/{str(given.get('path') or '/').lstrip('/')}"
        headers = {item["name"]: item["value"] for item in given.get("httpHeaders") or ()}
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers, ssl=False) as answer:
            return answer.status in _SUCCESSES
