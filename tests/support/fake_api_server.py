"""An HTTP server that answers as a test tells it: for what no well-behaved cluster does, and to see what is asked of it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from app.config import Settings

Answer = Callable[[web.Request], object]


class ApiServer:
    """Answers requests with `answers`, one after the other, the last for ever. Keeps what was asked in `requests`."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str, dict[str, str], dict[str, str], object]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        self.requests.append((request.method, request.path, dict(request.query), dict(request.headers), body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)


def says(body: object, status: int = 200, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status, headers=headers)

    return answer


def says_text(text: str, status: int = 200, content_type: str = "text/html") -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(text=text, status=status, content_type=content_type)

    return answer


def fails(message: str, code: int, reason: str = "", **details: object) -> Answer:
    status = {
        "kind": "Status",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "details": details,
        "code": code,
    }
    return says(status, status=code)


@asynccontextmanager
async def serving(server: ApiServer, folder: Path, **settings: object) -> AsyncIterator[Settings]:
    """Settings with a kubeconfig that leads to the server."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    async with TestServer(app, host="127.0.0.1") as running:
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(kubeconfig(str(running.make_url("")))))
        yield Settings(kubeconfig=path, namespace="vms", instance="blue", **settings)


def kubeconfig(url: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": url.rstrip("/")}}],
        "users": [{"name": "test", "user": {"token": "a-token"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
