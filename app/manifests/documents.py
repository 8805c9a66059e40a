"""Reads the documents of a request body. The body may hold any bytes.

A document holds only what JSON can express. YAML is read as `kubectl` reads it: dates and base-60 numbers stay text, other than
in PyYAML. Aliases are expanded, and what they expand to counts as if it were written out, so that a small text cannot become a
large document.
"""

import copy
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from app.errors import MalformedBody

Json = dict[str, Any]
MAX_DOCUMENTS: Final = 100
MAX_VALUES: Final = 20_000
"""The most mappings, lists and values of all documents together. A long text counts once for every 256 characters.
A VirtualMachine has about a hundred values.
"""
MAX_DEPTH: Final = 64

_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's loader if it is installed: it reads a megabyte in a tenth of a second."""
_TAG: Final = "tag:yaml.org,2002:"
_MERGE: Final = "<<"
_LONG_TEXT: Final = 256
_SHOWN: Final = 64
_INTEGERS: Final = range(-(2**63), 2**63)
"""The integers that the cluster's JSON and Postgres accept."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document. `path` is its position in the body (`documents[1]`); `lines` maps the path of a field to its line."""

    path: str
    body: Json
    lines: dict[str, int] = field(default_factory=dict)

    def line(self, path: str) -> int | None:
        """The line of the field, or of the nearest field that contains it; None if unknown."""
        while path:
            if path in self.lines:
                return self.lines[path]
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return None


def read_yaml(data: bytes) -> list[Document]:
    """The documents of a YAML stream, without empty ones. Raises MalformedBody with line and column."""
    text = _decode(data)
    try:
        return _checked(_Builder(_LOADER(text)).documents())
    except yaml.YAMLError as error:
        raise _malformed(error, text) from error


