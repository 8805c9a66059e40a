"""The guest's side of a channel, for guests that run nothing: whoever reads the identity disk of a VM is its guest.

A disk made from a Secret with the label EMBERPOOL has a URL and a token. The simulated guest says hello there once it has booted, waits
for its claim, and answers as the hooks of a real guest would.
"""

import asyncio
import base64
import json
import random
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import aiohttp
from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import holds
from app.devcluster.apiserver.controller import KindController
from app.devcluster.apiserver.objects import phase_of
from app.devcluster.apiserver.registry import SECRETS, VIRTUAL_MACHINE_INSTANCES
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Stored

LABEL = "EMBERPOOL"
_POLL_SECONDS = 75.0
_NAP_SECONDS = (0.1, 1.0)
_OK, _NOTHING = 200, 204
_FINAL = frozenset({401, 403, 409, 410})
_TAKEN = range(200, 500)

Hooks = Callable[[Json], tuple[int, bytes]]
"""What the hooks of a guest do with a claim: their exit code and what they print."""


def no_hooks(_claim: Json) -> tuple[int, bytes]:
    """As in a guest with nothing in `claimed.d`."""
    return 0, b""


class GuestChannels(KindController):
    """One guest for each VMI that has an identity disk and whose agent is connected."""

    resource = VIRTUAL_MACHINE_INSTANCES

    def __init__(self, api: Api, hooks: Callable[[], Hooks | None]) -> None:
        """`hooks` tells None while there are no such guests: then somebody else plays them, or they run."""
        super().__init__(api)
        self._hooks = hooks
        self._guests: dict[str, asyncio.Task[None]] = {}

    @override
    def stop(self) -> None:
        super().stop()
        for uid in list(self._guests):
            self._end(uid)

    @override
    def _forget(self, uid: str) -> None:
        super()._forget(uid)
        self._end(uid)

    @override
    def _reconcile(self, stored: Stored) -> None:
        uid, vmi = stored.uid, stored.obj
        secret = _identity_of(vmi)
        conditions = vmi.get("status", {}).get("conditions")
        runs = phase_of(vmi) == "Running" and holds(conditions, "AgentConnected") and not holds(conditions, "Paused")
        if secret is None or not runs or self._hooks() is None:
            self._end(uid)
        elif uid not in self._guests:
            found = self._store.get(SECRETS, stored.key[0], secret)
            if found is not None:
                guest = _Guest(_read(found.obj), self._hooks)
                self._guests[uid] = asyncio.get_running_loop().create_task(guest.run(), name=f"guest-{secret}")

    def _end(self, uid: str) -> None:
        guest = self._guests.pop(uid, None)
        if guest is not None:
            guest.cancel()


class _Guest:
    def __init__(self, disk: dict[str, str], hooks: Callable[[], Hooks | None]) -> None:
        self._disk = disk
        self._hooks = hooks
        self._boot_id = str(uuid.uuid4())
        self._known: Json = {}

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=_POLL_SECONDS)
        heads = {"Authorization": f"Bearer {self._disk['token']}"}
        async with aiohttp.ClientSession(self._disk["url"], headers=heads, timeout=timeout) as session:
            hello = {"boot_id": self._boot_id, "vm": self._disk["vm"]}
            if await self._insist(session, "hello", json=hello):
                await self._listen(session)

    async def _listen(self, session: aiohttp.ClientSession) -> None:
        while True:
            status, told = await self._ask(session)
            if status in _FINAL:
                return
            if status == _OK:
                await self._hear(session, told)
            elif status != _NOTHING:
                await asyncio.sleep(random.uniform(*_NAP_SECONDS))  # noqa: S311 - no secret

    async def _ask(self, session: aiohttp.ClientSession) -> tuple[int, Json]:
        """0: the service cannot be reached."""
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            query = {"boot_id": self._boot_id, **self._known}
            async with session.get("/guest/v1/claim", params=query) as answer:
                return answer.status, json.loads(await answer.read()) if answer.status == _OK else {}
        return 0, {}

    async def _hear(self, session: aiohttp.ClientSession, told: Json) -> None:
        claim = told["claim"]
        if told["event"] == "releasing":
            await self._insist(session, "released", params={"claim": claim})
            return
        self._known = {"known": claim, "lease": str(_seconds(told["lease_expires_at"]))}
        if told["event"] == "claimed":
            exit_code, output = (self._hooks() or no_hooks)(told)
            params = {"claim": claim, "exit_code": str(exit_code)}
            await self._insist(session, "handed-over", params=params, data=output)

    async def _insist(self, session: aiohttp.ClientSession, path: str, **request: object) -> bool:
        """Whether the service took it; asks again until the service has an opinion."""
        while True:
            with suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with session.post(f"/guest/v1/{path}", **request) as answer:  # type: ignore[arg-type]  # as given
                    if answer.status in _TAKEN:
                        return answer.status in {_OK, _NOTHING}
            await asyncio.sleep(random.uniform(*_NAP_SECONDS))  # noqa: S311 - no secret


def _identity_of(vmi: Json) -> str | None:
    """The name of the Secret."""
    for volume in vmi["spec"].get("volumes") or []:
        secret = volume.get("secret") or {}
        if secret.get("volumeLabel") == LABEL:
            return str(secret["secretName"])
    return None


def _read(secret: Json) -> dict[str, str]:
    return {name: base64.b64decode(value).decode() for name, value in (secret.get("data") or {}).items()}


def _seconds(moment: str | None) -> int:
    """In Unix time, as the service counts a lease's end."""
    return int(datetime.fromisoformat(moment).timestamp()) if moment else 0
