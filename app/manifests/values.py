"""What the values of a document may be, and how many there may be, whatever language they were written in."""

import math
from typing import Any, Final

from app.errors import MalformedBody

Json = dict[str, Any]
MAX_DOCUMENTS: Final = 100
MAX_VALUES: Final = 20_000
"""The most mappings, lists and values of all documents together. A long text counts once for every 256 characters.
A VirtualMachine has about a hundred values.
"""
MAX_DEPTH: Final = 64
_LONG_TEXT: Final = 256
_INTEGERS: Final = range(-(2**63), 2**63)
"""The integers that the cluster's JSON and Postgres accept."""


class Budget:
    """Counts the values of all documents. What is above a limit raises MalformedBody."""

    def __init__(self) -> None:
        self.values = 0

    def take(self, values: int = 1) -> None:
        self.values += values
        if self.values > MAX_VALUES:
            raise MalformedBody(
                f"the text has more than {MAX_VALUES} values, with aliases expanded; send fewer documents at once"
            )

    def take_text(self, text: str) -> None:
        self.take(1 + len(text) // _LONG_TEXT)


def require_depth(depth: int) -> None:
    """Raises MalformedBody."""
    if depth > MAX_DEPTH:
        raise MalformedBody(f"the text is nested more than {MAX_DEPTH} levels deep")


def require_number(value: float, where: str) -> None:
    """Raises MalformedBody for a number that the cluster's JSON cannot hold."""
    if isinstance(value, int):
        if value not in _INTEGERS:
            raise MalformedBody(f"{where}: the number has more than 64 bits; if it is a name, put it in quotes")
    elif not math.isfinite(value):
        raise MalformedBody(f"{where}: JSON cannot express {value}")


def require_storable(text: str, where: str) -> None:
    """Raises MalformedBody for text that neither Postgres nor the cluster accepts."""
    if "\0" in text:
        raise MalformedBody(f"{where}: no field may contain a NUL character")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise MalformedBody(f"{where}: half a surrogate pair is not a character; write the character itself")


def at(line: int, column: int) -> str:
    """Both begin at 1."""
    return f"line {line}, column {column}"


def describe(value: object) -> str:
    """The type of a value, in words."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "a boolean in YAML"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "a mapping"
