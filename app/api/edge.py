"""The checks that every request passes first: its host and token, the text of its address, what it expects, and the size and type
of its body. Also counts requests, and answers HEAD wherever GET is served.

This is plain ASGI because a middleware with the framework's base class costs two thirds of the throughput of claims.
`POST /v1/claim` goes from here to its own small application, every other request to the router.
"""

import hmac
import re
from collections.abc import Mapping, Sequence

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.bodies import read_whole
from app.api.claims.fast_path import route as claim_route
from app.api.guests.route import PREFIX, GuestRoute
from app.api.manifests import routes as manifests
from app.api.problems import DISCONNECTED, render
from app.api.queries import require_known
from app.api.text import check_address
from app.config import Settings
from app.errors import (
    BodyTooLarge,
    EmberpoolError,
    ExpectationFailed,
    HostNotAllowed,
    MalformedRequest,
    NotImplementedHere,
    Unauthenticated,
    UnsupportedMediaType,
    shorten,
)
from app.telemetry import REQUESTS

_JSON = b"application/json"
_MERGE_PATCH = b"application/merge-patch+json"
_YAML = frozenset(kind.encode() for kind in manifests.YAML_TYPES)
_HEALTH_PATHS = ("/healthz", "/readyz", "/metrics")
_OPEN_PATHS = (*_HEALTH_PATHS, "/docs", "/openapi.json", "/static-offline-docs")
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[\w.~%-]*)(:[0-9]*)?")
_ONCE = frozenset(
    (
        *(b"host", b"authorization", b"origin", b"expect", b"idempotency-key"),
        *(b"content-type", b"content-encoding", b"content-length", b"transfer-encoding"),
    )
)
"""The headers that are read here or by the claim route. Given twice, a proxy may have read the other one."""
log = structlog.get_logger(__name__)


