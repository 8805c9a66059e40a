"""The act of the four paths where something goes wrong: it ends in one sentence, whatever else is under way."""

import asyncio
import io
from collections.abc import Callable

import httpx
import pytest
from rich.console import Console

from app.cli.demo.client import Client, DemoFailed
from app.cli.demo.paths import show_paths

PENDING = {
    "id": "c1",
    "state": "pending",
    "path": None,
    "reason": "none is ready",
    "choice": {"path": "cold", "reason": "the fastest way there is", "considered": []},
}


async def perform(answer: Callable[[str, str], dict | None], *, timeout_seconds: float = 60) -> None:
    """`answer` gives what a request gets; None: it is never answered."""

    async def handle(request: httpx.Request) -> httpx.Response:
        found = answer(request.method, request.url.path)
        if found is None:
            await asyncio.Event().wait()
        return httpx.Response(200, json=found)

    transport = httpx.MockTransport(handle)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
        await show_paths(Client(http, timeout_seconds), Console(file=io.StringIO()))


async def test_an_import_that_failed_is_told_in_its_words():
    def answer(method: str, path: str) -> dict | None:
        if path.startswith("/v1/preloads/"):
            return {"state": "failed", "ready": False, "reason": "HTTP 404", "progress": {"percent": None}}
        return PENDING if method == "POST" else None

    with pytest.raises(DemoFailed, match=r"^the image is not imported: HTTP 404\.$"):
        await perform(answer)


async def test_a_step_that_takes_longer_than_its_timeout_ends_the_demo():
    def answer(method: str, path: str) -> dict | None:
        if path.startswith("/v1/preloads/"):
            return {"state": "importing", "ready": False, "reason": None, "progress": {"percent": 3}}
        return PENDING if method == "POST" else None

    with pytest.raises(DemoFailed, match=r"it took more than 0 s\.$"):
        await perform(answer, timeout_seconds=0)


async def test_a_claim_that_was_lost_is_told_with_its_reason():
    def answer(_: str, path: str) -> dict | None:
        if path == "/v1/claim":
            return {**PENDING, "state": "failed", "reason": "no path is left"}
        return {"state": "importing", "ready": False, "reason": None, "progress": {"percent": None}}

    with pytest.raises(DemoFailed, match=r"^the claim has no VM; it is failed: no path is left\.$"):
        await perform(answer)


async def test_a_claim_that_came_by_another_path_is_not_shown_as_if_it_had_not():
    def answer(_: str, path: str) -> dict | None:
        if path == "/v1/claim":
            return {**PENDING, "state": "bound", "path": "preload"}
        return {"state": "importing", "ready": False, "reason": None, "progress": {"percent": None}}

    with pytest.raises(DemoFailed, match=r"^the claim was served by preload instead of cold: the fastest way"):
        await perform(answer)
