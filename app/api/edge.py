"""The checks that every request passes first: the token, the text of the address, and the size and type of the body. Also
counts requests.

This is plain ASGI because a middleware with the framework's base class costs two thirds of the throughput of claims.
`POST /v1/claim` goes from here to its own small application, every other request to the router.
"""

import hmac

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.claims.fast_path import route as claim_route
from app.api.manifests import routes as manifests
from app.api.problems import render
from app.api.text import check_address
from app.errors import BodyTooLarge, EmberpoolError, Unauthenticated, UnsupportedMediaType, shorten
from app.telemetry import REQUESTS

_JSON = b"application/json"
_MERGE_PATCH = b"application/merge-patch+json"
_YAML = frozenset(kind.encode() for kind in manifests.YAML_TYPES)
_OPEN_PATHS = ("/healthz", "/readyz", "/docs", "/openapi.json", "/static-offline-docs", "/metrics")
log = structlog.get_logger(__name__)


class Edge:
    """`claim` serves the claim route, `app` all other routes. Without a `token`, no request needs one."""

    def __init__(
        self, app: ASGIApp, *, claim: claim_route.ClaimRoute | None, token: str | None, max_body_bytes: int
    ) -> None:
        self._app = app
        self.claim = claim
        self._expected = f"Bearer {token}".encode() if token is not None else None
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                operation = getattr(scope.get("route"), "name", "none")
                REQUESTS.labels(operation=operation, status=message["status"]).inc()
            await send(message)

        try:
            limited = self._limited(receive) if self.check(scope) else receive
            if self.claim is not None and scope["path"] == claim_route.PATH and scope["method"] == "POST":
                await self.claim(scope, limited, send)
            else:
                await self._app(scope, limited, counted)
        except EmberpoolError as error:
            await render(error, instance=scope["path"])(scope, receive, counted)

    def check(self, scope: Scope) -> bool:
        """Checks the path, the query and the headers. Returns whether the length of the body is unknown, so that the caller must
        count it. Raises Unauthenticated, InvalidRequest, BodyTooLarge, UnsupportedMediaType.
        """
        length: bytes | None = None
        content_type = b""
        authorization = b""
        encoding = b""
        chunked = False
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = value
            elif name == b"content-type":
                content_type = value
            elif name == b"authorization":
                authorization = value
            elif name == b"content-encoding":
                encoding = value
            elif name == b"transfer-encoding":
                chunked = True
        if self._expected is not None and not hmac.compare_digest(authorization, self._expected):
            _require_open_path(scope["path"])
        check_address(scope["raw_path"], scope["query_string"])
        _require_unencoded(encoding)
        size = int(length) if length else 0
        if size > self._max_body_bytes:
            raise self._too_large()
        if (size or chunked) and content_type != _JSON:
            _check_type(scope["method"], scope["path"], content_type)
        return chunked

    def _limited(self, receive: Receive) -> Receive:
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size > self._max_body_bytes:
                    raise self._too_large()
            return message

        return limited

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than the limit of {self._max_body_bytes} bytes")


def _require_open_path(path: str) -> None:
    if not path.startswith(_OPEN_PATHS):
        raise Unauthenticated("send the API token as `Authorization: Bearer <token>`")


def _require_unencoded(encoding: bytes) -> None:
    if encoding and encoding.lower() != b"identity":
        given = shorten(encoding.decode("latin-1"))
        raise UnsupportedMediaType(f"the body is encoded ({given}); send it as it is, without Content-Encoding")


def _check_type(method: str, path: str, content_type: bytes) -> None:
    """Raises UnsupportedMediaType."""
    takes_yaml = path == manifests.PATH
    kind = content_type.split(b";")[0].strip().lower()
    if kind == _JSON or (takes_yaml and kind in _YAML) or (method == "PATCH" and kind == _MERGE_PATCH):
        return
    given = content_type.decode("latin-1") or "none"
    if takes_yaml:
        raise UnsupportedMediaType(
            f"the content type is {given}; send YAML as application/yaml, or JSON as application/json"
        )
    if method == "PATCH":
        raise UnsupportedMediaType(
            f"the content type is {given}; send a JSON merge patch (RFC 7396) as application/merge-patch+json or application/json"
        )
    raise UnsupportedMediaType(f"the content type is {given}; send JSON as application/json")
