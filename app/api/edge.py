"""What every request passes first, in one ASGI layer: the token, the body's size and type, and the request counter.

Plain ASGI, for the price: a middleware of the framework's own base class costs two thirds of the throughput of a claim.
"""

import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import render
from app.errors import BodyTooLarge, EmberpoolError, Unauthenticated, UnsupportedMediaType
from app.telemetry import REQUESTS

_JSON = b"application/json"
_OPEN_PATHS = ("/healthz", "/readyz", "/docs", "/redoc", "/openapi.json", "/static-offline-docs", "/metrics")


class Edge:
    """`token` None: everybody may call. Routes' names are the operations that requests are counted under."""

    def __init__(self, app: ASGIApp, *, token: str | None, max_body_bytes: int) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode() if token is not None else None
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = _counted(scope, send)
        try:
            self._check(scope)
        except EmberpoolError as error:
            await render(error, instance=scope["path"])(scope, receive, counted)
            return
        await self._app(scope, self._limited(receive), counted)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._expected is not None and not scope["path"].startswith(_OPEN_PATHS):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                raise Unauthenticated("send the API token as `Authorization: Bearer <token>`")
        length = int(headers.get(b"content-length", b"0") or b"0")
        if length > self._max_body_bytes:
            raise self._too_large()
        has_body = length > 0 or b"transfer-encoding" in headers
        if has_body and headers.get(b"content-type", b"").split(b";")[0].strip().lower() != _JSON:
            given = headers.get(b"content-type", b"").decode("latin-1") or "none"
            raise UnsupportedMediaType(f"the content type is {given}; send JSON as application/json")

    def _limited(self, receive: Receive) -> Receive:
        """A body without a stated length is counted as it comes."""
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._max_body_bytes:
                    raise self._too_large()
            return message

        return limited

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is above {self._max_body_bytes} bytes, the most that is taken here")


def _counted(scope: Scope, send: Send) -> Send:
    async def counted(message: Message) -> None:
        if message["type"] == "http.response.start":
            route = scope.get("route")
            REQUESTS.labels(operation=getattr(route, "name", "none"), status=message["status"]).inc()
        await send(message)

    return counted
