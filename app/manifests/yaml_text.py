"""Reads YAML as `kubectl` reads it: dates and base-60 numbers stay text, other than in PyYAML.

Aliases are expanded, and what they expand to counts as if it were written out, so that a small text cannot become a large
document.
"""

import copy
from collections.abc import Iterator
from typing import Any, Final

import yaml

from app.errors import MalformedBody
from app.manifests.values import (
    Budget,
    Json,
    at,
    below,
    describe,
    plain_number,
    repeated,
    require_depth,
    require_number,
    require_storable,
)

_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's loader if it is installed: it reads a megabyte in a tenth of a second."""
_TAG: Final = "tag:yaml.org,2002:"
_MERGE: Final = "<<"
_SHOWN: Final = 64


class NotYaml(MalformedBody):
    """The text is something else than YAML."""


def read(text: str) -> Iterator[tuple[str, Any, dict[str, int]]]:
    """Path, body and lines of each document that is not empty. Raises NotYaml with line and column, and MalformedBody."""
    try:
        yield from _Builder(_LOADER(text)).documents()
    except yaml.YAMLError as error:
        raise _not_yaml(error, text) from error


class _Builder:
    """Builds values from the parser's events, and counts them as they come."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._budget = Budget()
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
            yield path, body, self._lines

    def _value(self, event: Any, path: str, depth: int) -> tuple[Any, int]:
        """The value that begins with `event`, and its height."""
        require_depth(depth)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        before = self._budget.values
        if isinstance(event, yaml.ScalarEvent):
            self._budget.take_text(event.value)
            value, height = self._scalar(event, path), 0
        elif isinstance(event, yaml.SequenceStartEvent):
            value, height = self._list(event, path, depth)
        else:
            value, height = self._mapping(event, path, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._budget.values - before, height
        return value, height

    def _alias(self, event: Any, depth: int) -> tuple[Any, int]:
        if event.anchor not in self._anchors:
            raise MalformedBody(f"{_mark(event)}: *{event.anchor} does not refer to a value that is complete before it")
        value, size, height = self._anchors[event.anchor]
        self._budget.take(size)
        require_depth(depth + height)
        return copy.deepcopy(value), height

    def _list(self, event: Any, path: str, depth: int) -> tuple[list[Any], int]:
        self._expect_plain(event, "seq")
        self._budget.take()
        items: list[Any] = []
        height = 0
        while not isinstance(following := self._loader.get_event(), yaml.SequenceEndEvent):
            place = f"{path}[{len(items)}]"
            self._lines[place] = following.start_mark.line + 1
            item, under = self._value(following, place, depth + 1)
            items.append(item)
            height = max(height, under + 1)
        return items, height

    def _mapping(self, event: Any, path: str, depth: int) -> tuple[Json, int]:
        self._expect_plain(event, "map")
        self._budget.take()
        own: Json = {}
        merged: Json = {}
        height = 0
        while not isinstance(key_event := self._loader.get_event(), yaml.MappingEndEvent):
            key, is_merge = self._key(key_event, path)
            place = below(path, key)
            if key in own:
                raise repeated(path, key, _mark(key_event))
            self._lines[place] = key_event.start_mark.line + 1
            value, under = self._value(self._loader.get_event(), place, depth + 1)
            height = max(height, under + 1)
            if is_merge:
                for source in reversed(value if isinstance(value, list) else [value]):
                    if not isinstance(source, dict):
                        raise MalformedBody(f"{_mark(key_event)}: << merges mappings, not {describe(source)}")
                    merged |= source
            else:
                own[key] = value
        return {**merged, **own}, height

    def _key(self, event: Any, path: str) -> tuple[str, bool]:
        """The key, and whether it is `<<`, which merges."""
        if not isinstance(event, yaml.ScalarEvent):
            raise MalformedBody(f"{_mark(event)}: a key is not text")
        self._budget.take_text(event.value)
        if event.value == _MERGE and event.tag is None and event.implicit[0]:
            return _MERGE, True
        key = self._scalar(event, path)
        if not isinstance(key, str):
            raise MalformedBody(f"{_mark(event)}: the key {event.value} is {describe(key)}; put it in quotes")
        return key, False

    def _scalar(self, event: Any, path: str) -> Any:
        tag = event.tag or self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        text: str = event.value
        require_storable(text, path, _mark(event))
        match tag.removeprefix(_TAG):
            case "str" | "timestamp":
                return text
            case "null":
                return None
            case "bool" | "int" | "float" as kind:
                if ":" in text:  # 12:30 is the number 750 in YAML 1.1
                    return text
                return self._number(event, tag, kind, path)
            case "merge" | "value":  # plain `<<` and `=`, as a value
                return text
            case _:
                raise MalformedBody(f"{_mark(event)}: the tag {event.tag} is not supported; leave it out")

    def _number(self, event: Any, tag: str, kind: str, path: str) -> bool | int | float:
        node = yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark)
        try:
            value = self._loader.construct_object(node)
        except (ValueError, KeyError, OverflowError) as error:
            raise MalformedBody(f"{_mark(event)}: {event.value[:_SHOWN]!r} is not a valid {kind}") from error
        if not isinstance(value, bool | int | float):
            raise MalformedBody(f"{_mark(event)}: {event.value[:_SHOWN]!r} is not a valid {kind}")
        require_number(value, path, _mark(event))
        return plain_number(value) if isinstance(value, float) else value

    def _expect_plain(self, event: Any, kind: str) -> None:
        if event.tag not in {None, "!", _TAG + kind}:
            raise MalformedBody(f"{_mark(event)}: the tag {event.tag} is not supported; leave it out")


def _not_yaml(error: yaml.YAMLError, text: str) -> NotYaml:
    if isinstance(error, yaml.reader.ReaderError):
        return NotYaml(f"the text is not YAML: the character U+{_code(error.character):04X} is not allowed in it")
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f" at {at(mark.line + 1, mark.column + 1)}" if mark is not None else ""
    problem = getattr(error, "problem", None) or "it cannot be parsed"
    context = getattr(error, "context", None)
    hint = ""
    if mark is not None and _is_tab(text, mark):
        hint = "; indent with spaces, never with tabs"
    elif "character escape code" in problem:
        hint = "; write the character itself, or the whole document as JSON"
    return NotYaml(f"the text is not YAML{where}: {problem}{f' ({context})' if context else ''}{hint}")


def _code(character: int | str) -> int:
    """PyYAML reports the character, libyaml its code."""
    return ord(character) if isinstance(character, str) else int(character)


def _is_tab(text: str, mark: Any) -> bool:
    lines = text.splitlines()
    line: str = lines[mark.line] if mark.line < len(lines) else ""
    return line[mark.column : mark.column + 1] == "\t"


def _mark(event: Any) -> str:
    return at(event.start_mark.line + 1, event.start_mark.column + 1)