class Edge:
    """`claim` serves the claim route, `guests` the paths of guests, `app` all other routes. Without a token in the settings, no
    request needs one; guests have tokens of their own.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        claim: claim_route.ClaimRoute | None,
        settings: Settings,
        guests: GuestRoute | None = None,
    ) -> None:
        self._app = app
        self.claim = claim
        self._guests = guests
        self.settings = settings
        token = settings.api_token
        self._token = token.get_secret_value().encode() if token is not None else None
        self._max_body_bytes = settings.max_body_bytes
        self._hosts = settings.allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                operation = getattr(scope.get("route"), "name", "none")
                REQUESTS.labels(operation=operation, status=message["status"]).inc()
            await send(message)

        try:
            has_body = self.check(scope)
            limited = self._limited(receive) if has_body else receive
            if self.claim is not None and scope["path"] == claim_route.PATH and scope["method"] == "POST":
                require_known(scope["query_string"], ())
                await self.claim(scope, limited, send)
            elif self._is_guests(scope["path"]) and self._guests is not None:
                await self._guests(scope, limited, send)
            else:
                await self._app(scope, await _read_whole(limited) if has_body else receive, counted)
        except ClientDisconnect:
            REQUESTS.labels(operation="none", status=DISCONNECTED).inc()
        except EmberpoolError as error:
            await render(error, instance=scope["path"])(scope, receive, counted)

    def check(self, scope: Scope) -> bool:
        """Checks the path, the query and the headers. Returns whether there is a body, whose bytes the caller must count.
        Raises the error of the first thing that is wrong.
        """
        found = _read(scope["headers"])
        self._check_host(scope, found.get(b"host"))
        bearer = _read_bearer(found.get(b"authorization", b""))
        of_guest = self._is_guests(scope["path"])
        if self._token is not None and not of_guest and not hmac.compare_digest(bearer, self._token):
            _require_open_path(scope["path"])
        check_address(scope["raw_path"], scope["query_string"])
        if b"expect" in found:
            _check_expectation(found[b"expect"])
        coding = found.get(b"transfer-encoding")
        if coding is not None:
            _check_coding(coding, scope)
        _require_unencoded(found.get(b"content-encoding", b""))
        size = int(found.get(b"content-length") or 0)
        if size > self._max_body_bytes:
            raise self._too_large()
        has_body = size > 0 or coding is not None
        if has_body and not of_guest:
            _check_type(scope["method"], scope["path"], found.get(b"content-type", b""))
        elif scope["method"] == "POST" and not bearer:
            _check_origin(found)
        return has_body

    def _is_guests(self, path: str) -> bool:
        return self._guests is not None and path.startswith(PREFIX)

    def _check_host(self, scope: Scope, host: bytes | None) -> None:
        """Raises MalformedRequest, HostNotAllowed."""
        if host is None and scope.get("http_version") != "1.0":
            raise MalformedRequest("the request has no Host header, which HTTP/1.1 requires; send one")
        read = _HOST.fullmatch(host or b"")
        if read is None:
            raise MalformedRequest("the Host header is not a name or an address with or without a port")
        if self._hosts and not scope["path"].startswith(_HEALTH_PATHS):
            _require_host(read[1].decode("latin-1").lower().rstrip("."), self._hosts)

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


async def _read_whole(receive: Receive) -> Receive:
    """The same with the body read, also for a route that reads none: half a request is none, whatever it asks for. Raises
    ClientDisconnect where the client broke off before the end of the body.
    """
    body = await read_whole(receive)
    whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def replay() -> Message:
        nonlocal whole
        message, whole = whole, None
        return await receive() if message is None else message

    return replay


def _without_body(send: Send) -> Send:
    """Ends the answer after its head. An application that goes on, such as a stream, is told that its client has left."""

    async def head_only(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body"})

    return head_only


def _read(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Raises MalformedRequest for a header that may be given once and is given again."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _ONCE:
            if name in found:
                raise MalformedRequest(f"the request has the header {name.decode()} more than once; send it once")
            found[name] = value
    return found


def _read_bearer(authorization: bytes) -> bytes:
    """The token of an `Authorization` header, or nothing. The scheme may be written in any case (RFC 9110, 11.1)."""
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _require_host(name: str, allowed: Sequence[str]) -> None:
    if not any(name == each or (each.startswith("*.") and name.endswith(each[1:])) for each in allowed):
        raise HostNotAllowed(
            f"the service does not answer for the host {shorten(name)!r}; use one of its names, or add this one to EMBERPOOL_ALLOWED_HOSTS"
        )


def _require_open_path(path: str) -> None:
    if not path.startswith(_OPEN_PATHS):
        raise Unauthenticated("send the API token as `Authorization: Bearer <token>`")


def _require_unencoded(encoding: bytes) -> None:
    if encoding and encoding.lower() != b"identity":
        given = shorten(encoding.decode("latin-1"))
        raise UnsupportedMediaType(f"the body is encoded ({given}); send it as it is, without Content-Encoding")


def _check_expectation(expectation: bytes) -> None:
    if expectation.lower() != b"100-continue":
        raise ExpectationFailed(
            f"the request expects {shorten(expectation.decode('latin-1'))}; the service knows only `Expect: 100-continue`"
        )


def _check_coding(coding: bytes, scope: Scope) -> None:
    if coding.lower() != b"chunked":
        raise NotImplementedHere(
            f"the transfer coding is {shorten(coding.decode('latin-1'))}; send the body with a Content-Length, or as chunked"
        )
    if scope.get("http_version") == "1.0":
        raise MalformedRequest("HTTP/1.0 has no Transfer-Encoding; send a Content-Length, or use HTTP/1.1")


def _check_origin(found: Mapping[bytes, bytes]) -> None:
    """Of a POST without a body: refuses what a page of another site can have a browser send without asking the service first
    (the Fetch standard's CORS-safelisted requests), which is every such POST that has neither another content type nor a token.
    """
    kind = _kind(found.get(b"content-type", b""))
    own = found.get(b"origin", b"").partition(b"://")[2].lower()
    if kind == _JSON or kind in _YAML or (own and own == found.get(b"host", b"").lower()):
        return
    raise UnsupportedMediaType(
        "send `Content-Type: application/json` with a POST that has no body (or a token): a page of another site could send it otherwise"
    )


def _kind(content_type: bytes) -> bytes:
    return content_type.split(b";")[0].strip().lower()


def _check_type(method: str, path: str, content_type: bytes) -> None:
    """Raises UnsupportedMediaType."""
    if content_type == _JSON:
        return
    takes_yaml = path == manifests.PATH
    kind = _kind(content_type)
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