def read_json(data: bytes) -> list[Document]:
    """A JSON mapping as one document. Raises MalformedBody."""
    text = _decode(data)
    try:
        body = json.loads(text, object_pairs_hook=_refuse_repeated_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise MalformedBody(f"the body is not JSON at {_at(error.lineno, error.colno)}: {error.msg}") from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # a number of thousands of digits
        raise MalformedBody(f"the body is not readable JSON: {error}") from error
    _measure(body)
    return _checked([("documents[0]", body, {})])


def _checked(found: Iterable[tuple[str, Any, dict[str, int]]]) -> list[Document]:
    documents: list[Document] = []
    for path, body, lines in found:
        documents.extend(_unpack(_require_mapping(path, body, lines)))
    if not documents:
        raise MalformedBody("the body has no document; send at least one manifest")
    if len(documents) > MAX_DOCUMENTS:
        raise _too_many()
    return documents


def _unpack(document: Document) -> Iterator[Document]:
    """The items of a `kind: List`, which `kubectl get -o yaml` writes; any other document unchanged."""
    items = document.body.get("items")
    if document.body.get("kind") != "List" or not isinstance(items, list):
        yield document
        return
    for index, item in enumerate(items):
        yield _require_mapping(f"{document.path}.items[{index}]", item, document.lines)


def _require_mapping(path: str, body: Any, lines: dict[str, int]) -> Document:
    if not isinstance(body, dict):
        raise MalformedBody(f"{path} is {describe(body)}; a manifest is a mapping with apiVersion, kind and metadata")
    return Document(path, body, lines)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not UTF-8: byte {error.start} is invalid") from error


class _Builder:
    """Builds values from the parser's events, and counts them as they come."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._values = 0
        self._anchors: dict[str, tuple[Any, int, int]] = {}
        self._lines: dict[str, int] = {}

    def documents(self) -> Iterator[tuple[str, Any, dict[str, int]]]:
        """Path, body and lines of each document that is not empty."""
        number = 0
        while not self._loader.check_event(yaml.StreamEndEvent):
            event = self._loader.get_event()
            if not isinstance(event, yaml.DocumentStartEvent):
                continue
            self._anchors, self._lines = {}, {}
            path = f"documents[{number}]"
            body, _ = self._value(self._loader.get_event(), path, 0)
            if body is None:
                continue
            number += 1
            if number > MAX_DOCUMENTS:
                raise _too_many()
            yield path, body, self._lines

    def _value(self, event: Any, path: str, depth: int) -> tuple[Any, int]:
        """The value that begins with `event`, and its height."""
        if depth > MAX_DEPTH:
            raise _too_deep()
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        before = self._values
        if isinstance(event, yaml.ScalarEvent):
            self._count(_weight(event.value))
            value, height = self._scalar(event), 0
        elif isinstance(event, yaml.SequenceStartEvent):
            value, height = self._list(event, path, depth)
        else:
            value, height = self._mapping(event, path, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._values - before, height
        return value, height

    def _alias(self, event: Any, depth: int) -> tuple[Any, int]:
        if event.anchor not in self._anchors:
            raise MalformedBody(f"{_mark(event)}: *{event.anchor} does not refer to a value that is complete before it")
        value, size, height = self._anchors[event.anchor]
        self._count(size)
        if depth + height > MAX_DEPTH:
            raise _too_deep()
        return copy.deepcopy(value), height

    def _list(self, event: Any, path: str, depth: int) -> tuple[list[Any], int]:
        self._expect_plain(event, "seq")
        self._count(1)
        items: list[Any] = []
        height = 0
        while not isinstance(following := self._loader.get_event(), yaml.SequenceEndEvent):
            at = f"{path}[{len(items)}]"
            self._lines[at] = following.start_mark.line + 1
            item, below = self._value(following, at, depth + 1)
            items.append(item)
            height = max(height, below + 1)
        return items, height

    def _mapping(self, event: Any, path: str, depth: int) -> tuple[Json, int]:
        self._expect_plain(event, "map")
        self._count(1)
        own: Json = {}
        merged: Json = {}
        height = 0
        while not isinstance(key_event := self._loader.get_event(), yaml.MappingEndEvent):
            key, is_merge = self._key(key_event)
            at = f"{path}.{key}"
            if key in own:
                raise MalformedBody(f"{_mark(key_event)}: the key {key!r} is repeated; keep one of them")
            self._lines[at] = key_event.start_mark.line + 1
            value, below = self._value(self._loader.get_event(), at, depth + 1)
            height = max(height, below + 1)
            if is_merge:
                for source in reversed(value if isinstance(value, list) else [value]):
                    if not isinstance(source, dict):
                        raise MalformedBody(f"{_mark(key_event)}: << merges mappings, not {describe(source)}")
                    merged |= source
            else:
                own[key] = value
        return {**merged, **own}, height

    def _key(self, event: Any) -> tuple[str, bool]:
        """The key, and whether it is `<<`, which merges."""
        if not isinstance(event, yaml.ScalarEvent):
            raise MalformedBody(f"{_mark(event)}: a key is not text")
        self._count(_weight(event.value))
        if event.value == _MERGE and event.tag is None and event.implicit[0]:
            return _MERGE, True
        key = self._scalar(event)
        if not isinstance(key, str):
            raise MalformedBody(f"{_mark(event)}: the key {event.value} is {describe(key)}; put it in quotes")
        return key, False

    def _scalar(self, event: Any) -> Any:
        tag = event.tag or self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        text: str = event.value
        _refuse_unstorable(text, _mark(event))
        match tag.removeprefix(_TAG):
            case "str" | "timestamp":
                return text
            case "null":
                return None
            case "bool" | "int" | "float" as kind:
                if ":" in text:  # 12:30 is the number 750 in YAML 1.1
                    return text
                return self._number(event, tag, kind)
            case "merge" | "value":  # plain `<<` and `=`, as a value
                return text
            case _:
                raise MalformedBody(f"{_mark(event)}: the tag {event.tag} is not supported; leave it out")

    def _number(self, event: Any, tag: str, kind: str) -> bool | int | float:
        node = yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark)
        try:
            value = self._loader.construct_object(node)
        except (ValueError, KeyError, OverflowError) as error:
            raise MalformedBody(f"{_mark(event)}: {event.value[:_SHOWN]!r} is not a valid {kind}") from error
        if not isinstance(value, bool | int | float):
            raise MalformedBody(f"{_mark(event)}: {event.value[:_SHOWN]!r} is not a valid {kind}")
        _refuse_odd_number(value, _mark(event))
        return value

    def _expect_plain(self, event: Any, kind: str) -> None:
        if event.tag not in {None, "!", _TAG + kind}:
            raise MalformedBody(f"{_mark(event)}: the tag {event.tag} is not supported; leave it out")

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise _too_large()


def _measure(body: Any) -> None:
    """Checks the limits that the builder checks, for a body that another parser has read."""
    values = 0
    level = [body]
    for _ in range(MAX_DEPTH + 1):
        values += len(level)
        if values > MAX_VALUES:
            raise _too_large()
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                for key in value:
                    _refuse_unstorable(key, "a key of the body")
                    values += _weight(key)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, str):
                _refuse_unstorable(value, "a value of the body")
                values += _weight(value) - 1
            elif isinstance(value, int | float):
                _refuse_odd_number(value, "a value of the body")
        if not below:
            return
        level = below
    raise _too_deep()


def _weight(text: str) -> int:
    return 1 + len(text) // _LONG_TEXT


def _refuse_odd_number(value: float, where: str) -> None:
    if isinstance(value, int):
        if value not in _INTEGERS:
            raise MalformedBody(f"{where}: the number has more than 64 bits; if it is a name, put it in quotes")
    elif not math.isfinite(value):
        raise MalformedBody(f"{where}: JSON cannot express {value}")


def _refuse_unstorable(text: str, where: str) -> None:
    """Refuses text that neither Postgres nor the cluster accepts."""
    if "\0" in text:
        raise MalformedBody(f"{where}: no field may contain a NUL character")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise MalformedBody(f"{where}: half a surrogate pair is not a character")


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise MalformedBody(f"the key {twice!r} is repeated in one mapping; keep one of them")
    return found


def _refuse_constant(text: str) -> Any:
    raise MalformedBody(f"{text} is not a number in JSON")


def _malformed(error: yaml.YAMLError, text: str) -> MalformedBody:
    if isinstance(error, yaml.reader.ReaderError):
        return MalformedBody(f"the body is not YAML: the character U+{_code(error.character):04X} is not allowed in it")
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f" at {_at(mark.line + 1, mark.column + 1)}" if mark is not None else ""
    problem = getattr(error, "problem", None) or "it cannot be parsed"
    context = getattr(error, "context", None)
    hint = "; indent with spaces, never with tabs" if mark is not None and _is_tab(text, mark) else ""
    return MalformedBody(f"the body is not YAML{where}: {problem}{f' ({context})' if context else ''}{hint}")


def _code(character: int | str) -> int:
    """PyYAML reports the character, libyaml its code."""
    return ord(character) if isinstance(character, str) else int(character)


def _is_tab(text: str, mark: Any) -> bool:
    lines = text.splitlines()
    line: str = lines[mark.line] if mark.line < len(lines) else ""
    return line[mark.column : mark.column + 1] == "\t"


def _too_deep() -> MalformedBody:
    return MalformedBody(f"the body is nested more than {MAX_DEPTH} levels deep")


def _too_large() -> MalformedBody:
    return MalformedBody(
        f"the body has more than {MAX_VALUES} values, with aliases expanded; send fewer documents at once"
    )


def _too_many() -> MalformedBody:
    return MalformedBody(f"the body has more than {MAX_DOCUMENTS} documents; send them in several requests")


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


def _mark(event: Any) -> str:
    return _at(event.start_mark.line + 1, event.start_mark.column + 1)


def _at(line: int, column: int) -> str:
    return f"line {line}, column {column}"
