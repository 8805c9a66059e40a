"""What the serial console of a guest shows: for a guest that runs nothing a few lines, made of the status of its VMI."""

import asyncio
from collections.abc import AsyncGenerator

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import holds
from app.devcluster.apiserver.objects import Key, phase_of
from app.devcluster.apiserver.registry import VIRTUAL_MACHINE_INSTANCES
from app.devcluster.apiserver.status import Json
from app.devcluster.guests.runtime import GuestRuntime
from app.devcluster.kubevirt.vmi_controller import FINAL


class ConsoleLogs:
    def __init__(self, api: Api, guests: GuestRuntime) -> None:
        self._store = api.store
        self._guests = guests

    async def read(self, key: Key, uid: str, *, lines: int | None, follow: bool) -> AsyncGenerator[bytes]:
        """The last `lines` (None: all) of the console of the VMI with this UID; with `follow` also what comes, until its guest ends.

        Its key is that of the VMI. The log of a guest that has ended stays until its VMI is gone.
        """
        console = self._guests.console(uid)
        if console is not None:
            async for piece in console.read(lines=lines, follow=follow):
                yield piece
            return
        changed = asyncio.Event()
        unsubscribe = self._store.subscribe(lambda change: changed.set() if change.key == key else None)
        shown: int | None = None
        try:
            while vmi := self._instance(key, uid):
                changed.clear()
                text = _lines_of(vmi)
                if shown is None:
                    shown = max(0, len(text) - lines) if lines is not None else 0
                if text[shown:]:
                    yield "".join(f"{line}\r\n" for line in text[shown:]).encode()
                if not follow or phase_of(vmi) in FINAL:
                    return
                shown = max(shown, len(text))
                await changed.wait()
        finally:
            unsubscribe()

    def _instance(self, key: Key, uid: str) -> Json | None:
        stored = self._store.get(VIRTUAL_MACHINE_INSTANCES, *key)
        return stored.obj if stored is not None and stored.uid == uid else None


def _lines_of(vmi: Json) -> list[str]:
    """Each line that a later status adds comes behind those of earlier ones."""
    phases = {item["phase"] for item in vmi["status"].get("phaseTransitionTimestamps") or ()}
    name = vmi["metadata"]["name"]
    found: list[str] = []
    if "Running" in phases:
        found = [
            f"{name}: this guest is simulated and runs nothing; these lines stand for its console",
            "[    0.000000] Linux version 6.1.0 (simulated)",
            "[    0.000000] Command line: console=ttyS0",
        ]
    if found and holds(vmi["status"].get("conditions"), "AgentConnected"):
        found.append("qemu-ga: the guest agent is connected")
    return found
