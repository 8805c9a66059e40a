"""What the values of a document or body may be, and how many there may be, whatever language they were written in."""

import math
import re
from typing import Any, Final

from app.errors import FieldProblem, MalformedBody, shorten

Json = dict[str, Any]
MAX_DOCUMENTS: Final = 100
MAX_VALUES: Final = 20_000
"""The most mappings, lists and values of all documents together. A long text counts once for every 256 characters.
A VirtualMachine has about a hundred values.
"""
MAX_VALUES_OF_BODY: Final = 5_000
"""The same for a body that is no manifest: it describes one VM at most."""
MAX_DEPTH: Final = 64
_MAX_PATH: Final = 2048
"""The most characters of all keys that lead to a value: each value is told by its path, and no path of Kubernetes is as long."""
_LONG_TEXT: Final = 256
_EXACT: Final = 2**53
"""Up to here every integer is a number of its own as a float."""
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
INTEGERS: Final = range(-(2**63), 2**63)
"""The integers that the cluster's JSON and Postgres accept."""


class Budget:
    """Counts the values of a text. What is above the limit raises MalformedBody."""

    def __init__(self, most: int = MAX_VALUES) -> None:
        self.values = 0
        self._most = most

    def take(self, values: int = 1) -> None:
        self.values += values
        if self.values > self._most:
            raise MalformedBody(f"the text has more than {self._most} values, with aliases expanded; send less at once")

    def take_text(self, text: str) -> None:
        self.take(1 + len(text) // _LONG_TEXT)


def require_depth(depth: int) -> None:
    """Raises MalformedBody."""
    if depth > MAX_DEPTH:
        raise MalformedBody(f"the text is nested more than {MAX_DEPTH} levels deep")


def require_number(value: float, path: str, where: str) -> None:
    """Raises MalformedBody for a number that the cluster's JSON cannot hold."""
    if isinstance(value, int):
        if value not in INTEGERS:
            raise flaw(path, where, "the number has more than 64 bits; if it is a name, put it in quotes")
    elif not math.isfinite(value):
        raise flaw(path, where, f"JSON cannot express {value}")


def plain_number(value: float) -> float:
    """311.0 is the integer 311, as JSON Schema (2020-12, validation, 6.1.1) and the cluster's own clients have it."""
    return int(value) if abs(value) < _EXACT and value.is_integer() else value


def require_storable(text: str, path: str, where: str) -> None:
    """Raises MalformedBody for text that neither Postgres nor the cluster accepts."""
    if "\0" in text:
        raise flaw(path, where, "no field may contain a NUL character")
    if _SURROGATE.search(text) is not None:
        raise flaw(path, where, "half a surrogate pair is not a character; write the character itself")


def below(path: str, key: str) -> str:
    """The path of a mapping's value. Raises MalformedBody where it is too long."""
    found = f"{path}.{key}" if path else key
    if len(found) > _MAX_PATH:
        raise MalformedBody(f"{shorten(found)}: the keys that lead to a value have more than {_MAX_PATH} characters")
    return found


def repeated(path: str, key: str, where: str) -> MalformedBody:
    return flaw(below(path, key), where, f"the key {shorten(key)!r} is repeated; keep one of them")


def flaw(path: str, where: str, message: str) -> MalformedBody:
    """The error for one value. `path`: of the value, empty for the whole text; `where`: its place in the text."""
    return MalformedBody(
        f"{path}, {where}: {message}" if path else f"{where}: {message}", problems=[FieldProblem(path, message)]
    )


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
