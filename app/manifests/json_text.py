"""Reads JSON: one document after another, with or without `---` between them, and the line of each field."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any, Final, NoReturn

from app.errors import MalformedBody
from app.manifests.values import (
    MAX_VALUES,
    MAX_VALUES_OF_BODY,
    Budget,
    Json,
    at,
    below,
    flaw,
    plain_number,
    repeated,
    require_depth,
    require_number,
    require_storable,
)

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_BETWEEN: Final = re.compile(r"(?:\s|\ufeff|#[^\n]*|---(?!\S)|\.\.\.(?!\S))*")
"""What may stand between two documents, as in YAML."""
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?(?![0-9.eE])")
_WORD: Final = re.compile(r"[A-Za-z-]+")
_WORDS: Final = {"true": True, "false": False, "null": None}
_MOST_DIGITS: Final = 20
_STRINGS: Final = JSONDecoder()


class NotJson(MalformedBody):
    """The text is something else than JSON."""


def looks_like_json(text: str) -> bool:
    """Whether the first document begins as a mapping or list in JSON does. A mapping in YAML may begin so too."""
    begin = _end(_BETWEEN, text, 0)
    return text[begin : begin + 1] in {"{", "["}


def read(text: str) -> Iterator[tuple[str, Any, dict[str, int]]]:
    """Path, body and lines of each document. Raises NotJson with line and column, and MalformedBody.

    Text of a single line has no line numbers, as they would say nothing.
    """
    return _Reader(text).documents()


def read_value(text: str) -> Any:
    """The one value that the text is. Raises NotJson with line and column, and MalformedBody."""
    return _Reader(text, most=MAX_VALUES_OF_BODY, with_lines=False).only_value()


class _Reader:
    def __init__(self, text: str, *, most: int = MAX_VALUES, with_lines: bool = True) -> None:
        self._text = text
        self._position = 0
        self._budget = Budget(most)
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._with_lines = with_lines and bool(self._ends)
        self._lines: dict[str, int] = {}

    def documents(self) -> Iterator[tuple[str, Any, dict[str, int]]]:
        number = 0
        while self._skip(_BETWEEN) < len(self._text):
            self._lines = {}
            path = f"documents[{number}]"
            yield path, self._value(path, 0), self._lines
            number += 1

    def only_value(self) -> Any:
        self._skip(_SPACE)
        found = self._value("", 0)
        if self._skip(_SPACE) < len(self._text):
            self._refuse("there is more behind its end")
        return found

    def _value(self, path: str, depth: int) -> Any:
        require_depth(depth)
        begins = self._text[self._position : self._position + 1]
        if begins == '"':
            text = self._string(path)
            self._budget.take_text(text)
            return text
        self._budget.take()
        if begins == "{":
            return self._mapping(path, depth)
        if begins == "[":
            return self._list(path, depth)
        return self._scalar(path)

    def _mapping(self, path: str, depth: int) -> Json:
        found: Json = {}
        for _ in self._entries("}"):
            begin = self._position
            if self._text[begin : begin + 1] != '"':
                self._refuse("a key must be text in double quotes")
            key = self._string(path)
            self._budget.take_text(key)
            if key in found:
                raise repeated(path, key, self._at(begin))
            place = below(path, key)
            self._note_line(place, begin)
            self._skip(_SPACE)
            self._expect(":", "a colon is missing after the key")
            self._skip(_SPACE)
            found[key] = self._value(place, depth + 1)
        return found

    def _list(self, path: str, depth: int) -> list[Any]:
        found: list[Any] = []
        for _ in self._entries("]"):
            place = f"{path}[{len(found)}]"
            self._note_line(place, self._position)
            found.append(self._value(place, depth + 1))
        return found

    def _entries(self, end: str) -> Iterator[None]:
        """Stands before each entry of a mapping or list, and at last behind its end."""
        self._position += 1
        if self._is_next(end):
            return
        while True:
            yield
            if self._is_next(end):
                return
            self._expect(",", f"a comma or {end} is missing")
            self._skip(_SPACE)

    def _is_next(self, sign: str) -> bool:
        """Passes over the sign if it comes next."""
        found = self._text.startswith(sign, self._skip(_SPACE))
        self._position += found
        return found

    def _expect(self, sign: str, why: str) -> None:
        if not self._is_next(sign):
            self._refuse(why)

    def _string(self, path: str) -> str:
        begin = self._position
        try:
            found, self._position = _STRINGS.raw_decode(self._text, begin)
        except JSONDecodeError as error:
            self._position = error.pos
            self._refuse(f"{error.msg[:1].lower()}{error.msg[1:]}".removesuffix(" at").rstrip(": "))
        text = str(found)
        require_storable(text, path, self._at(begin))
        return text

    def _scalar(self, path: str) -> bool | int | float | None:
        begin = self._position
        if (number := _NUMBER.match(self._text, begin)) is not None:
            self._position = number.end()
            return self._number(number, path, begin)
        word = _WORD.match(self._text, begin)
        if word is None:
            self._refuse("the text ends too early" if begin >= len(self._text) else "no value begins like this")
        if word[0] in {"NaN", "Infinity", "-Infinity"}:
            raise flaw(path, self._at(begin), f"{word[0]} is not a number in JSON")
        if word[0] not in _WORDS:
            self._refuse(f"{word[0][:20]} is no value; text is in double quotes")
        self._position = word.end()
        return _WORDS[word[0]]

    def _number(self, number: re.Match[str], path: str, begin: int) -> int | float:
        is_whole = number[1] is None and number[2] is None
        value = int(number[0][: _MOST_DIGITS + 1]) if is_whole else float(number[0])
        require_number(value, path, self._at(begin))
        return value if is_whole else plain_number(value)

    def _skip(self, pattern: re.Pattern[str]) -> int:
        self._position = _end(pattern, self._text, self._position)
        return self._position

    def _note_line(self, place: str, position: int) -> None:
        if self._with_lines:
            self._lines[place] = self._line(position)

    def _line(self, position: int) -> int:
        return bisect_right(self._ends, position - 1) + 1

    def _at(self, position: int) -> str:
        line = self._line(position)
        begin = self._ends[line - 2] + 1 if line > 1 else 0
        return at(line, position - begin + 1)

    def _refuse(self, why: str) -> NoReturn:
        raise NotJson(f"the text is not JSON at {self._at(self._position)}: {why}")


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    return position if found is None else found.end()
