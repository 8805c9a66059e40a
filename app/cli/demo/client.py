"""The service as the demo sees it: asked over HTTP, and what it refuses told in its own words."""

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
    """One connection to the service. `patience`: after so many seconds, what has not come to be will not. All raise DemoFailed."""

    def __init__(self, http: httpx.AsyncClient, patience: float) -> None:
        self._http = http
        self._patience = patience

    async def ask(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        query: Json | None = None,
        manifest: bytes | None = None,
    ) -> Json:
        """The answer's JSON. A `manifest` is YAML, in the place of a body."""
        kind = {"content-type": "application/yaml"} if manifest is not None else {}
        try:
            answer = await self._http.request(method, path, json=body, params=query, content=manifest, headers=kind)
        except httpx.HTTPError as error:
            raise DemoFailed(f"{method} {path} was not answered: {str(error) or type(error).__name__}.") from error
        found: Json = answer.json()
        if answer.is_error:
            raise DemoFailed(
                f"{method} {path} was answered with {answer.status_code} {found['code']}: {found['detail']}."
            )
        return found

    async def watch(
        self, path: str, *, until: Callable[[Json], bool], lost: Callable[[Json], str | None], what: str
    ) -> Json:
        """What is at `path` once it is as it should be. `lost` says why it never will be; what is awaited is `what`, in words."""
        give_up = time.monotonic() + self._patience
        while True:
            found = await self.ask("GET", path)
            if until(found):
                return found
            because = lost(found)
            if because is None and time.monotonic() > give_up:
                because = f"{self._patience:.0f} s were not enough"
            if because is not None:
                raise DemoFailed(f"{what}, and will not be soon: {because}.")
            await asyncio.sleep(LOOK_SECONDS)

    async def bound(self, claim: Json) -> Json:
        """The claim once it has its VM."""
        give_up = time.monotonic() + self._patience
        while claim["state"] != "bound":
            if claim["state"] in _LOST or time.monotonic() > give_up:
                raise DemoFailed(f"the claim is {claim['state']}, and has no VM: {claim['reason']}.")
            claim = await self.ask("GET", f"/v1/claims/{claim['id']}", query={"wait_seconds": _WAIT_SECONDS})
        return claim


@asynccontextmanager
async def connect(address: str, *, patience: float) -> AsyncIterator[Client]:
    # No proxy of the environment stands between a process and itself.
    async with httpx.AsyncClient(base_url=address, timeout=2 * _WAIT_SECONDS, trust_env=False) as http:
        yield Client(http, patience)
