"""Text outside the body of a request: in its path, its query and its headers. What no layer below could hold is refused here.

A server passes all three on as bytes, and a framework would replace, or read as Latin-1, what is no UTF-8.
"""

from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

from app.errors import InvalidRequest, shorten

MAX_KEY: Final = 255
"""The most characters of an idempotency key."""
_KEY: Final = b"idempotency-key"


def check_address(path: bytes, query: bytes) -> None:
    """Checks a path and a query as they came. Raises InvalidRequest."""
    if b"%" in path or not path.isascii():
        _require_text("path", path)
    if b"%" in query or not query.isascii():
        for part in query.split(b"&"):
            name, _, value = part.partition(b"=")
            _require_text("the name of a query parameter", name)
            _require_text(unquote_to_bytes(name).decode(), value)


def idempotency_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The first one of the headers. Raises InvalidRequest where it is none."""
    for name, value in headers:
        if name == _KEY:
            return _key(value)
    return None


def _key(value: bytes) -> str:
    try:
        key = value.decode()
    except UnicodeDecodeError:
        key = ""
    if not (0 < len(key) <= MAX_KEY and key.isprintable()):
        message = f"must be between 1 and {MAX_KEY} printable characters in UTF-8, a UUID for example"
        raise InvalidRequest.of_field("Idempotency-Key", message)
    return key


def _require_text(field: str, encoded: bytes) -> None:
    if not encoded.isascii():
        raise InvalidRequest.of_field(shorten(field), "has a character that must be percent-encoded")
    try:
        text = unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest.of_field(shorten(field), "is not UTF-8; percent-encode the bytes of UTF-8") from error
    if "\0" in text:
        raise InvalidRequest.of_field(shorten(field), "contains a NUL character, which is not allowed; remove it")
