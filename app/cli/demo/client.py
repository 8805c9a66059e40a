"""The demo's HTTP client. An error of the service ends the demo with the service's own message."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx

from app.errors import EmberpoolError

LOOK_SECONDS: Final = 0.2
Json = dict[str, Any]
_WAIT_SECONDS: Final = 15
_LOST: Final = frozenset({"failed", "expired", "released"})


class DemoFailed(EmberpoolError):
    code = "demo-failed"
    title = "The demo cannot go on"


class Client:
    """A client of the service. What is waited for longer than `timeout_seconds` has failed. Every method raises DemoFailed."""

    def __init__(self, http: httpx.AsyncClient, timeout_seconds: float) -> None:
        self._http = http
        self._timeout_seconds = timeout_seconds

    async def ask(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        query: Json | None = None,
        manifest: bytes | None = None,
    ) -> Json:
        """Sends a request with a JSON `body` or a YAML `manifest`, and returns the JSON of the answer."""
        kind = {"content-type": "application/json" if manifest is None else "application/yaml"}
        try:
            answer = await self._http.request(method, path, json=body, params=query, content=manifest, headers=kind)
        except httpx.HTTPError as error:
            raise DemoFailed(f"{method} {path} got no answer: {str(error) or type(error).__name__}.") from error
        found: Json = answer.json()
        if answer.is_error:
            raise DemoFailed(
                f"{method} {path} was answered with {answer.status_code} {found['code']}: {found['detail']}."
            )
        return found

    async def watch(
        self,
        path: str,
        *,
        until: Callable[[Json], bool],
        lost: Callable[[Json], str | None] = lambda _: None,
        what: str,
    ) -> Json:
        """Reads `path` until `until` is true, and returns what it read.

        `lost` returns the reason if that will never happen. `what` says what is wrong meanwhile, as in "the pool is not full".
        """
        give_up = time.monotonic() + self._timeout_seconds
        while True:
            found = await self.ask("GET", path)
            if until(found):
                return found
            because = lost(found)
            if because is None and time.monotonic() > give_up:
                because = f"it took more than {self._timeout_seconds:.0f} s"
            if because is not None:
                raise DemoFailed(f"{what}: {because}.")
            await asyncio.sleep(LOOK_SECONDS)

    async def bound(self, claim: Json) -> Json:
        """Waits until the claim is bound to a VM, and returns it."""
        give_up = time.monotonic() + self._timeout_seconds
        while claim["state"] != "bound":
            if claim["state"] in _LOST or time.monotonic() > give_up:
                raise DemoFailed(f"the claim has no VM; it is {claim['state']}: {claim['reason']}.")
            claim = await self.ask("GET", f"/v1/claims/{claim['id']}", query={"wait_seconds": _WAIT_SECONDS})
        return claim


@asynccontextmanager
async def connect(address: str, *, timeout_seconds: float) -> AsyncIterator[Client]:
    # The service runs in this process: a proxy from the environment must not be used.
    async with httpx.AsyncClient(base_url=address, timeout=2 * _WAIT_SECONDS, trust_env=False) as http:
        yield Client(http, timeout_seconds)
