"""Turns the bytes of a body or a file into text: UTF-8, or what a byte order mark at the beginning says."""

import codecs
from typing import Final

from app.errors import MalformedBody

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
_UNMARKED: Final = (  # whether each of the first bytes is zero, in text that begins with ASCII
    ((False, True, True, True), "UTF-32"),
    ((True, True, True, False), "UTF-32"),
    ((False, True), "UTF-16"),
    ((True, False), "UTF-16"),
)


def decode(data: bytes) -> str:
    """Raises MalformedBody."""
    for mark, codec, name in _MARKS:
        if data.startswith(mark):
            return _decode(data[len(mark) :], codec, name)
    zeros = tuple(byte == 0 for byte in data[:4])
    for pattern, name in _UNMARKED:
        if zeros[: len(pattern)] == pattern:
            raise MalformedBody(
                f"the text looks like {name} without a byte order mark; save it as UTF-8, or with the mark"
            )
    return _decode(data, "utf-8", "UTF-8")


def _decode(data: bytes, codec: str, name: str) -> str:
    try:
        return data.decode(codec)
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(codec, "replace").count("\n") + 1
        raise MalformedBody(
            f"the text is not {name}: byte {error.start}, on line {line}, is invalid; save it as UTF-8"
        ) from error
