"""`/guest/v1`: what guests ask. It bypasses the router as claims do, because ten thousand of them wait at the same time, and each
costs no more than its connection, one task and one future.

docs/guests.md describes it. It is no part of the OpenAPI document, whose clients have the API's token and not a VM's.
"""

from collections.abc import Awaitable, Callable, Collection
from typing import Final
from urllib.parse import parse_qsl
from uuid import UUID

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.bodies import BodyForm, read_whole
from app.api.guests.messages import as_json, as_shell
from app.api.problems import render, render_crash
from app.api.queries import require_known
from app.errors import BodyTooLarge, EmberpoolError, InvalidRequest, MethodNotAllowed, NotFound, Unauthenticated
from app.services.guests.answers import Look
from app.services.guests.service import GuestService
from app.telemetry import REQUESTS

PREFIX: Final = "/guest/v1/"
MAX_BODY_BYTES: Final = 16 * 1024
"""A guest sends the beginning of its hooks' output, of which less is kept."""
_Answer = Callable[[str, dict[str, str], bytes], Awaitable[Response]]
_BOOT_ID = r"^[!-~]{1,64}$"


class HelloBody(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # a guest may be newer than the service

    boot_id: str = Field(pattern=_BOOT_ID)
    vm: UUID | None = None


_HELLO: Final = BodyForm(HelloBody)


class GuestRoute:
    """An ASGI application for the paths below the prefix."""

    def __init__(self, guests: GuestService) -> None:
        self._guests = guests
        self._routes: dict[str, tuple[str, Collection[str], _Answer]] = {
            # path: method, parameters of the query, what answers
            "hello": ("POST", (), self._hello),
            "claim": ("GET", ("boot_id", "known", "lease", "form"), self._claim),
            "handed-over": ("POST", ("claim", "exit_code"), self._handed_over),
            "released": ("POST", ("claim",), self._released),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name, status = scope["path"].removeprefix(PREFIX), 500
        try:
            response = await self._answer(name, scope, receive)
            status = response.status_code
            await response(scope, receive, send)
        except ClientDisconnect:
            status = 499
        except EmberpoolError as error:
            status = error.status
            await render(error, instance=scope["path"])(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - no framework stands between this and the server
            await render_crash(scope["path"], error)(scope, receive, send)
        finally:
            operation = f"guest-{name}" if name in self._routes else "none"
            REQUESTS.labels(operation=operation, status=status).inc()

    async def _answer(self, name: str, scope: Scope, receive: Receive) -> Response:
        found = self._routes.get(name)
        if found is None:
            raise NotFound(f"there is nothing at {PREFIX}{name[:64]}; guests have {', '.join(sorted(self._routes))}")
        method, parameters, answer = found
        if scope["method"] != method:
            raise MethodNotAllowed(f"{scope['path']} takes {method}", allowed=[method])
        token = _token(scope)
        require_known(scope["query_string"], parameters)
        body = await read_whole(receive) if method == "POST" else b""
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"a guest may send {MAX_BODY_BYTES} bytes")
        return await answer(token, dict(parse_qsl(scope["query_string"].decode("latin-1"))), body)

    async def _hello(self, token: str, _query: dict[str, str], body: bytes) -> Response:
        hello: HelloBody = _HELLO.read(body)
        guest = await self._guests.hello(token, hello.boot_id, hello.vm)
        return _json({"vm": str(guest.vm_id), "name": guest.vm_name, "pool": guest.pool})

    async def _claim(self, token: str, query: dict[str, str], _body: bytes) -> Response:
        look = Look(_required(query, "boot_id"), _uuid(query, "known"), _number(query, "lease"))
        told = await self._guests.next(token, look)
        if told is None:
            return Response(status_code=204)
        if query.get("form") == "shell":
            return Response(as_shell(told), media_type="text/plain")
        return Response(as_json(told), media_type="application/json")

    async def _handed_over(self, token: str, query: dict[str, str], body: bytes) -> Response:
        claim, exit_code = _uuid(query, "claim", required=True), _number(query, "exit_code", required=True)
        if claim is not None and exit_code is not None:
            await self._guests.handed_over(token, claim, exit_code, body)
        return Response(status_code=204)

    async def _released(self, token: str, query: dict[str, str], _body: bytes) -> Response:
        claim = _uuid(query, "claim", required=True)
        if claim is not None:
            await self._guests.released(token, claim)
        return Response(status_code=204)


def _token(scope: Scope) -> str:
    """Raises Unauthenticated."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer" and token.strip():
                return str(token.strip())
    raise Unauthenticated("send the token from the identity disk as `Authorization: Bearer <token>`")


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


def _required(query: dict[str, str], name: str) -> str:
    if not 0 < len(query.get(name, "")) <= 64:  # noqa: PLR2004 - as in HelloBody
        raise InvalidRequest.of_field(name, "is required: the guest's boot id, 1 to 64 characters")
    return query[name]


def _uuid(query: dict[str, str], name: str, *, required: bool = False) -> UUID | None:
    given = query.get(name, "")
    if not given and not required:
        return None
    try:
        return UUID(given)
    except ValueError as error:
        raise InvalidRequest.of_field(name, "must be a claim's id") from error


def _number(query: dict[str, str], name: str, *, required: bool = False) -> int | None:
    given = query.get(name, "")
    if not given and not required:
        return None
    if not (given.isascii() and given.removeprefix("-").isdigit() and len(given) <= 10):  # noqa: PLR2004 - it is stored in 32 bits
        raise InvalidRequest.of_field(name, "must be a whole number")
    return max(-(2**31), min(2**31 - 1, int(given)))
