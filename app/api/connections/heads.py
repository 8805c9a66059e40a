"""Heads of requests that are not as they should be: what their sender is told, and the offers that are ignored."""

from collections.abc import Sequence

import httptools
import structlog

from app.errors import EmberpoolError, MalformedRequest, NotImplementedHere, VersionNotSupported, shorten

Headers = Sequence[tuple[bytes, bytes]]
_OF_UPGRADE = frozenset((b"upgrade", b"http2-settings"))
_CODINGS = frozenset((b"chunked", b"identity"))
log = structlog.get_logger(__name__)


class PipelineFull(Exception):
    """As many requests wait on the connection as may. The last of them is answered, and the connection closed."""


def check_start(method: bytes, target: bytes, version: str) -> None:
    """Checks the first line of a request. Raises NotImplementedHere, VersionNotSupported, MalformedRequest."""
    if method == b"CONNECT":
        raise NotImplementedHere("the service is no proxy; send requests for its own paths")
    if version not in {"1.0", "1.1"}:
        raise _other_version(version)
    if not target.startswith(b"/") or not target.isascii():
        _check_target(target)


def describe(error: httptools.HttpParserError, method: bytes, headers: Headers) -> EmberpoolError:
    """The error for what the parser refuses. `headers`: those that it has read, with names in lower case."""
    reason = str(error)
    if isinstance(error, httptools.HttpParserCallbackError):
        log.error("request.crashed", path=None, exc_info=error.__context__)
        return EmberpoolError("the service failed unexpectedly; its log has the details. Trying again may help")
    if method == b"PRI" or reason == "Invalid HTTP version":
        return _other_version("2" if method == b"PRI" else "this version")
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return MalformedRequest(
            "what was sent is no request of HTTP/1.1; if it is TLS, use http:// or the port of the TLS proxy"
        )
    codings = [
        part.strip() for name, value in headers if name == b"transfer-encoding" for part in value.lower().split(b",")
    ]
    unknown = [each.decode("latin-1") for each in codings if each not in _CODINGS]
    if unknown:
        return NotImplementedHere(
            f"the transfer coding is {shorten(', '.join(unknown))}; send the body with a Content-Length, or as chunked"
        )
    return MalformedRequest(f"the request cannot be read: {reason[:1].lower()}{reason[1:]}. Nothing of it was done")


def without_upgrade(method: bytes, target: bytes, headers: Headers) -> bytes:
    """The head of a request of HTTP/1.1 without its offer of another protocol."""
    lines = [b"%s %s HTTP/1.1\r\n" % (method, target)]
    for name, value in headers:
        kept = value
        if name == b"connection":
            kept = b",".join(each for each in value.split(b",") if each.strip().lower() not in _OF_UPGRADE)
        if name not in _OF_UPGRADE and kept:
            lines.append(b"%s: %s\r\n" % (name, kept))
    return b"".join([*lines, b"\r\n"])


def _other_version(version: str) -> VersionNotSupported:
    name = version if version == "this version" else f"HTTP/{version}"
    return VersionNotSupported(f"the service does not speak {name}; send the request with HTTP/1.1")


def _check_target(target: bytes) -> None:
    """Raises MalformedRequest unless the target is an absolute URL with a path (RFC 9112, 3.2.2), or `*`."""
    try:
        is_known = target == b"*" or (target.isascii() and httptools.parse_url(target).path is not None)
    except httptools.HttpParserInvalidURLError:
        is_known = False
    if not is_known:
        raise MalformedRequest(
            "the first line of the request names no path; it must begin with `/`, and other characters than ASCII are written as %XX"
        )
